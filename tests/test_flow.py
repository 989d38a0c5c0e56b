"""Sampler, tiling and transformer against closed forms."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from percov2_core.errors import ConfigError
from percov2_core.flow.sampler import blend, sample, sigmas, tiles
from percov2_core.flow.text import TextEmbedding, small_text_encoder
from percov2_core.flow.transformer import Conditions, FlowConfig, FlowModel, guidance_features


class Recorder(torch.nn.Module):
    """Velocity towards a fixed point, which depends on the caption by its pooled vector."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.batches: list[int] = []

    def forward(self, *, hidden_states, pooled_projections, **_):
        self.batches.append(hidden_states.shape[0])
        return (hidden_states[:, :16] - pooled_projections.mean(1)[:, None, None, None],)


def text(value):
    return TextEmbedding(torch.zeros(1, 3, 8), torch.full((1, 4), value))


def conditions(value):
    return Conditions(torch.zeros(1, 16, 8, 8), torch.zeros(1, 2, 8, 8), text(value))


def run(model, *, steps, guidance):
    how = {
        "guidance": guidance,
        "noise": torch.ones(1, 16, 8, 8),
        "times": sigmas(steps, shift=1.0),
    }
    *_, arrived = sample(FlowModel(model, FlowConfig()), conditions(3.0), text(1.0), **how)
    return arrived


def test_one_euler_step_subtracts_the_velocity_that_guidance_extrapolates():
    assert torch.allclose(run(Recorder(), steps=1, guidance=1.0), torch.tensor(3.0))
    # x - (u + g (c - u)) with u = x - 1, c = x - 3, g = 2: arrives at 1 + 2 (3 - 1).
    assert torch.allclose(run(Recorder(), steps=1, guidance=2.0), torch.tensor(5.0))


def test_guidance_costs_one_batch_of_two_and_nothing_when_it_is_one():
    model = Recorder()
    run(model, steps=3, guidance=2.5)
    run(model, steps=3, guidance=1.0)
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
    class Silent(torch.nn.Module):
        dtype = torch.float32

        def forward(self, *, hidden_states, **_):
            return (torch.zeros_like(hidden_states[:, :16]),)

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


def test_a_wrong_start_of_the_flow_is_named():
    with pytest.raises(ConfigError, match="flow start must be 'codes' or 'noise', got 'middle'"):
        FlowConfig(start="middle")
