"""Schedules: in which order and in which groups the tokens of a grid are coded.

h x w token grid, N = h * w tokens, flat indices row by row. A stage map gives every token the
number of its stage, 0 upwards without gaps. Everything here is integer arithmetic, because both
sides of a file must come to the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from percov2_core.config import check_schedule
from percov2_core.errors import ConfigError

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


def stages(name: str, grid: Grid) -> Ints:
    """Give the stage map of a schedule.

    Args:
        name: One of `config.SCHEDULES`.
        grid: Rows and columns of one tile.

    Returns:
        (h, w) int64, the stage of every token. The array is shared and read-only.

    Raises:
        ConfigError: if the name is unknown or the grid has no tokens.
    """
    return _planned(name, grid)[0]


def order(name: str, grid: Grid) -> Ints:
    """Give the total order in which the tokens of one tile are coded.

    Stage by stage; inside a stage row by row, but along the low-discrepancy sequence for `qlds`.
    A file that holds k tokens holds the first k of this order.

    Returns:
        (N,) int64 flat indices. The array is shared and read-only.
    """
    return _planned(name, grid)[1]


def stage_sizes(name: str, grid: Grid) -> list[int]:
    """Tokens in each stage, none of them empty."""
    return [int(size) for size in np.bincount(stages(name, grid).ravel())]


def tiles(grid: Grid) -> list[tuple[slice, slice]]:
    """Cut a grid into tiles of nearly equal size, none longer than `MAX_TILE`, row by row."""
    return [(rows, columns) for rows in _cut(grid[0]) for columns in _cut(grid[1])]


class Tile(NamedTuple):
    """One tile of a larger grid."""

    grid: Grid
    positions: Ints  # (n,) flat positions in the whole grid, row by row of the tile

    @classmethod
    def all_of(cls, grid: Grid) -> list[Tile]:
        """The tiles of a grid, row by row."""
        whole = np.arange(grid[0] * grid[1]).reshape(grid)
        parts = [whole[place] for place in tiles(grid)]
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
    """(N,) flat positions in the order in which tokens stand in a file, tiles included."""
    parts = Tile.all_of(grid)
    if check_schedule(schedule) == "uniform":
        return np.concatenate([part.positions for part in parts])
    plans = [part.stages(schedule) for part in parts]
    return np.concatenate(
        [
            part.positions[plan[number]]
            for number in range(max(len(plan) for plan in plans))
            for part, plan in zip(parts, plans, strict=True)
            if number < len(plan)
        ]
    )


def stage_map(schedule: str, grid: Grid) -> Ints:
    """(h, w) stage of every token, tiles included."""
    out = np.zeros(grid, dtype=np.int64)
    for place in tiles(grid):
        out[place] = stages(schedule, out[place].shape)
    return out


@lru_cache(maxsize=64)
def _planned(name: str, grid: Grid) -> tuple[Ints, Ints]:
    if min(grid) < 1:
        raise ConfigError(f"grid must be at least 1x1, got {grid[0]}x{grid[1]}")
    first = _BUILDERS[check_schedule(name)](*grid)
    # Small grids leave stages empty: number the others without gaps.
    stage = np.unique(first, return_inverse=True)[1].reshape(grid).astype(np.int64)
    inside = _r2_rank(*grid) if name == "qlds" else np.arange(stage.size)
    sequence = np.lexsort((inside.ravel(), stage.ravel())).astype(np.int64)
    stage.setflags(write=False)
    sequence.setflags(write=False)
    return stage, sequence


def _uniform(h: int, w: int) -> Ints:
    return np.zeros((h, w), dtype=np.int64)


def _checkerboard(h: int, w: int) -> Ints:
    rows, columns = np.indices((h, w))
    return (rows + columns) % 2


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
    """Cut the low-discrepancy order at ceil(N (x / S)**2.2) tokens, x = 1..S."""
    rank, n = _r2_rank(h, w), h * w
    ends = [_power_share(n, x) for x in range(1, QLDS_STAGES + 1)]
    return np.searchsorted(np.array(ends), rank, side="right").astype(np.int64)


def _power_share(n: int, x: int) -> int:
    """The smallest c with c >= n (x / S)**(a/b), that is c**b S**a >= n**b x**a."""
    a, b = QLDS_EXPONENT
    return next(c for c in range(1, n + 1) if c**b * QLDS_STAGES**a >= n**b * x**a)


@lru_cache(maxsize=16)
def _r2_rank(h: int, w: int) -> Ints:
    """(h, w) int64: when the R2 sequence, snapped to the grid, first visits each token."""
    count = h * w
    while True:
        number = np.arange(count, dtype=np.uint64)
        y, x = ((_R2_START + number * np.uint64(step)) % 2**32 for step in _R2_STEPS)
        cells = (y * np.uint64(h) >> np.uint64(32)) * np.uint64(w) + (
            x * np.uint64(w) >> np.uint64(32)
        )
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
    from those visited comes next, of several the one farthest from the last, then the lowest.
    """
    sizes = [-(-n * (k + 1) // VAR_LEVELS) for k in range(VAR_LEVELS)]
    visited = [(2 * i + 1) * n // (2 * sizes[0]) for i in range(sizes[0])]
    while len(visited) < n:
        left = [i for i in range(n) if i not in visited]
        visited.append(
            max(left, key=lambda i: (min(abs(i - v) for v in visited), abs(i - visited[-1]), -i))
        )
    level = np.empty(n, dtype=np.int64)
    level[visited] = np.searchsorted(sizes, np.arange(n), side="right")
    return level


def _cut(n: int) -> list[slice]:
    parts = -(-n // MAX_TILE)
    return [slice(i * n // parts, (i + 1) * n // parts) for i in range(parts)]


_BUILDERS: MappingProxyType[str, Callable[[int, int], Ints]] = MappingProxyType(
    {
        "uniform": _uniform,
        "checkerboard": _checkerboard,
        "quincunx": _quincunx,
        "qlds": _qlds,
        "var": _var,
    }
)
