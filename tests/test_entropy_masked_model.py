import numpy as np
import pytest
import torch

from percov2_core.config import SCHEDULES
from percov2_core.entropy.masked_model import UNKNOWN_WORD, pad_words, split_words, word_ids
from percov2_core.entropy.schedule import stages
from percov2_core.errors import ConfigError
from tests.tiny import tiny_masked_model

torch.manual_seed(0)
VOCABULARY = ("pale", "blue", "sky", ",")
MODEL = tiny_masked_model(codebook_size=16, vocabulary=VOCABULARY, max_words=8, ratio=2)
CONFIG = MODEL.config


def example(seed, grid):
    tokens = np.random.default_rng(seed).integers(0, 16, (1, *grid))
    return torch.from_numpy(tokens), pad_words([word_ids("Pale blue, sky", CONFIG)])


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
    other, padded = pad_words([word_ids("sky sky", CONFIG)]), torch.nn.functional.pad(words, (0, 3))
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
    unknown = torch.full_like(parents, CONFIG.mask_id)
    assert torch.equal(MODEL(tokens, words, stage, unknown), MODEL(tokens, words, stage))


def test_words_are_ascii_and_commas_unknown_ones_share_one_row_and_long_captions_are_cut():
    assert split_words("Pale-BLUE, a Ünï 3rd!") == ["pale", "blue", ",", "a", "n", "3rd"]
    assert word_ids("pale zebra", CONFIG) == [2, UNKNOWN_WORD]
    assert len(word_ids("sky " * 50, CONFIG)) == CONFIG.max_words


def test_a_config_that_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="width must be a multiple of heads 4, got 10"):
        tiny_masked_model(width=10, heads=4)
