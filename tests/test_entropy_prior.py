"""Schedules, the masked image model's tokens through the range coder, and the coder itself."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from percov2_core.config import SCHEDULES
from percov2_core.entropy import coder, prior
from percov2_core.entropy.coder import TOTAL, SymbolReader, SymbolWriter
from percov2_core.entropy.exporter import export
from percov2_core.entropy.prior import Draws, Known, TokenPrior
from percov2_core.entropy.schedule import Tile, coding_order, order, stage_map, stage_sizes, stages
from percov2_core.entropy.session import Session
from percov2_core.errors import BitstreamError
from tests.tiny import counted, tiny_masked_model

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


torch.manual_seed(0)
PRIOR = TokenPrior(export(tiny_masked_model(codebook_size=12, ratio=4)))
ONE_TILE = st.tuples(st.integers(1, 9), st.integers(1, 9))


def random_tokens(seed, grid):
    return np.random.default_rng(seed).integers(0, 12, grid)


def known(grid):
    return Known("pale sky", random_tokens(9, tuple(-(-side // 4) for side in grid)))


def coded(tokens, *, schedule, sent=None):
    writer, sent = SymbolWriter(), tokens.size if sent is None else sent
    steps = PRIOR.compress(tokens, known(tokens.shape), schedule=schedule, sent=sent)
    for positions, freqs, _ in steps:
        writer.write(tokens.ravel()[positions], freqs)
    return writer


def decoded(data, grid, *, schedule, sent=None, seed=None):
    """What is read; without a seed the tokens not sent are guessed."""
    reader, sent = SymbolReader(data), grid[0] * grid[1] if sent is None else sent
    draws = None if seed is None else Draws(seed, "pale sky")
    found = PRIOR.decompress(reader, grid, known(grid), schedule=schedule, sent=sent, draws=draws)
    reader.close()
    return found


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=12)
@given(st.one_of(ONE_TILE, st.just((3, 70))), st.data())
def test_the_first_tokens_survive_and_the_others_are_drawn_or_guessed(schedule, grid, data):
    total = grid[0] * grid[1]
    sent = data.draw(st.one_of(st.just(total), st.integers(0, total)))
    tokens = random_tokens(1, grid)
    writer = coded(tokens, schedule=schedule, sent=sent)
    seed = data.draw(st.sampled_from([None, 5]))
    found, bits, guesses = decoded(writer.finish(), grid, schedule=schedule, sent=sent, seed=seed)
    first, rest = np.split(coding_order(schedule, grid), [sent])
    assert (guesses is None) == (seed is not None or sent == total)
    if guesses is not None:
        assert np.array_equal(guesses.argmax(1), found.ravel()[np.sort(rest)])
        assert (guesses.sum(1, dtype=int) == 2**16).all()
    assert np.array_equal(found.ravel()[first], tokens.ravel()[first])
    assert 0 <= found.min() <= found.max() < 12
    assert not bits.ravel()[rest].any()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", [(12, 12), (24, 20)])
def test_stages_taken_together_write_what_stage_by_stage_writes(schedule, grid, monkeypatch):
    # Of the larger grid, some stages are always written by themselves.
    tokens = random_tokens(5, grid)
    writer = coded(tokens, schedule=schedule)
    whole, choices = writer.finish(), PRIOR.choices(tokens, known(grid), schedule=schedule)
    bits = decoded(whole, grid, schedule=schedule).bits
    assert np.allclose(np.take_along_axis(choices, tokens[None], 0)[0], bits)
    assert bits.sum() == pytest.approx(writer.ideal_bits) and abs(8 * len(whole) - bits.sum()) < 9
    monkeypatch.setattr(prior, "TOKENS_AT_ONCE", 0)
    assert coded(tokens, schedule=schedule).finish() == whole
    assert np.array_equal(PRIOR.choices(tokens, known(tokens.shape), schedule=schedule), choices)


def test_the_seed_and_the_tokens_sent_change_what_is_drawn():
    tokens, other = np.zeros((8, 8), dtype=int), np.zeros((8, 8), dtype=int)
    other[order("qlds", (8, 8))[0] // 8, order("qlds", (8, 8))[0] % 8] = 1
    draws = []
    for t, sent, seed in ((tokens, 2, 0), (tokens, 2, 1), (tokens, 3, 0), (other, 2, 0)):
        data = coded(t, schedule="qlds", sent=sent).finish()
        found = decoded(data, (8, 8), schedule="qlds", sent=sent, seed=seed)
        draws.append(found.tokens.tobytes())
    assert len(set(draws)) == 4


def test_what_is_drawn_from_fixed_frequencies_is_frozen():
    # The coarse level of files is completed with these numbers.
    freqs = np.tile(np.array([[40000, 20000, 5000, 536]], dtype=np.uint32), (24, 1))
    draws = Draws(7, "a red kite")
    draws.tell(np.array([3, 1]))
    draws.tell(np.array([2]))
    assert draws.take(freqs).tolist() == [1, 0, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0] + [0] * 9 + [1, 0, 0]


@pytest.mark.parametrize("schedule", ["qlds", "uniform"])
def test_a_claim_that_no_tokens_could_meet_is_refused_before_the_model_is_asked(
    schedule, monkeypatch
):
    monkeypatch.setattr(prior, "Session", lambda *args: pytest.fail("the model was asked"))
    data = b"" if schedule == "qlds" else bytes(65_536 * 3 // 8)
    with pytest.raises(BitstreamError, match="the 65536 tokens that the file claims need at least"):
        decoded(data, (256, 256), schedule=schedule)


def test_the_cheapest_tokens_that_there_can_be_are_not_refused():
    freqs = np.full((65_536, 12), 1, dtype=np.uint32)
    freqs[:, 0] = 2**16 - 11
    writer = SymbolWriter()
    writer.write(np.zeros(65_536, dtype=int), freqs)
    reader = SymbolReader(writer.finish())
    least_bits = 65_536 * (16 - np.log2(freqs[0, 0]))
    reader.expect(65_536, least_bits)
    with pytest.raises(BitstreamError):
        reader.expect(65_536, least_bits + 16)


def test_a_short_stream_that_claims_many_tiles_is_found_out_in_the_first_stages(monkeypatch):
    opened = counted(monkeypatch, prior, "Session")
    asked = counted(monkeypatch, Session, "frequencies")
    with pytest.raises(BitstreamError, match="its symbols so far need at least"):
        decoded(bytes(20), (32, 32), schedule="qlds")
    assert len(opened) == 1 and len(asked) < 6
    opened.clear()
    with pytest.raises(BitstreamError, match="its symbols so far need at least"):
        decoded(bytes(20), (256, 256), schedule="checkerboard")
    assert len(opened) == 1


def random_groups(seed, *, groups=4, longest=40):
    """Groups of symbols with their frequencies; alphabets differ, rows are often very peaked."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(groups):
        count, size = int(rng.integers(0, longest)), int(rng.choice([2, 3, 16, 256, 1000]))
        p = rng.dirichlet(np.full(size, rng.choice([0.01, 0.3, 5.0])), count)
        freqs = 1 + np.floor(p * (TOTAL - size)).astype(np.int64)
        freqs[:, 0] += TOTAL - freqs.sum(axis=1)
        symbols = [int(rng.choice(size, p=row / TOTAL)) for row in freqs]
        made.append((np.array(symbols, dtype=np.int64), freqs.astype(np.uint32)))
    return made


def write(groups):
    writer = SymbolWriter()
    for symbols, freqs in groups:
        writer.write(symbols, freqs)
    return writer


@given(st.integers(0, 2**32), st.binary(min_size=1, max_size=3))
@example(161, b"X")  # more digits can be another stream: a file's check value tells
def test_symbols_survive_at_their_ideal_length_and_bytes_behind_them_do_not_pass(seed, tail):
    groups = random_groups(seed)
    writer = write(groups)
    data = writer.finish()
    assert writer.ideal_bits - 8 < 8 * len(data) < writer.ideal_bits + 8.1
    assert same(read_all(data, groups), groups)
    with contextlib.suppress(BitstreamError):
        assert not same(read_all(data + tail, groups), groups)


@given(st.integers(0, 2**32), st.data())
def test_a_cut_stream_never_gives_the_symbols_that_were_written(seed, data):
    groups = random_groups(seed)
    whole = write(groups).finish()
    cut = data.draw(st.integers(0, max(0, len(whole) - 1)))
    with contextlib.suppress(BitstreamError):
        assert not same(read_all(whole[:cut], groups), groups) or not whole


@given(st.integers(0, 2**32), st.binary(max_size=80))
def test_no_bytes_raise_anything_but_bitstream_error(seed, data):
    groups = random_groups(seed)
    with contextlib.suppress(BitstreamError):
        read_all(data, groups)
        assert len(data) <= sum(freqs.shape[0] for _, freqs in groups) * 2 + 1


def same(found, groups):
    return all(np.array_equal(a, b) for a, (b, _) in zip(found, groups, strict=True))


def read_all(data, groups):
    reader = SymbolReader(data)
    found = [reader.read(freqs) for _, freqs in groups]
    reader.close()
    return found


def test_a_stream_is_ended_from_its_tail_however_much_was_written(monkeypatch):
    calls = counted(monkeypatch, coder, "_shortest")
    writer = SymbolWriter()
    for seed in range(200):
        for symbols, freqs in random_groups(seed, longest=60):
            writer.write(symbols, freqs)
        writer.finish()
    assert len(writer.finish()) > 10_000
    touched = [len(data) for data, *_ in calls]
    assert max(touched) <= 32 and sum(touched) <= 20 * 201


@pytest.mark.parametrize("rest", [0, 1])
@pytest.mark.parametrize("start", [[0], [1], [1, 0], [0, 1, 1]])
def test_the_tail_alone_ends_a_stream_as_all_of_it_would(start, rest):
    # Runs of one symbol make long rows of equal digits, through which a carry may go.
    writer, even = SymbolWriter(), np.full((1, 2), TOTAL // 2, dtype=np.uint32)
    for symbol in [*start, *[rest] * 400]:
        writer.write(np.array([symbol]), even)
        words, (lower, width) = writer._coder.pos()
        data = writer._coder.get_compressed().astype(">u4").tobytes()
        size, least = 4 * int(words) + 8, writer.floor_bytes
        whole = coder._shortest(data, int(lower), int(width), size=size, least=least)
        assert writer.finish() == whole


@pytest.mark.parametrize("most", [1, 8])
def test_large_groups_are_read_as_they_were_written_and_zeros_cost_their_information(most):
    symbols = np.random.default_rng(3).integers(0, most, 2500)
    groups = [(symbols, np.full((2500, 8), TOTAL // 8, dtype=np.uint32))]
    data = write(groups).finish()
    assert len(data) in (937, 938)
    assert np.array_equal(read_all(data, groups)[0], symbols)


def test_a_short_stream_is_found_out_early_in_a_large_group():
    uniform = np.broadcast_to(np.full(256, TOTAL // 256, dtype=np.uint32), (60_000, 256))
    reader = SymbolReader(bytes(60))
    with pytest.raises(BitstreamError, match="its symbols so far need at least"):
        reader.read(uniform)
    assert reader.ideal_bits < 8 * 2000


def test_the_reader_says_what_is_wrong():
    even = np.full((4, 2), TOTAL // 2, dtype=np.uint32)
    with pytest.raises(BitstreamError, match="coded section does not fit this model"):
        read_all(b"\xff" * 8, [(None, even)])
    with pytest.raises(BitstreamError, match="is 3 bytes, the symbols in it take 1: bytes are"):
        read_all(b"\x90ab", [(None, even)])
    assert SymbolWriter().finish() == b"" and read_all(b"", []) == []


def test_the_bytes_are_frozen():
    # These bytes are in people's files.
    freqs = np.array([[60000, 5000, 500, 36]] * 12, dtype=np.uint32)
    writer = SymbolWriter()
    writer.write(np.array([0, 1, 2, 3, 0, 0, 0, 1, 0, 2, 3, 1]), freqs)
    assert writer.finish().hex() == "e872bd31f7f7"
