import numpy as np
import pytest
import torch

from percov2_core.config import SCHEDULES
from percov2_core.entropy.masked_model import (
    UNKNOWN_WORD,
    MaskedImageModel,
    MaskedModelConfig,
    pad_words,
    split_words,
    word_ids,
)
from percov2_core.entropy.schedule import stages
from percov2_core.errors import ConfigError

CONFIG = MaskedModelConfig(
    codebook_size=16, width=16, heads=2, content_layers=1, query_layers=1, hidden=16,
    code_width=4, vocabulary=("pale", "blue", "sky", ","), max_words=8, ratio=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = MaskedImageModel(CONFIG).eval()
    for parameter in made.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return made


def example(seed, grid):
    tokens = np.random.default_rng(seed).integers(0, 16, (1, *grid))
    return torch.from_numpy(tokens), pad_words([word_ids("Pale blue, sky", CONFIG)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_token_changes_only_the_logits_of_later_stages(model, schedule):
    tokens, words = example(1, (5, 6))
    stage = torch.from_numpy(stages(schedule, (5, 6)).copy())
    before = model(tokens, words, stage)
    changed = tokens.clone()
    changed[0, 2, 3] = (changed[0, 2, 3] + 1) % 16
    moved = (model(changed, words, stage) - before).abs().amax(-1)[0] > 0
    assert not moved[stage <= stage[2, 3]].any()
    assert schedule == "uniform" or stage[2, 3] == stage.max() or moved.any()


def test_the_caption_moves_the_logits_of_the_first_stage(model):
    tokens, words = example(2, (4, 4))
    stage = torch.zeros(4, 4, dtype=torch.int64)
    other = pad_words([word_ids("sky sky", CONFIG)])
    assert not torch.allclose(model(tokens, words, stage), model(tokens, other, stage))


def test_a_parent_moves_the_logits_below_it_and_around_as_far_as_it_is_known(model):
    tokens, words = example(5, (14, 3))
    stage, parents = torch.zeros(14, 3, dtype=torch.int64), torch.zeros(1, 7, 2, dtype=torch.int64)
    parents[0, 0, 0] = 5
    before = model(tokens, words, stage, torch.zeros_like(parents))
    moved = (model(tokens, words, stage, parents) - before).abs().amax((0, 2, 3)) > 0
    assert moved.tolist() == [True] * 6 + [False] * 8  # rows below it and two parents further
    unknown = torch.full_like(parents, CONFIG.mask_id)
    assert torch.equal(model(tokens, words, stage, unknown), model(tokens, words, stage))


def test_padding_words_change_nothing(model):
    tokens, words = example(3, (4, 4))
    stage = torch.from_numpy(stages("qlds", (4, 4)).copy())
    padded = torch.nn.functional.pad(words, (0, 3))
    assert torch.allclose(model(tokens, words, stage), model(tokens, padded, stage), atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (32, 3)])
@pytest.mark.parametrize("caption", ["Pale blue, sky", ""])
def test_any_grid_up_to_the_tile_size_has_logits_with_words_and_without(model, grid, caption):
    tokens, words = example(4, grid)[0], pad_words([word_ids(caption, CONFIG)])
    bits = model.bits(tokens, words, torch.from_numpy(stages("var", grid).copy()))
    assert bits.shape == (1, *grid) and bits.min() > 0


def test_words_are_lower_case_ascii_and_commas():
    assert split_words("Pale-BLUE, a Ünï 3rd!") == ["pale", "blue", ",", "a", "n", "3rd"]


def test_words_outside_of_the_vocabulary_share_one_row_and_long_captions_are_cut():
    assert word_ids("pale zebra", CONFIG) == [2, UNKNOWN_WORD]
    assert len(word_ids("sky " * 50, CONFIG)) == CONFIG.max_words


def test_a_config_that_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="width must be a multiple of heads 4, got 10"):
        MaskedModelConfig(width=10, heads=4)
