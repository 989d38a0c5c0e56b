import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from percov2_core.config import SCHEDULES
from percov2_core.entropy.schedule import Tile, coding_order, order, stage_map, stage_sizes, stages

names = st.sampled_from(SCHEDULES)
grids = st.tuples(st.integers(1, 40), st.integers(1, 70))


@given(names, grids)
def test_the_order_visits_every_token_once_and_stage_by_stage_without_gaps(name, grid):
    assert min(np.bincount(stage_map(name, grid).ravel())) > 0
    sequence = coding_order(name, grid)
    assert sorted(sequence.tolist()) == list(range(grid[0] * grid[1]))
    assert np.all(np.diff(stage_map(name, grid).ravel()[sequence]) >= 0)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("uniform", [64]),
        ("checkerboard", [32, 32]),
        ("quincunx", [4, 4, 8, 16, 32]),
        ("qlds", [1, 1, 2, 2, 4, 4, 6, 7, 7, 9, 10, 11]),
        ("var", [4, 12, 20, 28]),
    ],
)
def test_the_stages_of_an_8_by_8_grid_have_the_published_sizes(name, sizes):
    assert stage_sizes(name, (8, 8)) == sizes


def test_qlds_cuts_follow_the_power_law_and_each_quincunx_stage_doubles_the_lattice_so_far():
    qlds, quincunx = (np.cumsum(stage_sizes(n, (32, 32))).tolist() for n in ("qlds", "quincunx"))
    assert qlds == np.ceil(1024 * (np.arange(1, 13) / 12) ** 2.2).tolist()
    assert quincunx == [4, 8, 16, 32, 64, 128, 256, 512, 1024]


def test_qlds_starts_along_the_r2_sequence():
    phi = 1.32471795724474602596
    points = (0.5 + np.arange(6)[:, None] / np.array([phi, phi**2])) % 1
    y, x = np.floor(points * 8).astype(int).T
    assert order("qlds", (8, 8))[:6].tolist() == (8 * y + x).tolist()


def test_checkerboard_stages_touch_only_each_other():
    stage = stages("checkerboard", (5, 6))
    assert np.all(np.diff(stage, axis=0) != 0) and np.all(np.diff(stage, axis=1) != 0)


def test_var_levels_are_squares_that_contain_each_other():
    stage = stages("var", (8, 8))
    for level, side in enumerate((2, 4, 6, 8)):
        seen = stage <= level
        assert np.array_equal(seen, seen.any(1)[:, None] & seen.any(0)[None, :])
        assert seen.any(1).sum() == seen.any(0).sum() == side


def test_the_orders_and_where_larger_grids_are_cut_are_frozen():
    # Files hold tokens in this order.
    assert order("qlds", (3, 4)).tolist() == [6, 0, 2, 8, 7, 1, 3, 9, 4, 11, 5, 10]
    assert order("var", (3, 4)).tolist() == [6, 0, 2, 4, 3, 7, 8, 10, 11, 1, 5, 9]
    assert order("quincunx", (3, 4)).tolist() == [0, 2, 8, 10, 5, 7, 1, 3, 4, 6, 9, 11]
    tiles = [(23, 16), (23, 17), (23, 16), (23, 17), (24, 16), (24, 17)]
    assert [part.grid for part in Tile.all_of((70, 33))] == tiles


@given(st.tuples(st.integers(1, 256), st.integers(1, 256)))
def test_tiles_cover_the_grid_once_and_are_nearly_equal(grid):
    parts = Tile.all_of(grid)
    heights, widths = ({part.grid[axis] for part in parts} for axis in (0, 1))
    covered = np.sort(np.concatenate([part.positions for part in parts]))
    assert np.array_equal(covered, np.arange(grid[0] * grid[1]))
    assert all(part.grid[0] * part.grid[1] == len(part.positions) for part in parts)
    assert max(heights | widths) <= 32
    assert max(heights) - min(heights) <= 1 and max(widths) - min(widths) <= 1
