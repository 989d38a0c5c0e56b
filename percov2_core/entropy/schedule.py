"""Schedules: in which order and in which groups the tokens of a grid are coded.

h x w token grid, N = h * w tokens, flat indices row by row. A stage map gives every token the
number of its stage, 0 upwards without gaps. Everything here is integer arithmetic, because both
sides of a file must come to the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_TILE = 32  # tokens along one side; larger grids are coded in tiles

Grid = tuple[int, int]
Ints = NDArray[np.int64]

QLDS_STAGES = 12
QLDS_EXPONENT = (11, 5)  # 2.2 as a fraction
VAR_LEVELS = 4  # 2x2, 4x4, 6x6 and 8x8 on an 8 x 8 grid

# Roberts' R2 sequence: the root of x**3 = x + 1, its inverse and the inverse squared as 32-bit
# fractions.
_R2_STEPS = (3242174889, 2447445414)
_R2_START = 1 << 31


@lru_cache(maxsize=64)
def stages(name: str, grid: Grid) -> Ints:
    """(h, w) the stage map of one of `config.SCHEDULES` on one tile; shared and read-only."""
    # Small grids leave stages empty: number the others without gaps.
    numbers = np.unique(_BUILDERS[name](*grid), return_inverse=True)[1]
    stage = numbers.reshape(grid).astype(np.int64)
    stage.setflags(write=False)
    return stage


@lru_cache(maxsize=64)
def order(name: str, grid: Grid) -> Ints:
    """(N,) the flat indices of one tile in the order in which they are coded; read-only. Stage by
    stage; inside a stage row by row, but along the low-discrepancy sequence for `qlds`."""
    inside = _r2_rank(*grid) if name == "qlds" else np.arange(grid[0] * grid[1])
    sequence = np.lexsort((inside.ravel(), stages(name, grid).ravel())).astype(np.int64)
    sequence.setflags(write=False)
    return sequence


def stage_sizes(name: str, grid: Grid) -> list[int]:
    """Tokens in each stage, none of them empty."""
    return [int(size) for size in np.bincount(stages(name, grid).ravel())]


class Tile(NamedTuple):
    """One tile of a larger grid."""

    grid: Grid
    positions: Ints  # (n,) flat positions in the whole grid, row by row of the tile

    @classmethod
    def all_of(cls, grid: Grid) -> list[Tile]:
        """Cut a grid into tiles of nearly equal size, none longer than `MAX_TILE`, row by row."""
        whole = np.arange(grid[0] * grid[1]).reshape(grid)
        bands = np.split(whole, _cuts(grid[0]))
        parts = [part for band in bands for part in np.split(band, _cuts(grid[1]), axis=1)]
        return [cls((part.shape[0], part.shape[1]), part.ravel()) for part in parts]

    def stages(self, schedule: str, *, known: NDArray[np.bool_] | None = None) -> list[Ints]:
        """Flat positions in the tile, one array a stage; those known already come first."""
        ends = np.cumsum(stage_sizes(schedule, self.grid))[:-1]
        plan = list(np.split(order(schedule, self.grid), ends))
        if known is None:
            return plan
        here = known[self.positions]
        return [np.flatnonzero(here), *(part for s in plan if len(part := s[~here[s]]))]


def coding_order(schedule: str, grid: Grid) -> Ints:
    """(N,) flat positions in the order in which tokens stand in a file, tiles included: one of k
    tokens holds the first k."""
    parts = Tile.all_of(grid)
    if schedule == "uniform":
        return np.concatenate([part.positions for part in parts])
    turns = zip_longest(*([part.positions[s] for s in part.stages(schedule)] for part in parts))
    return np.concatenate([stage for turn in turns for stage in turn if stage is not None])


def stage_map(schedule: str, grid: Grid) -> Ints:
    """(h, w) stage of every token, tiles included."""
    out = np.empty(grid, dtype=np.int64)
    for part in Tile.all_of(grid):
        out.ravel()[part.positions] = stages(schedule, part.grid).ravel()
    return out


def _quincunx(h: int, w: int) -> Ints:
    """Two stages per halving: the centres of the squares, then the rest of the finer lattice."""
    rows, columns = np.indices((h, w))
    step = 1 << (max(h, w).bit_length() - 2) if max(h, w) > 1 else 1
    stage = np.full((h, w), -1, dtype=np.int64)
    stage[(rows % step == 0) & (columns % step == 0)] = 0
    number = 0
    while step > 1:
        half = step // 2
        centres = (rows % step == half) & (columns % step == half)
        rest = (rows % half == 0) & (columns % half == 0) & ~centres & (stage < 0)
        stage[centres], stage[rest] = number + 1, number + 2
        number, step = number + 2, half
    return stage


def _qlds(h: int, w: int) -> Ints:
    """Cut the low-discrepancy order at ceil(N (x / S)**(a/b)) tokens, x = 1..S."""
    n, s, (a, b) = h * w, QLDS_STAGES, QLDS_EXPONENT
    # The smallest c with c >= N (x / S)**(a/b), that is c**b S**a >= N**b x**a.
    ends = [next(c for c in range(1, n + 1) if c**b * s**a >= n**b * x**a) for x in range(1, s + 1)]
    return np.searchsorted(np.array(ends), _r2_rank(h, w), side="right").astype(np.int64)


@lru_cache(maxsize=16)
def _r2_rank(h: int, w: int) -> Ints:
    """(h, w) int64: when the R2 sequence, snapped to the grid, first visits each token."""
    count = h * w
    while True:
        number = np.arange(count, dtype=np.uint64)
        y, x = ((_R2_START + number * np.uint64(step)) % 2**32 for step in _R2_STEPS)
        row, column = (v * np.uint64(n) >> np.uint64(32) for v, n in ((y, h), (x, w)))
        cells = row * np.uint64(w) + column
        visited, first = np.unique(cells, return_index=True)
        if len(visited) == h * w:
            return np.argsort(np.argsort(first)).reshape(h, w).astype(np.int64)
        count *= 2


def _var(h: int, w: int) -> Ints:
    """A token belongs to the first level that has visited both its row and its column."""
    return np.maximum(_axis_levels(h)[:, None], _axis_levels(w)[None, :])


def _axis_levels(n: int) -> Ints:
    """(n,) level of each coordinate: level k has visited ceil(n (k + 1) / 4) of them, spread out.
    The first level visits the centres of as many equal parts; after that the coordinate farthest
    from those visited comes next, of several the one farthest from the last, then the lowest."""
    sizes = [-(-n * (k + 1) // VAR_LEVELS) for k in range(VAR_LEVELS)]
    visited = [(2 * i + 1) * n // (2 * sizes[0]) for i in range(sizes[0])]

    def remoteness(i: int) -> tuple[int, int, int]:
        return min(abs(i - v) for v in visited), abs(i - visited[-1]), -i

    while len(visited) < n:
        visited.append(max(set(range(n)) - set(visited), key=remoteness))
    level = np.empty(n, dtype=np.int64)
    level[visited] = np.searchsorted(sizes, np.arange(n), side="right")
    return level


def _cuts(n: int) -> list[int]:
    parts = -(-n // MAX_TILE)
    return [i * n // parts for i in range(1, parts)]


_BUILDERS: dict[str, Callable[[int, int], Ints]] = {
    "uniform": lambda h, w: np.zeros((h, w), dtype=np.int64),
    "checkerboard": lambda h, w: np.indices((h, w)).sum(axis=0) % 2,
    "quincunx": _quincunx,
    "qlds": _qlds,
    "var": _var,
}
