"""The file format (`.pcv2`). Bytes in, bytes out: this module never sees a tensor.

    bits        field
    8           magic 1011 0, then the format version (3 bits)
    2           mode: 0 ultra-low, 1 extreme, 2 hybrid
    3           schedule, its position in `config.SCHEDULES`
    1           square: height equals width and is not stored
    1           seeded: the seed is stored, because it is not 0
    1           reserved, 0
    4 + 12      square: four zero bits, width - 1
    12 + 12     otherwise: width - 1, height - 1
    8           fingerprint of the model
    16          check value, see `check_value`
    8 or 16     hybrid only: tokens sent, base 128, low group first, top bit "more follows"
    8 to 40     seeded only: seed, written in the same way
    ...         caption and tokens, one range-coder stream until the end of the file

All fields are big-endian. A header is 7 bytes for a square picture, 8 for any other shape and for
a square hybrid. Each header has exactly one spelling: every other one is rejected.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import NamedTuple

from percov2_core.config import (
    DEFAULT_SCHEDULE,
    MAX_SIDE_PX,
    MIN_SIDE_PX,
    MODES,
    RATES,
    SCHEDULES,
    check_choice,
    check_whole,
    quoted,
)
from percov2_core.errors import BitstreamError, ConfigError

VERSION = 1
SUFFIX = ".pcv2"
MAX_FILE_BYTES = 200_000  # 256 x 256 tokens at 16 bits each, the worst case, are 131 kB
MAX_SEED = 2**32 - 1

_MAGIC = 0b1011_0000
_MODE_NAMES = {mode.code: mode.name for mode in MODES.values()}


class Sizes(NamedTuple):
    """Bytes per part; their sum is the size of the file."""

    header: int
    payload: int


class Cut(NamedTuple):
    """What a stream becomes when only the first `tokens` tokens of its schedule are sent."""

    tokens: int
    check: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One compressed picture, parsed but not decoded.

    Fresh from the encoder it holds a cut at every boundary between stages, from the caption alone
    to all stages. Cuts are neither written to files nor compared.
    """

    mode: str  # key into `config.MODES`
    schedule: str  # one of `config.SCHEDULES`
    width: int  # pixels, 64 to 4096
    height: int
    tokens_sent: int  # tokens in the payload; all of the grid unless the mode is partial
    fingerprint: int  # first byte of the model's digest, so that a foreign file has a clear message
    check: int  # `check_value` of this header, the caption, the tokens and the model
    payload: bytes  # caption and tokens, entropy-coded
    seed: int = 0  # of the decoder's noise, 0 to 2**32 - 1
    cuts: tuple[Cut, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_name("mode", self.mode, MODES)
        _check_name("schedule", self.schedule, SCHEDULES)
        _check_range("width", self.width, MIN_SIDE_PX, MAX_SIDE_PX)
        _check_range("height", self.height, MIN_SIDE_PX, MAX_SIDE_PX)
        least = 0 if MODES[self.mode].partial else self.tokens_total
        _check_range("tokens sent", self.tokens_sent, least, self.tokens_total)
        _check_range("fingerprint", self.fingerprint, 0, 2**8 - 1)
        _check_range("check value", self.check, 0, 2**16 - 1)
        _check_range("seed", self.seed, 0, MAX_SEED)
        _check_file_size(len(self.payload) + len(self.header_bytes()))

    @classmethod
    def blank(
        cls,
        size: tuple[int, int],
        mode: str,
        fingerprint: int,
        *,
        schedule: str = DEFAULT_SCHEDULE,
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
        rows, columns = RATES[MODES[check_choice("mode", mode, MODES)].rate].grid(size[1], size[0])
        total = rows * columns
        if MODES[mode].partial:
            total = check_whole("tokens", 0 if tokens is None else tokens, 0, total)
        elif tokens not in (None, total):
            raise ConfigError(f"tokens: mode {mode!r} sends all {total}, got {quoted(tokens)}")
        return cls(
            mode=mode,
            schedule=check_choice("schedule", schedule, SCHEDULES),
            width=size[0],
            height=size[1],
            tokens_sent=total,
            fingerprint=fingerprint,
            check=0,
            payload=b"",
            seed=check_whole("seed", seed, 0, MAX_SEED),
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of this picture, whether they are sent or not."""
        return RATES[MODES[self.mode].rate].grid(self.height, self.width)

    @property
    def tokens_total(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def may_be_cut(self) -> bool:
        """Whether the first tokens alone make a file, as they do in the hybrid mode."""
        return MODES[self.mode].rate == MODES["hybrid"].rate

    @property
    def sizes(self) -> Sizes:
        return Sizes(len(self.header_bytes()), len(self.payload))

    def header_bytes(self) -> bytes:
        """Everything before the payload."""
        square = self.width == self.height
        flags = MODES[self.mode].code << 6 | SCHEDULES.index(self.schedule) << 3
        flags |= square << 2 | (self.seed > 0) << 1
        sides = self.width - 1 if square else self.width - 1 << 12 | self.height - 1
        size = sides.to_bytes(2 if square else 3, "big")
        parts = [bytes([_MAGIC | VERSION, flags]), size, bytes([self.fingerprint])]
        parts.append(self.check.to_bytes(2, "big"))
        if MODES[self.mode].partial:
            parts.append(_pack_varint(self.tokens_sent))
        if self.seed:
            parts.append(_pack_varint(self.seed))
        return b"".join(parts)

    def to_bytes(self) -> bytes:
        """The file."""
        return self.header_bytes() + self.payload

    @classmethod
    def from_bytes(cls, data: bytes) -> Stream:
        """Parse a file.

        Raises:
            BitstreamError: says which field is wrong, what it holds, and what was expected.
            ConfigError: if `data` are no bytes.
        """
        if not isinstance(data, bytes):
            raise ConfigError(f"file must be bytes, got {type(data).__name__}")
        _check_file_size(len(data))
        file = BytesIO(data)
        flags, mode, schedule = _read_start(file)
        width, height = _read_sides(file, square=bool(flags & 0b100))
        fingerprint = _take(file, "fingerprint", 1)[0]
        check = int.from_bytes(_take(file, "check value", 2), "big")
        rows, columns = RATES[MODES[mode].rate].grid(height, width)
        sent = _read_varint(file, "tokens sent") if MODES[mode].partial else rows * columns
        seed = _read_varint(file, "seed") if flags & 0b10 else 0
        if flags & 0b10 and not seed:
            raise BitstreamError("seed: a stored seed must not be 0, got 0")
        return cls(
            mode=mode,
            schedule=schedule,
            width=width,
            height=height,
            tokens_sent=sent,
            fingerprint=fingerprint,
            check=check,
            payload=file.read(),
            seed=seed,
        )

    def to_text(self) -> str:
        """The file as base64url without padding, for links."""
        return base64.urlsafe_b64encode(self.to_bytes()).decode("ascii").rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> Stream:
        """Parse what `to_text` made; spaces around it are ignored.

        Raises:
            BitstreamError: if it is not base64url, or not a file inside.
            ConfigError: if `text` is no text.
        """
        if not isinstance(text, str):
            raise ConfigError(f"link must be text, got {type(text).__name__}")
        text = text.strip()
        _check_file_size(len(text) * 3 // 4)
        if odd := re.search(r"[^A-Za-z0-9_-]", text):
            raise BitstreamError(f"link: expected letters, digits, - and _, got {odd[0]!r}")
        if len(text) % 4 == 1:
            raise BitstreamError(f"link: no file has {len(text)} characters, it is cut or extended")
        stream = cls.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if stream.to_text() != text:
            raise BitstreamError(f"link: expected it to end in {stream.to_text()[-1]!r}")
        return stream

    def check_may_be_cut(self) -> None:
        """Raise a ConfigError if the mode allows no shorter file."""
        if not self.may_be_cut:
            raise ConfigError(f"truncate: mode must be ultra-low or hybrid, got {self.mode}")

    def truncate(self, stage: int) -> Stream:
        """The hybrid stream of the first `stage` stages; 0 is the caption alone.

        Raises:
            ConfigError: if the mode or the stage does not allow it, or the stream holds no cuts.
        """
        self.check_may_be_cut()
        if not self.cuts:
            raise ConfigError("truncate: this stream was read from a file: use codec.truncate")
        stage = check_whole("stage", stage, 0, len(self.cuts) - 1)
        cut = self.cuts[stage]
        shorter = replace(self, mode="hybrid", tokens_sent=cut.tokens, check=cut.check)
        return replace(shorter, payload=cut.payload, cuts=self.cuts[: stage + 1])


def check_value(stream: Stream, caption: str, *, tokens: bytes, model: bytes) -> int:
    """CRC-16 of all that a decoder must agree on: the header but for its check, and the contents.

    Args:
        tokens: The sent tokens in the order of the schedule, one fixed width each.
        model: Whole digest of the model, of which the header holds the first byte.
    """
    header = replace(stream, check=0, payload=b"").header_bytes()
    crc = 0
    for part in (header, caption.encode(), tokens, model):
        crc = binascii.crc_hqx(len(part).to_bytes(4, "big") + part, crc)
    return crc


def _take(file: BytesIO, name: str, size: int) -> bytes:
    part = file.read(size)
    if not part and not file.tell():
        raise BitstreamError("the file is empty")
    if len(part) < size:
        raise BitstreamError(
            f"the file is cut short: it ends at byte {file.tell()}, before its {name}"
        )
    return part


def _read_varint(file: BytesIO, name: str) -> int:
    value = 0
    for shift in range(0, 35, 7):
        byte = _take(file, name, 1)[0]
        value |= (byte & 0x7F) << shift
        if byte == 0 and shift:
            raise BitstreamError(f"{name}: expected the shortest form, got a padded one")
        if byte < 0x80:
            return value
    raise BitstreamError(f"{name}: expected at most 5 bytes, got more")


def _check_file_size(size_bytes: int) -> None:
    if size_bytes > MAX_FILE_BYTES:
        raise BitstreamError(f"file: expected at most {MAX_FILE_BYTES} bytes, got {size_bytes}")


def _check_name(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise BitstreamError(f"{name}: expected one of {', '.join(known)}, got {quoted(value)}")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        expected = f"{low} to {high}" if low < high else str(low)
        raise BitstreamError(f"{name}: expected {expected}, got {value}")


def _read_start(file: BytesIO) -> tuple[int, str, str]:
    """The flags, and the mode and the schedule that they name."""
    first = _take(file, "magic", 1)[0]
    if first & 0b1111_1000 != _MAGIC:
        raise BitstreamError(f"not a PerCoV2 file: starts with byte {first:02x}, not b0 to b7")
    if first != _MAGIC | VERSION:
        raise BitstreamError(f"format version {first ^ _MAGIC}, this build reads {VERSION}")
    flags = _take(file, "flags", 1)[0]
    mode, schedule = flags >> 6, flags >> 3 & 0b111
    if mode not in _MODE_NAMES:
        raise BitstreamError(f"mode: expected 0 to {max(_MODE_NAMES)}, got {mode}")
    if schedule >= len(SCHEDULES):
        raise BitstreamError(f"schedule: expected 0 to {len(SCHEDULES) - 1}, got {schedule}")
    if flags & 1:
        raise BitstreamError("reserved bit: expected 0, got 1")
    return flags, _MODE_NAMES[mode], SCHEDULES[schedule]


def _read_sides(file: BytesIO, *, square: bool) -> tuple[int, int]:
    """Width and height; the spellings that no writer uses are rejected."""
    value = int.from_bytes(_take(file, "size", 2 if square else 3), "big")
    high, low = value >> 12, value & 0xFFF
    width, height = (low, low) if square else (high, low)
    if square and high:
        raise BitstreamError(f"size: expected four zero bits before the side, got {high}")
    if not square and width == height:
        raise BitstreamError(f"size: {width + 1}x{height + 1} must be marked as square")
    return width + 1, height + 1


def _pack_varint(value: int) -> bytes:
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
