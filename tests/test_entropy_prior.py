import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from percov2_core.config import SCHEDULES
from percov2_core.entropy import prior
from percov2_core.entropy.coder import SymbolReader, SymbolWriter
from percov2_core.entropy.exporter import export
from percov2_core.entropy.masked_model import MaskedImageModel, MaskedModelConfig
from percov2_core.entropy.prior import Draws, TokenPrior
from percov2_core.entropy.schedule import coding_order, order
from percov2_core.entropy.session import Session
from percov2_core.errors import BitstreamError

CONFIG = MaskedModelConfig(
    codebook_size=12, width=16, heads=2, content_layers=1, query_layers=1, hidden=16,
    code_width=4, vocabulary=("pale", "blue"), max_words=4,
)  # fmt: skip


def tiny_prior():
    torch.manual_seed(0)
    model = MaskedImageModel(CONFIG)
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return TokenPrior(export(model))


PRIOR = tiny_prior()
names = st.sampled_from(SCHEDULES)
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


def random_tokens(seed, grid):
    return np.random.default_rng(seed).integers(0, 12, grid)


def coded(tokens, *, schedule, sent=None):
    """The writer, and every (tokens, bytes) at which the file may end."""
    writer, sent = SymbolWriter(), tokens.size if sent is None else sent
    written = PRIOR.compress(tokens, "pale sky", schedule=schedule, writer=writer, sent=sent)
    return writer, [(count, writer.finish()) for count in written]


def decoded(data, grid, *, schedule, sent=None, seed=0):
    reader, sent = SymbolReader(data), grid[0] * grid[1] if sent is None else sent
    found = PRIOR.decompress(
        reader, grid, caption="pale sky", schedule=schedule, sent=sent, seed=seed
    )
    reader.close()
    return found


@settings(max_examples=40, deadline=None)
@given(names, grids, st.data())
def test_the_first_tokens_survive_and_the_others_are_drawn_from_them(schedule, grid, data):
    total = grid[0] * grid[1]
    sent = data.draw(st.one_of(st.just(total), st.integers(0, total)))
    tokens = random_tokens(1, grid)
    writer, _ = coded(tokens, schedule=schedule, sent=sent)
    found, bits = decoded(writer.finish(), grid, schedule=schedule, sent=sent, seed=5)
    first, rest = np.split(order(schedule, grid), [sent])
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
    choices = PRIOR.choices(tokens, "pale sky", schedule=schedule)
    assert np.allclose(np.take_along_axis(choices, tokens[None], 0)[0], bits)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_file_may_end_at_every_cut_point(schedule):
    tokens = random_tokens(3, (6, 6))
    for count, data in coded(tokens, schedule=schedule)[1]:
        writer, cuts = coded(tokens, schedule=schedule, sent=count)
        assert writer.finish() == data and cuts[-1] == (count, data)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", [(12, 12), (24, 20)])
def test_stages_taken_together_write_what_stage_by_stage_writes(schedule, grid, monkeypatch):
    # Of the larger grid, some stages are always written by themselves.
    tokens = random_tokens(5, grid)
    whole = coded(tokens, schedule=schedule)[0].finish()
    choices = PRIOR.choices(tokens, "pale sky", schedule=schedule)
    monkeypatch.setattr(prior, "TOKENS_AT_ONCE", 0)
    assert coded(tokens, schedule=schedule)[0].finish() == whole
    assert np.array_equal(PRIOR.choices(tokens, "pale sky", schedule=schedule), choices)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_grids_beyond_one_tile_survive_the_round_trip(schedule):
    tokens = random_tokens(4, (3, 70))
    for sent in (None, 50):
        writer, _ = coded(tokens, schedule=schedule, sent=sent)
        found = decoded(writer.finish(), (3, 70), schedule=schedule, sent=sent).tokens
        first = coding_order(schedule, (3, 70))[:sent]
        assert np.array_equal(found.ravel()[first], tokens.ravel()[first])


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
    draws = Draws(0, "", np.zeros(0, dtype=np.int64))
    draws._state = np.uint64(1234567)
    first = [int(z) for z in (*draws._next(2), *draws._next(1))]
    assert first == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_what_is_drawn_from_fixed_frequencies_is_frozen():
    # Files of the hybrid mode are completed with these numbers.
    freqs = np.tile(np.array([[40000, 20000, 5000, 536]], dtype=np.uint32), (24, 1))
    found = Draws(7, "a red kite", np.array([3, 1, 2])).take(freqs)
    assert found.tolist() == [1, 0, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0] + [0] * 9 + [1, 0, 0]


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
    opened, asked, frequencies = [], [], Session.frequencies
    monkeypatch.setattr(prior, "Session", lambda *args: opened.append(args) or Session(*args))
    monkeypatch.setattr(
        Session, "frequencies", lambda *args: asked.append(args) or frequencies(*args)
    )
    with pytest.raises(BitstreamError, match="its symbols so far need at least"):
        decoded(bytes(20), (32, 32), schedule="qlds")
    assert len(opened) == 1 and len(asked) < 6
    opened.clear()
    with pytest.raises(BitstreamError, match="its symbols so far need at least"):
        decoded(bytes(20), (256, 256), schedule="checkerboard")
    assert len(opened) == 1
