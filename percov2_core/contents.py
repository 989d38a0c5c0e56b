"""What a file says: a caption and tokens into a stream, and back, with the check value.

Needs the entropy model and the caption's language model, and none of the networks that see
pictures, nor the libraries that these come with. h x w token grid, K codebook size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from percov2_core.bitstream import Cut, Stream, check_value
from percov2_core.caption import packing
from percov2_core.caption.language import CaptionLanguage
from percov2_core.config import MODES, check_whole, quoted
from percov2_core.entropy.coder import SymbolReader, SymbolWriter
from percov2_core.entropy.prior import TokenPrior
from percov2_core.entropy.schedule import Ints, coding_order, stage_map
from percov2_core.errors import BitstreamError, ConfigError


class Bits(NamedTuple):
    """Where the bits of a file went; the sum is 8 x its bytes."""

    header: int
    caption: int
    tokens: int


class Contents(NamedTuple):
    """What a file says, before any picture is painted."""

    stream: Stream  # the file itself
    caption: str
    tokens: Ints  # (h, w) in [0, K), those that were not sent are sampled
    sent: NDArray[np.bool_]  # (h, w) True where the token is in the file
    token_bits: NDArray[np.float64]  # (h, w) bits, 0 where the token was not sent
    stages: Ints  # (h, w) stage of the schedule
    bits: Bits


@dataclass(frozen=True, slots=True, kw_only=True)
class FileModules:
    """What files need of the parts that are trained per rate."""

    prior: TokenPrior


@dataclass(kw_only=True, eq=False, repr=False)
class FileCodec:
    """The half of a model that reads and writes files; `PerCoV2` adds pictures."""

    name: str
    digest: bytes
    language: CaptionLanguage
    rates: Mapping[str, FileModules]

    @property
    def fingerprint(self) -> int:
        """First byte of the model's digest, 0..255."""
        return self.digest[0]

    def caption_bits(self, text: str) -> float:
        """Ideal cost of a caption in the file, in bits."""
        return packing.caption_bits(text, self.language)

    def write(self, header: Stream, tokens: Ints, caption: str) -> Stream:
        """Put a caption and the first of (h, w) tokens in [0, K) into a file: the end of `encode`.

        The header (see `Stream.blank`) gets a payload and a check value and, where the file may be
        cut, a cut at every stage.

        Raises:
            ConfigError: if the tokens are not such, or the caption cannot be written.
        """
        prior = self.rates[MODES[header.mode].rate].prior
        size, (h, w) = prior.codebook_size, header.grid
        if tokens.shape != (h, w) or not 0 <= tokens.min() <= tokens.max() < size:
            raise ConfigError(f"tokens must be {h} x {w} numbers in [0, {size})")
        writer, cuts = SymbolWriter(), []
        packing.write_caption(writer.write, caption, self.language)
        ordered = tokens.ravel()[coding_order(header.schedule, header.grid)]  # (N,)
        for written in prior.compress(
            tokens, caption, schedule=header.schedule, writer=writer, sent=header.tokens_sent
        ):
            if header.may_be_cut:
                shorter = replace(header, mode="hybrid", tokens_sent=written)
                check = self._check(shorter, ordered, caption)
                cuts.append(Cut(written, check, writer.finish()))
        check = self._check(header, ordered, caption)
        return replace(header, check=check, payload=writer.finish(), cuts=tuple(cuts))

    def truncate(
        self, stream: Stream, *, stage: int | None = None, tokens: int | None = None
    ) -> Stream:
        """The hybrid stream of the first stages, or of the first tokens, of any stream.

        Raises:
            ConfigError: if not exactly one of `stage` and `tokens` is given, it is out of range,
                or the mode does not allow it.
            BitstreamError: if the file is damaged or of another model.
        """
        if (stage is None) == (tokens is None):
            got = f"{quoted(stage)} and {quoted(tokens)}"
            raise ConfigError(f"truncate: give stage or tokens, got {got}")
        header = check_stream(stream)
        header.check_may_be_cut()
        if tokens is not None:
            left = check_whole("tokens", tokens, 0, stream.tokens_sent)
            header = replace(stream, mode="hybrid", tokens_sent=left)
        contents = self.read(stream)
        written = self.write(header, contents.tokens, contents.caption)
        return written if stage is None else written.truncate(stage)

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
        caption = packing.read_caption(reader.read, self.language)
        caption_bits = reader.ideal_bits
        tokens, token_bits = self.rates[MODES[stream.mode].rate].prior.decompress(
            reader,
            stream.grid,
            caption=caption,
            schedule=stream.schedule,
            sent=stream.tokens_sent,
            seed=stream.seed,
        )  # (h, w), (h, w)
        reader.close()
        order = coding_order(stream.schedule, stream.grid)
        if (check := self._check(stream, tokens.ravel()[order], caption)) != stream.check:
            raise BitstreamError(
                f"check value: contents give {check:04x}, file says {stream.check:04x}: "
                "the file is damaged or was written by another entropy model"
            )
        sent = np.zeros(stream.grid, dtype=np.bool_)
        sent.reshape(-1)[order[: stream.tokens_sent]] = True
        payload = 8 * len(stream.payload)
        spent = min(payload, round(caption_bits)) if stream.tokens_sent else payload
        return Contents(
            stream=stream,
            caption=caption,
            tokens=tokens,
            sent=sent,
            token_bits=token_bits,
            stages=stage_map(stream.schedule, stream.grid),
            bits=Bits(8 * stream.sizes.header, spent, payload - spent),
        )

    def _check(self, stream: Stream, ordered: Ints, caption: str) -> int:
        """Check value of a stream that holds the first of these tokens, (N,) in coding order."""
        tokens = ordered[: stream.tokens_sent].astype("<u2").tobytes()
        return check_value(stream, caption, tokens=tokens, model=self.digest)


def check_stream(stream: Stream) -> Stream:
    """Return `stream` if it is one, and not the bytes of a file: else a ConfigError."""
    if not isinstance(stream, Stream):
        kind = type(stream).__name__
        raise ConfigError(f"stream must be a Stream (see Stream.from_bytes), got {kind}")
    return stream
