import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from percov2_core.config import SCHEDULES
from percov2_core.entropy import prior
from percov2_core.entropy.coder import SymbolReader, SymbolWriter
from percov2_core.entropy.exporter import export
from percov2_core.entropy.prior import Draws, Known, TokenPrior
from percov2_core.entropy.schedule import coding_order, order
from percov2_core.entropy.session import Session
from percov2_core.errors import BitstreamError
from tests.tiny import counted, tiny_masked_model

torch.manual_seed(0)
PRIOR = TokenPrior(export(tiny_masked_model(codebook_size=12, ratio=4)))
ONE_TILE = st.tuples(st.integers(1, 9), st.integers(1, 9))


def random_tokens(seed, grid):
    return np.random.default_rng(seed).integers(0, 12, grid)


def known(grid):
    return Known("pale sky", random_tokens(9, tuple(-(-side // 4) for side in grid)))


def coded(tokens, *, schedule, sent=None):
    """The writer, and every (tokens, bytes) at which the file may end."""
    writer, ends, sent = SymbolWriter(), [], tokens.size if sent is None else sent
    steps = PRIOR.compress(tokens, known(tokens.shape), schedule=schedule, sent=sent)
    for count, (positions, freqs, _) in enumerate(steps):
        writer.write(tokens.ravel()[positions], freqs)
        ends.append((len(positions) + (ends[-1][0] if count else 0), writer.finish()))
    return writer, ends


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
    writer, _ = coded(tokens, schedule=schedule, sent=sent)
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
def test_the_stream_is_as_long_as_the_costs_say(schedule):
    tokens = random_tokens(2, (7, 9))
    writer, _ = coded(tokens, schedule=schedule)
    bits = decoded(writer.finish(), (7, 9), schedule=schedule).bits
    assert bits.sum() == pytest.approx(writer.ideal_bits)
    assert abs(8 * len(writer.finish()) - bits.sum()) < 9
    choices = PRIOR.choices(tokens, known(tokens.shape), schedule=schedule)
    assert np.allclose(np.take_along_axis(choices, tokens[None], 0)[0], bits)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_file_may_end_at_every_cut_point(schedule):
    tokens = random_tokens(3, (6, 6))
    for count, data in coded(tokens, schedule=schedule)[1]:
        assert coded(tokens, schedule=schedule, sent=count)[1][-1] == (count, data)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", [(12, 12), (24, 20)])
def test_stages_taken_together_write_what_stage_by_stage_writes(schedule, grid, monkeypatch):
    # Of the larger grid, some stages are always written by themselves.
    tokens = random_tokens(5, grid)
    whole = coded(tokens, schedule=schedule)[0].finish()
    choices = PRIOR.choices(tokens, known(tokens.shape), schedule=schedule)
    monkeypatch.setattr(prior, "TOKENS_AT_ONCE", 0)
    assert coded(tokens, schedule=schedule)[0].finish() == whole
    assert np.array_equal(PRIOR.choices(tokens, known(tokens.shape), schedule=schedule), choices)


def test_the_seed_and_the_tokens_sent_change_what_is_drawn():
    tokens, other = np.zeros((8, 8), dtype=int), np.zeros((8, 8), dtype=int)
    other[order("qlds", (8, 8))[0] // 8, order("qlds", (8, 8))[0] % 8] = 1
    draws = []
    for t, sent, seed in ((tokens, 2, 0), (tokens, 2, 1), (tokens, 3, 0), (other, 2, 0)):
        data = coded(t, schedule="qlds", sent=sent)[0].finish()
        found = decoded(data, (8, 8), schedule="qlds", sent=sent, seed=seed)
        draws.append(found.tokens.tobytes())
    assert len(set(draws)) == 4


def test_the_random_numbers_are_those_of_splitmix64():
    draws = Draws(0, "")
    draws._state = np.uint64(1234567)
    first = [int(z) for z in (*draws._next(2), *draws._next(1))]
    assert first == [6457827717110365317, 3203168211198807973, 9817491932198370423]


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
