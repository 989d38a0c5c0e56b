"""The masked image model: what its logits depend on, its batches, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from percov2_core.config import SCHEDULES
from percov2_core.entropy.exporter import export
from percov2_core.entropy.masked_config import (
    UNKNOWN_WORD,
    MaskedModelConfig,
    split_words,
    word_ids,
)
from percov2_core.entropy.masked_model import pad_words
from percov2_core.entropy.schedule import stages
from percov2_core.errors import ConfigError
from percov2_core.training import masked
from percov2_core.training.loop import LoopConfig
from percov2_core.training.masked import BatchMaker, MaskedTuning, TokenSet
from percov2_core.weights.files import ENTROPY_FILE
from tests.tiny import rows, tiny_masked_model

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


torch.manual_seed(0)
VOCABULARY = ("pale", "blue", "sky", ",")
MODEL = tiny_masked_model(codebook_size=16, vocabulary=VOCABULARY, max_words=8, ratio=2)


def example(seed, grid):
    tokens = np.random.default_rng(seed).integers(0, 16, (1, *grid))
    return torch.from_numpy(tokens), pad_words([word_ids("Pale blue, sky", MODEL.config)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_token_changes_only_the_logits_of_later_stages(schedule):
    tokens, words = example(1, (5, 6))
    stage = torch.from_numpy(stages(schedule, (5, 6)).copy())
    before = MODEL(tokens, words, stage)
    changed = tokens.clone()
    changed[0, 2, 3] = (changed[0, 2, 3] + 1) % 16
    moved = (MODEL(changed, words, stage) - before).abs().amax(-1)[0] > 0
    assert not moved[stage <= stage[2, 3]].any()
    assert schedule == "uniform" or stage[2, 3] == stage.max() or moved.any()


def test_the_caption_moves_the_logits_of_the_first_stage_but_padding_words_change_none():
    tokens, words = example(2, (4, 4))
    other, padded = (
        pad_words([word_ids("sky sky", MODEL.config)]),
        torch.nn.functional.pad(words, (0, 3)),
    )
    stage = torch.from_numpy(stages("qlds", (4, 4)).copy())
    first = stage == 0
    before = MODEL(tokens, words, stage)
    assert not torch.allclose(MODEL(tokens, other, stage)[0, first], before[0, first])
    assert torch.allclose(MODEL(tokens, padded, stage), before, atol=1e-5)


def test_a_parent_moves_the_logits_below_it_and_around_as_far_as_it_is_known():
    tokens, words = example(5, (14, 3))
    stage, parents = torch.zeros(14, 3, dtype=torch.int64), torch.zeros(1, 7, 2, dtype=torch.int64)
    parents[0, 0, 0] = 5
    before = MODEL(tokens, words, stage, torch.zeros_like(parents))
    moved = (MODEL(tokens, words, stage, parents) - before).abs().amax((0, 2, 3)) > 0
    assert moved.tolist() == [True] * 6 + [False] * 8  # rows below it and two parents further
    unknown = torch.full_like(parents, MODEL.config.mask_id)
    assert torch.equal(MODEL(tokens, words, stage, unknown), MODEL(tokens, words, stage))


def test_words_are_ascii_and_commas_unknown_ones_share_one_row_and_long_captions_are_cut():
    assert split_words("Pale-BLUE, a Ünï 3rd!") == ["pale", "blue", ",", "a", "n", "3rd"]
    assert word_ids("pale zebra", MODEL.config) == [2, UNKNOWN_WORD]
    assert len(word_ids("sky " * 50, MODEL.config)) == MODEL.config.max_words


def test_a_config_that_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="width must be a multiple of heads 4, got 10"):
        tiny_masked_model(width=10, heads=4)
