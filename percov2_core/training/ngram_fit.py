"""Fit, prune and round the n-gram models of the caption coder.

Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1999); pruning by weighted
difference (Seymore and Rosenfeld 1996). Floats are used here only: what is saved is integers.

V symbols, M n-grams of one length, K contexts (n-grams less their last symbol).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from percov2_core.caption.ngram import BOUNDARY, LEVELS, STEPS_PER_OCTAVE, NGram, Successors

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_BASE_FLOOR = 16  # no symbol is less likely than 1 / (16 V), seen in training or not


@dataclass
class _Grams:
    """All n-grams of one length, ascending."""

    length: int
    size: int  # V
    keys: Ints  # (M,) the symbols as digits, base V
    counts: Ints  # (M,) occurrences
    evidence: Ints  # (M,) what smoothing counts: occurrences, or distinct symbols in front
    mass: Floats = field(init=False)  # (M,) discounted share of the context
    rest: Floats = field(init=False)  # (M,) what the context of each n-gram leaves
    chance: Floats = field(init=False)  # (M,) interpolated probability

    def suffixes(self, shorter: _Grams) -> Ints:
        """(M,) index in `shorter` of each n-gram less its first symbol."""
        index: Ints = np.searchsorted(shorter.keys, self.keys % self.size**shorter.length)
        return index


def fit(sequences: Sequence[Sequence[int]], size: int, *, order: int, least_gain: float) -> NGram:
    """Fit a model to sequences of symbols in [1, size).

    Args:
        sequences: Without the boundary symbol, which is added at both ends.
        size: V; size**order must fit into 63 bits.
        order: Length of the longest n-gram, the predicted symbol included.
        least_gain: Bits over the whole training text that an n-gram must save to be kept.
    """
    stream, starts = _stream(sequences)
    grams = [_count(stream, starts, size=size, length=n) for n in range(1, order + 1)]
    for shorter, longer in pairwise(grams):
        _count_continuations(shorter, longer)
    _smooth(grams[0], np.full(len(grams[0].keys), 1 / size))
    for shorter, longer in pairwise(grams):
        _smooth(longer, shorter.chance[longer.suffixes(shorter)])
    base = np.full(size, grams[0].rest[0] / size)
    base[grams[0].keys] = grams[0].chance
    base = np.maximum(base, 1 / (_BASE_FLOOR * size))
    orders = [_rounded(n, _gain(s, n) > least_gain) for s, n in pairwise(grams)]
    return NGram(_levels(base), orders)


def _stream(sequences: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """One array with boundaries, and the index of the boundary in front of each symbol."""
    lengths = np.array([len(sequence) + 1 for sequence in sequences])
    flat = [symbol for sequence in sequences for symbol in (*sequence, BOUNDARY)]
    firsts = np.cumsum(lengths) - lengths
    starts = np.concatenate([[0], np.repeat(firsts, lengths)])
    return np.array([BOUNDARY, *flat], dtype=np.int64), starts


def _count(stream: Ints, starts: Ints, *, size: int, length: int) -> _Grams:
    """Count the n-grams that lie within one sequence, its boundaries included."""
    last = np.arange(1, len(stream))
    last = last[last - length + 1 >= starts[1:]]
    keys = np.zeros(len(last), dtype=np.int64)
    for back in range(length - 1, -1, -1):
        keys = keys * size + stream[last - back]
    unique, counts = np.unique(keys, return_counts=True)
    return _Grams(length, size, unique, counts, counts)


def _count_continuations(shorter: _Grams, longer: _Grams) -> None:
    distinct = np.bincount(longer.suffixes(shorter), minlength=len(shorter.keys))
    # Nothing stands in front of the start of a sequence: there, occurrences count.
    shorter.evidence = np.where(distinct > 0, distinct, shorter.counts)


def _smooth(grams: _Grams, shorter_chance: Floats) -> None:
    """Fill in mass, rest and chance from the evidence and the chance of the (M,) suffixes."""
    ones, twos, threes, fours = (np.count_nonzero(grams.evidence == n) + 1 for n in (1, 2, 3, 4))
    common = ones / (ones + 2 * twos)
    many = max(3 - 4 * common * fours / threes, 0.1)
    discounts = np.array([0, 1 - 2 * common * twos / ones, 2 - 3 * common * threes / twos, many])
    discount = np.clip(discounts, 0.1, 2.9)[np.minimum(grams.evidence, 3)]
    left = np.maximum(grams.evidence.astype(np.float64) - discount, 0.05)
    context = _context_index(grams)
    total = np.bincount(context, weights=grams.evidence)[context]
    grams.mass = left / total
    told = np.asarray(np.bincount(context, weights=grams.mass), dtype=np.float64)[context]
    grams.rest = 1 - told
    grams.chance = grams.mass + grams.rest * shorter_chance


def _context_index(grams: _Grams) -> Ints:
    """(M,) 0, 0, 1, ...: the same number for the same context."""
    contexts = grams.keys // grams.size
    return np.cumsum(np.diff(contexts, prepend=contexts[:1]) > 0, dtype=np.int64)


def _gain(shorter: _Grams, longer: _Grams) -> Floats:
    """(M,) bits that each n-gram saves over the training text, against the shorter one alone."""
    alone = (longer.rest + longer.mass) * shorter.chance[longer.suffixes(shorter)]
    bits: Floats = longer.counts.astype(np.float64) * np.log2(longer.chance / alone)
    return bits


def _rounded(grams: _Grams, keep: NDArray[np.bool_]) -> Successors:
    contexts, counts = np.unique(grams.keys[keep] // grams.size, return_counts=True)
    return Successors(
        contexts=contexts,
        ends=np.cumsum(counts),
        symbols=grams.keys[keep] % grams.size,
        levels=_levels(grams.mass[keep]),
    )


def _levels(chances: Floats) -> NDArray[np.uint8]:
    steps = np.rint(-np.log2(chances) * STEPS_PER_OCTAVE - 0.5)
    return np.clip(steps, 0, LEVELS - 1).astype(np.uint8)
