"""The masked image model learns from grids of its own, and its batches hold what they should."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from percov2_core.entropy.exporter import export
from percov2_core.entropy.masked_model import UNKNOWN_WORD, MaskedModelConfig
from percov2_core.errors import ConfigError
from percov2_core.training import masked
from percov2_core.training.loop import LoopConfig
from percov2_core.training.masked import BatchMaker, MaskedTuning, TokenSet
from percov2_core.weights.files import ENTROPY_FILE
from tests.tiny import drawing_within, rows

CONFIG = MaskedModelConfig(
    codebook_size=8, width=16, heads=2, content_layers=1, query_layers=1, hidden=16,
    code_width=4, max_words=4, vocabulary=("red", "blue"), dropout=0.1, ratio=2,
)  # fmt: skip
TUNING = MaskedTuning(batch_tokens=128, min_crop=3, held_out=2)
LOOP = LoopConfig(warmup_steps=5, lr=1e-2, floor=0.01, ema=0.995, device="cpu")
BELOW = np.ones((2, 2), dtype=np.uint8)


def grids():
    """Tokens that are what their parents are."""
    rng = np.random.default_rng(0)
    lines = np.arange(3)[None, :, None] + rng.integers(0, 3, (20, 1, 1))
    parents = np.broadcast_to(lines, (20, 3, 3)).astype(np.uint8)
    return TokenSet(np.kron(parents, BELOW), ["red sky", "blue sea"] * 10, parents)


def flat(count, side=4):
    """Grids of zeros, but that the last two are of sevens."""
    tokens = np.zeros((count, side, side), dtype=np.uint8)
    tokens[-2:] = 7
    return TokenSet(tokens, ["x"] * count, None)


def train(out, *, config=CONFIG, init=None, resume=False, **loop):
    how = {"config": config, "tuning": TUNING, "loop": replace(LOOP, **loop)}
    return masked.fit([grids()], out, init=init, resume=resume, **how)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    return out, train(out, steps=40)


def test_the_bits_fall_far_below_uniform(first):
    scores = rows(first[0] / "scores.csv")[-1]
    assert float(scores["held_out_0"]) < float(scores["held_out_0_alone"]) < 2.0


def test_training_goes_on_after_a_break_as_if_there_had_been_none(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", steps=6, save_every_s=0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BatchMaker, "draw", drawing_within(0, 3, BatchMaker.draw))
        train(tmp_path / "broken", steps=6, save_every_s=0.0)
    monkeypatch.setattr(BatchMaker, "draw", drawing_within(3, 20, BatchMaker.draw))
    then = train(tmp_path / "broken", steps=6, save_every_s=0.0, resume=True)
    a, b = (rows(tmp_path / out / "losses.csv")[-1]["loss"] for out in ("whole", "broken"))
    assert a == b
    assert len(list((tmp_path / "broken").glob("checkpoint-*"))) == 1
    a, b = (model.state_dict() for model in (whole, then))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_starts_where_an_earlier_one_ended(first, tmp_path):
    out, model = first
    empty = replace(CONFIG, vocabulary=())
    then = train(tmp_path / "then", config=empty, init=out, steps=1, lr=0.0)
    assert then.config.vocabulary == CONFIG.vocabulary
    assert torch.equal(then.out.weight, model.out.weight)
    (twin := tmp_path / "twin").mkdir()
    export(model).save(twin / ENTROPY_FILE)
    then = train(tmp_path / "again", config=empty, init=twin, steps=1, lr=0.0)
    assert then.config.vocabulary == CONFIG.vocabulary
    assert torch.allclose(then.out.weight, model.out.weight * model.norm.gain, atol=0.01)
    with pytest.raises(ConfigError, match="checkpoint does not fit: 'model"):
        train(tmp_path / "x", config=replace(CONFIG, hidden=32), init=out, steps=1)


def test_cuts_stand_below_their_own_parents_and_some_words_become_unknown_or_vanish():
    made = BatchMaker([grids()], CONFIG, TUNING)
    batches = [made.draw(step) for step in range(40)]
    told = [batch for batch in batches if batch.parents is not None]
    assert 20 < len(told) < 40 and len({batch.tokens.shape[1:] for batch in told}) > 4
    for tokens, _, _, parents in told:
        h, w = tokens.shape[1:]
        assert np.array_equal(np.kron(parents, BELOW)[:, :h, :w], tokens)
    words = torch.cat([batch.words.flatten() for batch in batches])
    assert {0, UNKNOWN_WORD, 2, 3} <= set(words.tolist())


def test_the_vocabulary_holds_common_words_in_order_of_frequency():
    assert masked.collect_vocabulary(["b a", "a, b a", "c"], least=2) == ("a", "b")


def test_held_out_grids_are_never_drawn_and_of_a_few_they_are_but_a_share():
    made = BatchMaker([flat(9)], CONFIG, TUNING)
    assert all(made.draw(step).tokens.max() == 0 for step in range(10))
    assert (made.held_out[0].tokens == 7).all()
    for count, drawn in ((4, 3), (8, 6)):
        made = BatchMaker([flat(count)], CONFIG, replace(TUNING, held_out=32))
        assert len(made.sets[0].tokens) == drawn
        assert len(made.held_out[0].tokens) == count - drawn
    with pytest.raises(ConfigError, match="at least 4 grids, got 3"):
        BatchMaker([flat(3)], CONFIG, TUNING)
