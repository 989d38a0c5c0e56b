"""The random numbers of the format: tokens that were not sent are drawn alike on every machine.

The generator is SplitMix64 (Steele, Lea and Flood 2014), seeded by SHA-256 over the seed, the
caption and the tokens sent.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Tokens are drawn in proportion to frequency ** 2 (temperature 1/2): of the powers 1, 2 and 3 it
# came nearest to the true codes, by mean squared distance at 8 x 8. Part of the format.
SAMPLING_POWER = 2

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Draws:
    """The format's random numbers."""

    def __init__(self, seed: int, caption: str, sent: Ints) -> None:
        text = f"{seed}\n{len(sent)}\n{' '.join(str(t) for t in sent.tolist())}\n{caption}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        self._state = np.uint64(int.from_bytes(digest[:8], "little"))

    def take(self, freqs: NDArray[np.uint32]) -> Ints:
        """(n, K) frequencies -> (n,) tokens drawn in proportion to frequency ** 2."""
        ends = np.cumsum(freqs.astype(np.uint64) ** np.uint64(SAMPLING_POWER), axis=1)
        # The sum of squares stays below 2**32, so this product fits into 64 bits.
        at = (self._next(len(freqs)) >> np.uint64(32)) * ends[:, -1] >> np.uint64(32)
        found: Ints = (ends <= at[:, None]).sum(axis=1)
        return found

    def _next(self, count: int) -> NDArray[np.uint64]:
        """SplitMix64: (count,) numbers of 64 bits."""
        z = self._state + _GAMMA * np.arange(1, count + 1, dtype=np.uint64)
        self._state = z[-1]
        z = (z ^ (z >> np.uint64(30))) * _MIX[0]
        z = (z ^ (z >> np.uint64(27))) * _MIX[1]
        mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
        return mixed
