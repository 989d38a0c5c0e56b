"""Symbols <-> bytes, given integer frequencies. The only user of `constriction`.

N symbols of one call, K entries of their alphabet (it may differ from call to call).

A stream is the shortest byte string that lies in the coder's final interval when it is read
with zero bytes behind it, but never shorter than the whole bytes of information it holds: that
floor lets a reader refuse a short file that claims many symbols as soon as it has read past it.
"""

from __future__ import annotations

import constriction
import numpy as np
from numpy.typing import NDArray

from percov2_core.errors import BitstreamError

PRECISION = 16
TOTAL = 1 << PRECISION  # every row of frequencies sums to this, which float32 holds exactly

# The coder works in 32-bit words. In files the most significant byte stands first: only then
# does trimming drop the lowest bits.
_WORD = np.dtype(">u4")
_WORD_BITS = 32
_STATE_BITS = 64

_AT_ONCE = 1024  # symbols read before the next look at how much data they have taken

# `perfect=False` is part of the format: both sides must say the same.
_MODEL = constriction.stream.model.Categorical(perfect=False)


class SymbolWriter:
    """Appends symbols to one stream, group by group."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()
        self.ideal_bits = 0.0  # sum of -log2(frequency / 2**16) over the symbols written so far

    @property
    def floor_bytes(self) -> int:
        """Whole bytes of information written so far: no finished stream is shorter."""
        words, (_, width) = self._coder.pos()
        return (_WORD_BITS * int(words) + _STATE_BITS - int(width).bit_length()) // 8

    def write(self, symbols: NDArray[np.integer], freqs: NDArray[np.uint32]) -> None:
        """Append (N,) integers in [0, K) with (N, K) frequencies >= 1, rows summing to 2**16."""
        if not len(symbols):
            return
        chosen = freqs[np.arange(len(symbols)), symbols].astype(np.float64)
        self._coder.encode(symbols.astype(np.int32), _MODEL, freqs.astype(np.float32))
        self.ideal_bits += float(np.sum(PRECISION - np.log2(chosen)))

    def finish(self) -> bytes:
        """The stream so far, at most one byte over the information it holds; writing may go on."""
        words, (lower, width) = self._coder.pos()
        emitted: bytes = self._coder.get_compressed().astype(_WORD).tobytes()
        total, back = int(words) * _WORD.itemsize, 2 * _WORD.itemsize
        while True:
            # What stands before `first` stays, unless a carry runs through all that is behind it.
            first = max(0, total - back)
            size, least = total - first + _STATE_BITS // 8, self.floor_bytes - first
            tail = _shortest(emitted[first:], int(lower), int(width), size=size, least=least)
            if tail is not None:
                return emitted[:first] + tail
            back *= 2


class SymbolReader:
    """Reads back what a `SymbolWriter` wrote, with the same frequencies in the same groups."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        # All that is read is written again: the copy knows how many bytes it takes so far.
        self._mirror = SymbolWriter()
        # Two words more than needed, because a coder starts with two.
        padding = bytes(-len(data) % _WORD.itemsize + 2 * _WORD.itemsize)
        words = np.frombuffer(data + padding, dtype=_WORD).astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)

    @property
    def ideal_bits(self) -> float:
        """Sum of -log2 p over the symbols read so far."""
        return self._mirror.ideal_bits

    def read(self, freqs: NDArray[np.uint32]) -> NDArray[np.int32]:
        """(N, K) frequencies, those that were written with -> (N,) symbols in [0, K).
        BitstreamError if the data is impossible, or too short for so many symbols."""
        blocks = [self._read(freqs[i : i + _AT_ONCE]) for i in range(0, len(freqs), _AT_ONCE)]
        return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.int32)

    def _read(self, freqs: NDArray[np.uint32]) -> NDArray[np.int32]:
        try:
            symbols: NDArray[np.int32] = self._coder.decode(_MODEL, freqs.astype(np.float32))
        except AssertionError as error:  # how constriction reports impossible data
            raise BitstreamError("coded section does not fit this model") from error
        self._mirror.write(symbols, freqs)
        if self._mirror.floor_bytes > len(self._data):
            raise self._misfit(f"its symbols so far need at least {self._mirror.floor_bytes}")
        return symbols

    def expect(self, count: int, bits: float) -> None:
        """Say that `count` symbols follow which take at least so many bits, all together;
        BitstreamError if the data are too short for them."""
        least = self._mirror.floor_bytes + int(bits // 8)
        if least > len(self._data):
            raise self._misfit(f"the {count} tokens that the file claims need at least {least}")

    def close(self) -> None:
        """Check that the data is exactly what a writer makes of the symbols that were read;
        BitstreamError if bytes are missing, changed or left over."""
        # Necessary, not sufficient: a drifted model passes whenever it decodes to something
        # that encodes to the same bytes. The check value of the file is what catches that.
        expected = self._mirror.finish()
        if expected != self._data:
            wrong = "bytes are missing, changed or left over"
            raise self._misfit(f"the symbols in it take {len(expected)}: {wrong}")

    def _misfit(self, problem: str) -> BitstreamError:
        return BitstreamError(f"coded section is {len(self._data)} bytes, {problem}")


def _shortest(data: bytes, lower: int, width: int, *, size: int, least: int) -> bytes | None:
    """First bytes, at least `least`, of the roundest number in the coder's interval, which starts
    at `lower` modulo 2**64 and is `width` long; `data` are the first bytes of a number of `size`
    bytes in it. None if the number has more digits than `size` bytes, or less than none."""
    inside = int.from_bytes(data, "big") << 8 * (size - len(data))
    start = inside - (inside - lower) % (1 << _STATE_BITS)
    count = least
    while True:
        unit = 1 << 8 * (size - count)
        value = -(-start // unit)
        if value * unit < start + width:
            fits = start >= 0 and value < 1 << 8 * count
            return value.to_bytes(count, "big") if fits else None
        count += 1
