"""An interpolated n-gram model that computes in integers only.

V symbols (0 is the start of a sequence as a context, and its end as a symbol), K contexts and M
entries of one length of context. The probability of a symbol after a context is

    mass(context, symbol) + rest(context) * the probability after the context less its first symbol

where the masses come from a table, and the rest is what the masses of a context leave of one.
A context that the table lacks leaves everything to the next shorter one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from percov2_core.errors import WeightsError

BOUNDARY = 0
SCALE = 30  # masses are integers out of 2**SCALE
STEPS_PER_OCTAVE = 8
LEVELS = 240
TOTAL = 1 << 16  # what a row of frequencies sums to
GROUP = 128  # symbols that one row of frequencies tells apart

# 2**(SCALE - (i + 0.5) / 8): the first octave of the masses. Each level is 1/8 bit.
_OCTAVE = (1028218693, 942880699, 864625413, 792865000, 727060411, 666717336, 611382493, 560640218)
# (LEVELS,) masses, from just under one down.
MASSES = (np.array(_OCTAVE) >> np.arange(LEVELS // STEPS_PER_OCTAVE)[:, None]).ravel()
_LEAST_REST = 1 << (SCALE - 8)  # rounded masses of a context may add up to one, or to more


class Successors(NamedTuple):
    """What may follow the contexts of one length."""

    contexts: NDArray[np.int64]  # (K,) ascending; the symbols are the digits, base V
    ends: NDArray[np.int64]  # (K,) where the entries of each context end
    symbols: NDArray[np.int64]  # (M,) ascending within a context
    levels: NDArray[np.uint8]  # (M,) index into `MASSES`


class NGram:
    """Symbol weights after a history, from (V,) levels without any context and the successors of
    the contexts of 1, 2, ... symbols. A WeightsError if the tables do not fit together."""

    def __init__(self, base: NDArray[np.uint8], orders: Sequence[Successors]) -> None:
        for order in orders:
            count, end = len(order.symbols), order.ends[-1:].sum()
            if len(order.contexts) != len(order.ends) or not end == count == len(order.levels):
                raise WeightsError(f"caption model: {count} entries end at {end}")
            _check_below("symbols", order.symbols, len(base))
            _check_below("levels", order.levels, LEVELS)
        _check_below("levels", base, LEVELS)
        self.base = base
        self.orders = tuple(orders)
        self._base_mass = MASSES[base]

    def weights(self, history: Sequence[int]) -> NDArray[np.int64]:
        """(V,) what each symbol weighs after `history`, which began with `BOUNDARY`."""
        remaining = 1 << SCALE
        found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for length in range(min(len(self.orders), len(history)), 0, -1):
            if (entry := self._entry(history[len(history) - length :])) is None:
                continue
            symbols, masses = entry
            found.append((symbols, (masses * remaining) >> SCALE))
            rest = max((1 << SCALE) - int(masses.sum()), _LEAST_REST)
            remaining = (remaining * rest) >> SCALE
        total = (self._base_mass * remaining) >> SCALE
        for symbols, masses in found:
            total[symbols] += masses
        return total

    def _entry(self, context: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        order, key = self.orders[len(context) - 1], 0
        for symbol in context:
            key = key * len(self.base) + symbol
        index = int(np.searchsorted(order.contexts, key))
        if index == len(order.contexts) or order.contexts[index] != key:
            return None
        entries = slice(int(order.ends[index - 1]) if index else 0, int(order.ends[index]))
        return order.symbols[entries], MASSES[order.levels[entries]]


def frequencies(weights: NDArray[np.int64]) -> NDArray[np.uint32]:
    """(V,) weights -> (1, V) frequencies of at least 1 that sum to TOTAL."""
    spare = TOTAL - len(weights)
    freqs = weights * spare // max(int(weights.sum()), 1) + 1
    freqs[int(freqs.argmax())] += TOTAL - int(freqs.sum())
    return freqs[None].astype(np.uint32)


def _check_below(name: str, values: NDArray[np.integer], limit: int) -> None:
    if (highest := int(values.max(initial=0))) >= limit:
        raise WeightsError(f"caption model: {name} must be below {limit}, got {highest}")
