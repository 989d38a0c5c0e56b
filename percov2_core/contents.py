"""What a file says: a caption and tokens of two levels into a stream, and back.

Needs the entropy models and the caption's language model, and none of the networks that see
pictures, nor the libraries that these come with. h x w token grid, K codebook size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from percov2_core.bitstream import MAX_FILE_BYTES, Stream, check_value
from percov2_core.caption import packing, things
from percov2_core.caption.language import CaptionLanguage
from percov2_core.config import COARSE, DEFAULT_EFFORT, DEFAULT_SCHEDULE, FINE, check_whole
from percov2_core.entropy.coder import PRECISION, SymbolReader, SymbolWriter
from percov2_core.entropy.prior import Decompressed, Draws, Known, Step, TokenPrior
from percov2_core.entropy.schedule import Ints, coding_order, stage_map
from percov2_core.errors import BitstreamError, ConfigError


class Bits(NamedTuple):
    """Where the bits of a file went; the sum is 8 x its bytes."""

    header: int
    caption: int
    tokens: int


_COUNT_BYTES = 3  # at most, of how many tokens a file holds


class Tokens(NamedTuple):
    """What the encoder found in a picture: files of every size are made from it."""

    size: tuple[int, int]  # width and height of the picture, px
    caption: str
    coarse: Ints | None  # (hp, wp) in [0, K); None if none is wanted
    fine: Ints | None  # (h, w) in [0, K), likewise
    effort: str = DEFAULT_EFFORT  # with which they were looked for
    # (h, w) the fine ones before the search, which counts on neighbours: for files that hold few
    nearest: Ints | None = None


class LevelContents(NamedTuple):
    """One token grid of a file."""

    tokens: Ints  # (h, w) in [0, K); those that were not sent are drawn or guessed
    sent: NDArray[np.bool_]  # (h, w) True where the token is in the file
    bits: NDArray[np.float64]  # (h, w) what the token took, 0 where it was not sent
    stages: Ints  # (h, w) stage of the schedule


class Contents(NamedTuple):
    """What a file says, before any picture is painted."""

    stream: Stream  # the file itself
    caption: str
    coarse: LevelContents | None  # None where the file leaves the level out
    fine: LevelContents
    guesses: NDArray[np.uint16] | None  # (n, K) frequencies of the fine tokens not sent, in order
    bits: Bits


@dataclass(frozen=True, slots=True, kw_only=True)
class FileModules:
    """What files need of the parts that are trained per level."""

    prior: TokenPrior


@dataclass(kw_only=True, eq=False, repr=False)
class FileCodec:
    """The half of a model that reads and writes files; `PerCoV2` adds pictures."""

    name: str
    digest: bytes
    language: CaptionLanguage
    levels: Mapping[str, FileModules]  # by the names in `config.LEVELS`

    @property
    def fingerprint(self) -> int:
        """First byte of the model's digest, 0..255."""
        return self.digest[0]

    def caption_bits(self, text: str) -> float:
        """Ideal cost of a caption in the file, in bits."""
        return packing.caption_bits(text, self.language)

    def write(
        self,
        tokens: Tokens,
        mode: str = "hybrid",
        *,
        count: int | None = None,
        size: int | None = None,
        schedule: str = DEFAULT_SCHEDULE,
        seed: int = 0,
    ) -> Stream:
        """Put a caption and the first tokens of the sequence into a file: the end of `encode`.

        Args:
            mode: Key into `config.FILE_MODES`.
            count: How many tokens, where the mode does not say it; None is none.
            size: Instead of mode and count: the most bytes. As many tokens are sent as fit, or
                what `extreme` sends if that does.
            seed: Of the tokens that the decoder draws and of its noise; other than 0 costs bytes.

        Raises:
            ConfigError: if the tokens are not such, the caption cannot be written, or no file is
                that small.
        """
        if size is not None:
            size = check_whole("size", size, 1, MAX_FILE_BYTES)
            return self._best(tokens, size, schedule=schedule, seed=seed)
        header = Stream.blank(
            tokens.size, mode, self.fingerprint, schedule=schedule, tokens=count, seed=seed
        )
        tokens = to_send(tokens, header)
        self._check_tokens(header, tokens)
        return self._written(header, tokens, self._stages(header, tokens))

    def _best(self, tokens: Tokens, size: int, *, schedule: str, seed: int) -> Stream:
        """What `extreme` sends if that takes at most so many bytes, else as much of both levels."""
        blank = partial(
            Stream.blank, tokens.size, fingerprint=self.fingerprint, schedule=schedule, seed=seed
        )
        total = blank("hybrid").tokens_total
        first = both = blank("hybrid", tokens=total.coarse + total.fine * (tokens.fine is not None))
        if tokens.fine is not None:
            alone = blank("fine-only", tokens=total.fine)
            self._check_tokens(alone, tokens)
            # Ends where the bytes do, long before the whole level if they are few. Its header says
            # how many tokens there are, which that of `extreme` does not.
            first = self._fitted(alone, tokens, size + _COUNT_BYTES)
            if first.tokens_sent == total.fine:
                whole = self.write(tokens, "extreme", schedule=schedule, seed=seed)
                if len(whole.to_bytes()) <= size:
                    return whole
        self._check_tokens(both, tokens)
        stream = self._fitted(both, to_send(tokens, first), size)
        if holds_few(stream) != holds_few(first):
            stream = self._fitted(both, to_send(tokens, stream), size)
        return stream

    def truncate(
        self,
        stream: Stream,
        *,
        stage: int | None = None,
        tokens: int | None = None,
        size: int | None = None,
    ) -> Stream:
        """A shorter file of the same picture, made without it; the file itself if all of it stays.

        Args:
            stage: How many stages to keep, those of the coarse level first; 0 is the caption alone.
            tokens: Or how many tokens.
            size: Or the most bytes.

        Raises:
            ConfigError: if not exactly one of them is given, or it is out of range.
            BitstreamError: if the file is damaged or of another model.
        """
        wanted = {"stage": stage, "tokens": tokens, "size": size}
        if len(given := [name for name, value in wanted.items() if value is not None]) != 1:
            listed = ", ".join(given) or "none"
            raise ConfigError(f"truncate: give one of stage, tokens and size, got {listed}")
        ends = self.stage_ends(check_stream(stream))
        if stage is not None:
            tokens = ends[check_whole("stage", stage, 0, len(ends) - 1)]
        if tokens is not None:
            tokens = check_whole("tokens", tokens, 0, stream.tokens_sent)
        if size is not None:
            size = check_whole("size", size, 1, MAX_FILE_BYTES)
        contents = self.read(stream)
        if tokens == stream.tokens_sent or (size and len(stream.to_bytes()) <= size):
            return stream
        shorter = replace(
            stream,
            mode="hybrid" if stream.has_coarse else "fine-only",
            tokens_sent=stream.tokens_sent if tokens is None else tokens,
        )
        coarse = None if contents.coarse is None else contents.coarse.tokens
        found = Tokens(
            (stream.width, stream.height), contents.caption, coarse, contents.fine.tokens
        )
        if size is None:
            return self._written(shorter, found, self._stages(shorter, found))
        return self._fitted(shorter, found, size)

    def stage_ends(self, stream: Stream) -> list[int]:
        """Tokens after each stage that a file has begun, from 0 for the caption alone."""
        grids = [stream.coarse_grid] * stream.has_coarse + [stream.fine_grid]
        sizes = np.concatenate([np.bincount(stage_map(stream.schedule, g).ravel()) for g in grids])
        ends = [0, *np.cumsum(sizes).tolist()]
        return [end for end in ends if end < stream.tokens_sent] + [stream.tokens_sent]

    def _check_tokens(self, header: Stream, tokens: Tokens) -> None:
        wanted = {COARSE.name: header.coarse_grid} if header.sent.coarse else {}
        if header.sent.fine:
            wanted[FINE.name] = header.fine_grid
        for name, grid in wanted.items():
            found, most = getattr(tokens, name), self.levels[name].prior.codebook_size
            if found is None or found.shape != grid or not 0 <= found.min() <= found.max() < most:
                h, w = grid
                raise ConfigError(f"{name} tokens must be {h} x {w} numbers in [0, {most})")

    def _stages(self, header: Stream, tokens: Tokens) -> Iterator[tuple[Ints, Step]]:
        """All tokens of a level, and a stage of it: everything that the header wants sent."""
        above = tokens.coarse if header.has_coarse else None
        for name, grid, sent, parents in (
            (COARSE.name, tokens.coarse, header.sent.coarse, None),
            (FINE.name, tokens.fine, header.sent.fine, above),
        ):
            if sent and grid is not None:
                prior, known = self.levels[name].prior, Known(tokens.caption, parents)
                for step in prior.compress(grid, known, schedule=header.schedule, sent=sent):
                    yield grid, step

    def _written(
        self, header: Stream, tokens: Tokens, steps: Iterator[tuple[Ints, Step]]
    ) -> Stream:
        header = replace(header, named=bool(things.part(tokens.caption).things))
        writer, left = SymbolWriter(), header.tokens_sent
        packing.write_caption(writer.write, tokens.caption, self.language)
        for level, (positions, freqs, _) in steps:
            here = positions[:left]
            writer.write(level.ravel()[here], freqs[: len(here)])
            left -= len(here)
        return replace(header, check=self._check(header, tokens), payload=writer.finish())

    def _fitted(self, header: Stream, tokens: Tokens, size: int) -> Stream:
        """As many tokens as fit into so many bytes, of those that the header wants sent."""
        spent, steps = self.caption_bits(tokens.caption), []
        # A stream is never shorter than its whole bytes of information.
        least = len(replace(header, tokens_sent=0).header_bytes())
        budget = 8 * (size - least + 1)
        counts = [0]
        for level, step in self._stages(header, tokens):
            if spent >= budget:
                break
            steps.append((level, step))
            chosen = step.freqs[np.arange(len(step.positions)), level.ravel()[step.positions]]
            ends = spent + np.cumsum(PRECISION - np.log2(chosen))
            counts.append(counts[-1] + int((ends < budget).sum()))
            spent = float(ends[-1])
        for count in range(counts[-1], -1, -1):  # the coder's end takes up to a byte more
            stream = self._written(replace(header, tokens_sent=count), tokens, iter(steps))
            if len(stream.to_bytes()) <= size:
                return stream
        raise ConfigError(
            f"size: the caption alone takes {len(stream.to_bytes())} bytes, got {size}; a shorter "
            "caption takes fewer"
        )

    def read(self, stream: Stream) -> Contents:
        """What a file says, and what each part of it costs: the first half of `decode`.

        Raises:
            BitstreamError: if the file is damaged or of another model.
        """
        if check_stream(stream).fingerprint != self.fingerprint:
            raise BitstreamError(
                f"fingerprint: file was written by a model with {stream.fingerprint:02x}, "
                f"{self.name!r} has {self.fingerprint:02x}"
            )
        reader = SymbolReader(stream.payload)
        caption = packing.read_caption(reader.read, self.language, named=stream.named)
        caption_bits, schedule, sent = reader.ideal_bits, stream.schedule, stream.sent
        coarse = parents = None
        if stream.has_coarse:
            coarse = self.levels[COARSE.name].prior.decompress(
                reader,
                stream.coarse_grid,
                Known(caption),
                schedule=schedule,
                sent=sent.coarse,
                draws=Draws(stream.seed, caption),
            )
            parents = coarse.tokens
        fine = self.levels[FINE.name].prior.decompress(
            reader,
            stream.fine_grid,
            Known(caption, parents),
            schedule=schedule,
            sent=sent.fine,
            draws=None,
        )
        reader.close()
        found = Tokens((stream.width, stream.height), caption, parents, fine.tokens)
        if (check := self._check(stream, found)) != stream.check:
            raise BitstreamError(
                f"check value: contents give {check:04x}, file says {stream.check:04x}: "
                "the file is damaged or was written by another entropy model"
            )
        payload = 8 * len(stream.payload)
        spent = min(payload, round(caption_bits)) if stream.tokens_sent else payload
        return Contents(
            stream=stream,
            caption=caption,
            coarse=None if coarse is None else _level(coarse, schedule, sent.coarse),
            fine=_level(fine, schedule, sent.fine),
            guesses=fine.guesses,
            bits=Bits(8 * len(stream.header_bytes()), spent, payload - spent),
        )

    def _check(self, stream: Stream, tokens: Tokens) -> int:
        """Check value of a stream that holds the first of these tokens."""
        levels = ((tokens.coarse, stream.sent.coarse), (tokens.fine, stream.sent.fine))
        ordered = [
            level.ravel()[coding_order(stream.schedule, level.shape)[:sent]].astype("<u2").tobytes()
            for level, sent in levels
            if sent and level is not None
        ]
        return check_value(stream, tokens.caption, tokens=b"".join(ordered), model=self.digest)


def _level(found: Decompressed, schedule: str, count: int) -> LevelContents:
    grid = found.tokens.shape
    sent = np.zeros(grid, dtype=np.bool_)
    sent.reshape(-1)[coding_order(schedule, grid)[:count]] = True
    return LevelContents(found.tokens, sent, found.bits, stage_map(schedule, grid))


def holds_few(header: Stream) -> bool:
    """Whether a file has less than two thirds of the fine tokens."""
    return 3 * header.sent.fine < 2 * header.tokens_total.fine


def to_send(tokens: Tokens, header: Stream) -> Tokens:
    """The same, but for a file that holds few the nearest fine tokens in place of the searched."""
    if tokens.nearest is None or not holds_few(header):
        return tokens
    return tokens._replace(fine=tokens.nearest, nearest=None)


def check_stream(stream: Stream) -> Stream:
    """Return `stream` if it is one, and not the bytes of a file: else a ConfigError."""
    if not isinstance(stream, Stream):
        kind = type(stream).__name__
        raise ConfigError(f"stream must be a Stream (see Stream.from_bytes), got {kind}")
    return stream
