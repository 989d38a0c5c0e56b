"""PicoRank: the bundled perceptual distance and how it is trained."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from percov2_core.evaluation.distortions import DISTORTIONS, distort_at_random
from percov2_core.evaluation.protocol import to_tensor
from percov2_core.metrics.features import SqueezeNetFeatures, feature_distance
from percov2_core.metrics.perceptual import PicoRank, load_picorank
from percov2_core.training.perceptual import draw_pairs, loss_of, train
from percov2_core.training.samples import Photos
from tests.tiny import picture

seeded = np.random.default_rng


def signed(image):
    return to_tensor(image) / 127.5 - 1


def distance(net, a, b):
    return net.compare(net.features(a), net.features(b)).item()


@pytest.mark.parametrize("name", sorted(DISTORTIONS))
def test_the_distance_rises_with_the_strength_of_each_distortion(name):
    # A picture with detail of its own: on a smooth one a blur does nothing.
    detail = seeded(3).normal(0, 25, (150, 160, 3))
    levels = np.clip(np.asarray(picture(160, 150)) + detail, 0, 255)
    image = Image.fromarray(levels.astype(np.uint8))
    weak, strong, again = (DISTORTIONS[name](image, s, seeded(5)) for s in (0.1, 0.9, 0.9))
    assert strong.tobytes() == again.tobytes() and strong.size == image.size
    far, further = (distance(load_picorank(), signed(image), signed(x)) for x in (weak, strong))
    assert 0 < far < further


def test_it_ranks_distorted_kodak_pictures_as_the_teacher_does(shared, kodak):
    teacher = SqueezeNetFeatures(shared / "weights" / "squeezenet1_1_features.safetensors")
    net, wanted, got = load_picorank(), [], []
    with torch.inference_mode():
        for number, path in enumerate(kodak[::8]):
            image = Image.open(path).convert("RGB").resize((192, 192))
            a, truth = signed(image), teacher(signed(image))
            for seed in range(20):
                b = signed(distort_at_random(image, seed=1000 * number + seed))
                wanted.append(feature_distance(truth, teacher(b)).item())
                got.append(distance(net, a, b))
    ranks = pd.DataFrame({"wanted": wanted, "got": got}).corr("spearman")
    assert ranks.loc["wanted", "got"] >= 0.95


def test_targets_that_the_network_already_meets_cost_next_to_nothing():
    torch.manual_seed(0)
    net, x = PicoRank(), torch.rand(1, 3, 32, 32) * 2 - 1
    y = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        maps = net.maps(net.features(x), net.features(y))
        cells = [torch.nn.functional.adaptive_avg_pool2d(m[:, None], 2)[:, 0] for m in maps]
        right = torch.stack(cells, 1)
        assert loss_of(net, x, y, right) < 0.011 < loss_of(net, x, y, right + 0.5)


def test_a_step_of_training_asks_the_teacher_about_its_own_crops(photos, tmp_path):
    drawn = [draw_pairs(Photos(photos), seed=0, step=3) for _ in range(2)]
    assert torch.equal(drawn[0].distorted, drawn[1].distorted)
    assert drawn[0].references.shape == (8, 3, 96, 96)

    def teacher(x):
        return [torch.nn.functional.avg_pool2d(x, 4)] * 7

    torch.manual_seed(0)
    fresh = PicoRank()
    trained = train(Photos(photos), teacher, tmp_path / "run", minutes=1e-9)
    assert not torch.equal(fresh.stem.weight, trained.stem.weight)
