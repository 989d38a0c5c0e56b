"""PicoRank: the bundled perceptual distance."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter

from percov2_core.evaluation.protocol import to_tensor
from percov2_core.metrics.features import SqueezeNetFeatures, feature_distance
from percov2_core.metrics.perceptual import load_picorank
from tests.tiny import picture


def jpeg(image, strength):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=max(1, round(60 * (1 - strength) ** 2)))
    return Image.open(buffer).convert("RGB")


def noisy(image, strength):
    noise = np.random.default_rng(5).normal(0, 2 * 30**strength, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


DISTORTIONS = {
    "jpeg": jpeg,
    "noise": noisy,
    "blur": lambda image, s: image.filter(ImageFilter.GaussianBlur(0.5 * 20**s)),
    "grey": lambda image, s: ImageEnhance.Color(image).enhance(0.9 - 0.9 * s),
}


def signed(image):
    return to_tensor(image) / 127.5 - 1


def distance(net, a, b):
    return net.compare(net.features(a), net.features(b)).item()


@pytest.mark.parametrize("name", sorted(DISTORTIONS))
def test_the_distance_rises_with_the_strength_of_each_distortion(name):
    image = noisy(picture(160, 150), 0.75)  # on a smooth picture a blur does nothing
    weak, strong = (DISTORTIONS[name](image, strength) for strength in (0.1, 0.9))
    far, further = (distance(load_picorank(), signed(image), signed(x)) for x in (weak, strong))
    assert 0 < far < further


def test_it_ranks_distorted_kodak_pictures_as_the_teacher_does(shared, kodak):
    teacher = SqueezeNetFeatures(shared / "weights" / "squeezenet1_1_features.safetensors")
    net, wanted, got = load_picorank(), [], []
    with torch.inference_mode():
        for path in kodak[::8]:
            image = Image.open(path).convert("RGB").resize((192, 192))
            a, truth = signed(image), teacher(signed(image))
            for distort in DISTORTIONS.values():
                for strength in np.linspace(0, 1, 5):
                    b = signed(distort(image, float(strength)))
                    wanted.append(feature_distance(truth, teacher(b)).item())
                    got.append(distance(net, a, b))
    ranks = pd.DataFrame({"wanted": wanted, "got": got}).corr("spearman")
    assert ranks.loc["wanted", "got"] >= 0.95
