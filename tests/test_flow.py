"""Sampler, tiling and transformer against closed forms."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from percov2_core.flow.sampler import blend, sample, sigmas, tiles
from percov2_core.flow.text import TextEmbedding, small_text_encoder
from percov2_core.flow.transformer import Conditions, FlowConfig, FlowModel, guidance_features


class Silent(torch.nn.Module):
    """Moves nothing, and notes how many it is asked about at a time."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, *, hidden_states, **_):
        self.batches.append(len(hidden_states))
        return (torch.zeros_like(hidden_states[:, :16]),)


def text(value):
    return TextEmbedding(torch.zeros(1, 3, 8), torch.full((1, 4), value))


def conditions(value):
    return Conditions(torch.zeros(1, 16, 8, 8), torch.zeros(1, 2, 8, 8), text(value))


def test_guidance_costs_one_batch_of_two_and_nothing_when_it_is_one():
    model, how = Silent(), {"noise": torch.ones(1, 16, 8, 8), "times": sigmas(3, shift=1.0)}
    for guidance in (2.5, 1.0):
        told = conditions(3.0), text(1.0)
        list(sample(FlowModel(model, FlowConfig()), *told, guidance=guidance, **how))
    assert model.batches == [2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("shift", [1.0, 3.0, 1.7])
def test_times_are_to_the_bit_those_of_the_published_scheduler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    for steps in (1, 2, 3, 7, 20, 100):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
        assert sigmas(steps, shift) == scheduler.sigmas.tolist()


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (66, 64), (66, 200), (512, 512), (10, 300)])
def test_tiles_cover_the_grid_and_blend_to_the_same_field(size):
    field = torch.randn(1, 2, *size)
    boxes = tiles(*size, 64)
    parts = [field[box] for box in boxes]
    assert all(max(part.shape[-2:]) <= 64 for part in parts)
    assert torch.allclose(blend(parts, boxes, field.shape), field, atol=1e-6)


def test_a_network_that_says_nothing_leaves_the_start_where_it_is():
    flow = FlowModel(Silent(), FlowConfig(start="codes", noise_scale=0.5))
    c = Conditions(torch.randn(1, 16, 8, 8), torch.zeros(1, 2, 8, 8), text(0.0))
    x = flow.first(c, torch.randn(1, 16, 8, 8))
    v = flow(x, torch.ones(1), c, torch.ones(1))
    assert torch.allclose(x - v, c.start, atol=1e-6)


def test_guidance_features_tell_guidances_apart():
    rows = guidance_features(torch.tensor([1.0, 1.5, 2.5, 4.0]), 8)
    assert rows.shape == (4, 8) and torch.cdist(rows, rows).fill_diagonal_(1.0).min() > 0.1
    beyond = guidance_features(torch.tensor([4.0, 12.0]), 8)
    assert torch.equal(beyond[0], beyond[1])


def test_words_outside_the_vocabulary_do_not_fail_and_long_captions_are_cut():
    encoder = small_text_encoder(("blue", "sky", ","), width=32, layers=1, max_length=6)
    ids = encoder.token_ids(["Blue sky, a zebra", "", "blue " * 50])
    assert ids.shape == (3, 6)
    assert ids[0].tolist()[:3] == encoder.token_ids(["blue sky,"])[0].tolist()[:3]
    assert encoder.encode(["blue sky"]).sequence.shape == (1, 6, 32)
