"""The file format (`.pcv2`). Bytes in, bytes out: this module never sees a tensor.

    bits        field
    8           magic 1011 0, then the format version (3 bits)
    2           mode: 0 ultra-low, 1 extreme, 2 hybrid, 3 fine-only
    3           schedule, its position in `config.SCHEDULES`
    1           square: height equals width and is not stored
    1           seeded: the seed is stored, because it is not 0
    1           named: things stand in front of the caption, see `caption.packing`
    4 + 12      square: four zero bits, width - 1
    12 + 12     otherwise: width - 1, height - 1
    8           fingerprint of the model
    16          check value, see `check_value`
    8 to 24     hybrid and fine-only: tokens sent, base 128, low group first, top bit "more follows"
    8 to 40     seeded only: seed, written in the same way
    ...         caption and tokens, one range-coder stream until the end of the file

The tokens are the first of one sequence: the coarse level in the order of the schedule, then the
fine level in the same order. The modes 1 and 3 leave the coarse level out.

All fields are big-endian. A header is 7 bytes for a square picture, 8 for any other shape, and the
number of tokens in the modes 2 and 3. Each header has exactly one spelling: every other one is
rejected.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from io import BytesIO
from typing import NamedTuple

from percov2_core.config import (
    COARSE,
    DEFAULT_SCHEDULE,
    FILE_MODES,
    FINE,
    MAX_SIDE_PX,
    MIN_SIDE_PX,
    SCHEDULES,
    check_choice,
    check_whole,
    quoted,
)
from percov2_core.errors import BitstreamError, ConfigError

VERSION = 2
SUFFIX = ".pcv2"
MAX_FILE_BYTES = 200_000  # 256 x 256 tokens at 16 bits each, the worst case, are 131 kB
MAX_SEED = 2**32 - 1

_MAGIC = 0b1011_0000
FIRST_BYTE = _MAGIC | VERSION
_MODE_NAMES = {mode.code: mode.name for mode in FILE_MODES.values()}


class Sizes(NamedTuple):
    """Bytes per part; their sum is the size of the file."""

    header: int
    payload: int


class Counts(NamedTuple):
    """Tokens per level."""

    coarse: int
    fine: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One compressed picture, parsed but not decoded."""

    mode: str  # key into `config.FILE_MODES`
    schedule: str  # one of `config.SCHEDULES`
    width: int  # pixels, 64 to 4096
    height: int
    tokens_sent: int  # how many of the sequence are in the payload
    fingerprint: int  # first byte of the model's digest, so that a foreign file has a clear message
    check: int  # `check_value` of this header, the caption, the tokens and the model
    payload: bytes  # caption and tokens, entropy-coded
    seed: int = 0  # of the decoder's noise, 0 to 2**32 - 1
    named: bool = False  # whether things stand in front of the caption

    def __post_init__(self) -> None:
        _check_name("mode", self.mode, FILE_MODES)
        _check_name("schedule", self.schedule, SCHEDULES)
        _check_range("width", self.width, MIN_SIDE_PX, MAX_SIDE_PX)
        _check_range("height", self.height, MIN_SIDE_PX, MAX_SIDE_PX)
        fixed, most = self._fixed, sum(self.tokens_total)
        least, most = (0, most) if fixed is None else (fixed, fixed)
        _check_range("tokens sent", self.tokens_sent, least, most)
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
        """The header of a picture of this width and height in pixels, without payload.
        So many `tokens` will be sent; None is what the mode says, hybrid: none. ConfigError if a
        name or a number is wrong."""
        total = _totals(check_choice("mode", mode, FILE_MODES), size)
        count = FILE_MODES[mode].tokens(*_grid_sizes(size))
        if count is None:
            count = check_whole("tokens", 0 if tokens is None else tokens, 0, sum(total))
        elif tokens not in (None, count):
            raise ConfigError(f"tokens: mode {mode!r} sends {count}, got {quoted(tokens)}")
        return cls(
            mode=mode,
            schedule=check_choice("schedule", schedule, SCHEDULES),
            width=size[0],
            height=size[1],
            tokens_sent=count,
            fingerprint=fingerprint,
            check=0,
            payload=b"",
            seed=check_whole("seed", seed, 0, MAX_SEED),
        )

    @property
    def coarse_grid(self) -> tuple[int, int]:
        """Rows and columns of coarse tokens of this picture, whether they are sent or not."""
        return COARSE.grid(self.height, self.width)

    @property
    def fine_grid(self) -> tuple[int, int]:
        """The same of fine tokens."""
        return FINE.grid(self.height, self.width)

    @property
    def has_coarse(self) -> bool:
        """Whether the coarse level is in the sequence."""
        return FILE_MODES[self.mode].coarse

    @property
    def tokens_total(self) -> Counts:
        """Length of the sequence."""
        return _totals(self.mode, (self.width, self.height))

    @property
    def sent(self) -> Counts:
        """How many tokens of each level are in the file."""
        coarse = min(self.tokens_sent, self.tokens_total.coarse)
        return Counts(coarse, self.tokens_sent - coarse)

    @property
    def _fixed(self) -> int | None:
        """Tokens sent, where the mode says it."""
        return FILE_MODES[self.mode].tokens(*_grid_sizes((self.width, self.height)))

    @property
    def sizes(self) -> Sizes:
        return Sizes(len(self.header_bytes()), len(self.payload))

    def header_bytes(self) -> bytes:
        """Everything before the payload."""
        square = self.width == self.height
        flags = FILE_MODES[self.mode].code << 6 | SCHEDULES.index(self.schedule) << 3
        flags |= square << 2 | (self.seed > 0) << 1 | self.named
        sides = self.width - 1 if square else self.width - 1 << 12 | self.height - 1
        size = sides.to_bytes(2 if square else 3, "big")
        checks = bytes([self.fingerprint]) + self.check.to_bytes(2, "big")
        count = _pack_varint(self.tokens_sent) if self._fixed is None else b""
        seed = _pack_varint(self.seed) if self.seed else b""
        return bytes([FIRST_BYTE, flags]) + size + checks + count + seed

    def to_bytes(self) -> bytes:
        """The file."""
        return self.header_bytes() + self.payload

    @classmethod
    def from_bytes(cls, data: bytes) -> Stream:
        """Parse a file; the BitstreamError says which field is wrong, what it holds, and what was
        expected. ConfigError if `data` are no bytes."""
        if not isinstance(data, bytes):
            raise ConfigError(f"file must be bytes, got {type(data).__name__}")
        _check_file_size(len(data))
        file = BytesIO(data)
        flags, mode, schedule = _read_start(file)
        width, height = _read_sides(file, square=bool(flags & 0b100))
        fingerprint = _take(file, "fingerprint", 1)[0]
        check = int.from_bytes(_take(file, "check value", 2), "big")
        sent = FILE_MODES[mode].tokens(*_grid_sizes((width, height)))
        sent = _read_varint(file, "tokens sent") if sent is None else sent
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
            named=bool(flags & 1),
        )

    def to_text(self) -> str:
        """The file as base64url without padding, for links."""
        return base64.urlsafe_b64encode(self.to_bytes()).decode("ascii").rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> Stream:
        """Parse what `to_text` made; spaces around it are ignored. BitstreamError if it is not
        base64url, or not a file inside; ConfigError if `text` is no text."""
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


def check_value(stream: Stream, caption: str, *, tokens: bytes, model: bytes) -> int:
    """CRC-16 of all that a decoder must agree on: the header but for its check, the caption, the
    sent tokens in the order of the sequence, one fixed width each, and the model's whole digest."""
    header = replace(stream, check=0, payload=b"").header_bytes()
    crc = 0
    for part in (header, caption.encode(), tokens, model):
        crc = binascii.crc_hqx(len(part).to_bytes(4, "big") + part, crc)
    return crc


def _grid_sizes(size: tuple[int, int]) -> Counts:
    """Tokens of both grids of a picture of this width and height."""
    (a, b), (c, d) = (level.grid(size[1], size[0]) for level in (COARSE, FINE))
    return Counts(a * b, c * d)


def _totals(mode: str, size: tuple[int, int]) -> Counts:
    """Tokens of each level in the sequence of a mode."""
    coarse, fine = _grid_sizes(size)
    return Counts(coarse if FILE_MODES[mode].coarse else 0, fine)


def _take(file: BytesIO, name: str, size: int) -> bytes:
    part = file.read(size)
    if not part and not file.tell():
        raise BitstreamError("the file is empty")
    if len(part) < size:
        end = file.tell()
        raise BitstreamError(f"the file is cut short: it ends at byte {end}, before its {name}")
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
    if first != FIRST_BYTE:
        found = first ^ _MAGIC
        wrote = ": written by percov2 0.1, which reads it" if found == 1 else ""
        raise BitstreamError(f"format version {found}, this build reads {VERSION}{wrote}")
    flags = _take(file, "flags", 1)[0]
    mode, schedule = flags >> 6, flags >> 3 & 0b111
    if schedule >= len(SCHEDULES):
        raise BitstreamError(f"schedule: expected 0 to {len(SCHEDULES) - 1}, got {schedule}")
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
