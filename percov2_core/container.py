"""What is sent, in and out of a stream: header, caption and tokens, with the check value.

h x w token grid, K codebook size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from percov2_core.bitstream import MAX_SEED, Cut, Stream, check_value
from percov2_core.caption import packing
from percov2_core.caption.language import CaptionLanguage
from percov2_core.config import MODES, RATES, check_schedule, check_whole, find_mode
from percov2_core.entropy.coder import SymbolReader, SymbolWriter
from percov2_core.entropy.prior import CutPoint, TokenPrior, coding_order, stage_map
from percov2_core.errors import BitstreamError, ConfigError

Ints = NDArray[np.int64]


class Bits(NamedTuple):
    """Where the bits of a file went; the sum is 8 x its bytes."""

    header: int
    caption: int
    tokens: int


class Contents(NamedTuple):
    """What a file says, before any picture is painted."""

    caption: str
    tokens: Ints  # (h, w) in [0, K), those that were not sent are sampled
    sent: NDArray[np.bool_]  # (h, w) True where the token is in the file
    token_bits: NDArray[np.float64]  # (h, w) bits, 0 where the token was not sent
    stages: Ints  # (h, w) stage of the schedule
    bits: Bits


class Unpacked(NamedTuple):
    """What a decoder needs of a file."""

    tokens: Ints  # (h, w) in [0, K), those that were not sent are sampled
    caption: str
    caption_bits: float  # ideal cost


class Container:
    """Packs and unpacks the streams of one model.

    pack:      stream without payload, tokens, caption --> stream
    unpack:    stream --> tokens, caption
    truncate:  stream --> shorter stream
    """

    def __init__(
        self,
        *,
        name: str,
        digest: bytes,
        language: CaptionLanguage,
        priors: Mapping[str, TokenPrior],
    ) -> None:
        self.name = name
        self.digest = digest
        self.language = language
        self.priors = priors

    @property
    def fingerprint(self) -> int:
        """First byte of the model's digest, 0..255."""
        return self.digest[0]

    def blank(
        self,
        size: tuple[int, int],
        mode: str,
        *,
        schedule: str,
        tokens: int | None = None,
        seed: int = 0,
    ) -> Stream:
        """The header of a picture, without payload.

        Args:
            size: Width and height in pixels.
            tokens: Hybrid only: how many tokens will be sent; None is 0.

        Raises:
            ConfigError: if a name or a number is wrong.
        """
        width, height = size
        rows, columns = RATES[find_mode(mode).rate].grid(height, width)
        return Stream(
            mode=mode,
            schedule=check_schedule(schedule),
            width=width,
            height=height,
            tokens_sent=_tokens_sent(tokens, rows * columns, mode),
            fingerprint=self.fingerprint,
            check=0,
            payload=b"",
            seed=check_whole("seed", seed, 0, MAX_SEED),
        )

    def pack(self, stream: Stream, tokens: Ints, caption: str) -> Stream:
        """Fill a stream with the first tokens of a grid; it holds a cut at every stage sent.

        Args:
            stream: Header; its check value and payload are replaced.
            tokens: (h, w) in [0, K).

        Raises:
            ConfigError: if the caption is too long.
        """
        writer = SymbolWriter()
        packing.write_caption(writer, caption, self.language)
        points = [CutPoint(0, writer.snapshot())]
        points += self.priors[MODES[stream.mode].rate].compress(
            tokens, caption, schedule=stream.schedule, writer=writer, tokens_sent=stream.tokens_sent
        )
        sent = tokens.ravel()[coding_order(stream.schedule, _grid(tokens))]
        cuts = []
        if _may_be_cut(stream):
            partial = replace(stream, mode="hybrid")
            cuts = [self._cut(partial, point, sent, caption) for point in points]
        last = self._cut(stream, points[-1], sent, caption)
        return replace(stream, check=last.check, payload=last.payload, cuts=tuple(cuts))

    def unpack(self, stream: Stream) -> Unpacked:
        """Read a stream, with everything checked.

        Raises:
            BitstreamError: if the file is damaged or of another model.
        """
        self._check_model(stream)
        rate = MODES[stream.mode].rate
        reader = SymbolReader(stream.payload)
        caption = packing.read_caption(reader, self.language)
        caption_bits = reader.ideal_bits
        tokens = self.priors[rate].decompress(
            reader,
            RATES[rate].grid(stream.height, stream.width),
            caption=caption,
            schedule=stream.schedule,
            tokens_sent=stream.tokens_sent,
            seed=stream.seed,
        )
        reader.close()
        order = coding_order(stream.schedule, _grid(tokens))
        sent = tokens.ravel()[order[: stream.tokens_sent]]
        if (check := self._check(stream, sent, caption)) != stream.check:
            raise BitstreamError(
                f"check value: contents give {check:04x}, file says {stream.check:04x}: "
                "the file is damaged or was written by another entropy model"
            )
        return Unpacked(tokens, caption, caption_bits)

    def contents(self, stream: Stream) -> Contents:
        """All that a stream says, and what each part of it costs.

        Raises:
            BitstreamError: if the file is damaged or of another model.
        """
        tokens, caption, caption_bits = self.unpack(stream)
        order = coding_order(stream.schedule, _grid(tokens))
        sent = np.zeros(tokens.shape, dtype=np.bool_)
        sent.reshape(-1)[order[: stream.tokens_sent]] = True
        prior = self.priors[MODES[stream.mode].rate]
        cost = prior.cost(tokens, caption, schedule=stream.schedule)
        payload = 8 * len(stream.payload)
        spent = min(payload, round(caption_bits)) if stream.tokens_sent else payload
        return Contents(
            caption=caption,
            tokens=tokens,
            sent=sent,
            token_bits=np.where(sent, cost, 0.0),
            stages=stage_map(stream.schedule, _grid(tokens)),
            bits=Bits(8 * stream.sizes.header, spent, payload - spent),
        )

    def truncate(
        self, stream: Stream, *, stage: int | None = None, tokens: int | None = None
    ) -> Stream:
        """The hybrid stream of the first stages, or of the first tokens.

        Raises:
            ConfigError: if not exactly one of `stage` and `tokens` is given, it is out of range,
                or the mode does not allow it.
            BitstreamError: if the file is damaged or of another model.
        """
        if (stage is None) == (tokens is None):
            raise ConfigError(f"truncate: give stage or tokens, got {stage} and {tokens}")
        check_stream(stream)
        if not _may_be_cut(stream):
            raise ConfigError(f"truncate: mode must be ultra-low or hybrid, got {stream.mode}")
        if tokens is not None:
            left = check_whole("tokens", tokens, 0, stream.tokens_sent)
            shorter = replace(stream, mode="hybrid", tokens_sent=left)
        grid, caption, _ = self.unpack(stream)
        if stage is not None:
            return self.pack(stream, grid, caption).truncate(stage)
        return self.pack(shorter, grid, caption)

    def _cut(self, stream: Stream, point: CutPoint, sent: Ints, caption: str) -> Cut:
        shorter = replace(stream, tokens_sent=point.tokens)
        check = self._check(shorter, sent[: point.tokens], caption)
        return Cut(point.tokens, check, point.payload)

    def _check(self, stream: Stream, sent: Ints, caption: str) -> int:
        tokens = sent.astype("<u2").tobytes()
        return check_value(stream, caption, tokens=tokens, model=self.digest)

    def _check_model(self, stream: Stream) -> None:
        if check_stream(stream).fingerprint != self.fingerprint:
            raise BitstreamError(
                f"fingerprint: file was written by a model with {stream.fingerprint:02x}, "
                f"{self.name!r} has {self.fingerprint:02x}"
            )


def check_stream(stream: Stream) -> Stream:
    """Return `stream` if it is one.

    Raises:
        ConfigError: if it is something else, such as the bytes of a file.
    """
    if not isinstance(stream, Stream):
        kind = type(stream).__name__
        raise ConfigError(f"stream must be a Stream (see Stream.from_bytes), got {kind}")
    return stream


def _may_be_cut(stream: Stream) -> bool:
    return MODES[stream.mode].rate == MODES["hybrid"].rate


def _tokens_sent(tokens: int | None, total: int, mode: str) -> int:
    """How many tokens a mode sends when it is asked for `tokens`."""
    if MODES[mode].partial:
        return check_whole("tokens", 0 if tokens is None else tokens, 0, total)
    if tokens not in (None, total):
        raise ConfigError(f"tokens: mode {mode!r} sends all {total}, got {tokens!r}")
    return total


def _grid(tokens: Ints) -> tuple[int, int]:
    return tokens.shape[0], tokens.shape[1]
