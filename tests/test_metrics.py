"""Metrics against closed forms and properties."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from percov2_core.errors import ImageError, UnavailableError
from percov2_core.evaluation.judge import fid_kid
from percov2_core.evaluation.protocol import to_tensor
from percov2_core.metrics.distortion import check_scales, ms_ssim, psnr, to_8bit
from percov2_core.metrics.features import feature_distance
from percov2_core.metrics.perceptual import load_picorank
from percov2_core.metrics.structure import structure_distance
from percov2_core.metrics.swd import descriptors, set_swd, sliced_wasserstein
from tests.tiny import picture


def noisy(image, sigma):
    noise = np.random.default_rng(1).normal(0, sigma, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def patch_swd(reference, other):
    return sliced_wasserstein(descriptors(reference), descriptors(other))


def textured(width=192, height=176):
    return noisy(picture(width, height), 30)


def test_psnr_of_a_constant_error_and_feature_distance_are_the_closed_forms():
    a = torch.full((2, 3, 8, 8), 100.0)
    expected = 20 * np.log10(255 / 5)
    assert psnr(a, a + 5).tolist() == pytest.approx([expected, expected])
    assert psnr(a, a).tolist() == [float("inf")] * 2
    a, b = ([torch.tensor(v)[None, :, None, None]] for v in ([1.0, 0.0], [3.0, 3.0]))
    # Two minus twice the cosine.
    assert feature_distance(a, b).item() == pytest.approx(2 - 2**0.5, abs=1e-5)
    assert feature_distance(a, a).item() == pytest.approx(0, abs=1e-5)


def test_ms_ssim_falls_with_noise_from_one():
    x = to_tensor(textured())
    values = [ms_ssim(x, to_tensor(noisy(textured(), s))).item() for s in (1, 15, 40)]
    assert ms_ssim(x, x).item() == pytest.approx(1)
    assert 1 > values[0] > values[1] > values[2] > 0


@pytest.mark.parametrize(
    "distort",
    [
        lambda image, s: image.filter(ImageFilter.GaussianBlur(s)),
        lambda image, s: noisy(image, 12 * s),
        lambda image, s: Image.fromarray((np.asarray(image) / (1 + s)).astype(np.uint8)),
    ],
    ids=["blur", "noise", "darkness"],
)
def test_patch_swd_rises_with_the_strength_of_a_distortion(distort):
    image = textured()
    values = [patch_swd(to_tensor(image), to_tensor(distort(image, s))).item() for s in (1, 2, 4)]
    assert patch_swd(to_tensor(image), to_tensor(image)) == 0 < values[0] < values[1] < values[2]


def test_patch_swd_prefers_detail_elsewhere_to_no_detail():
    rng = np.random.default_rng(0)
    one, other = (to_tensor(Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8)))
                  for _ in range(2))  # fmt: skip
    blurred = one.clone()
    blurred[..., 1:-1] = one.unfold(3, 3, 1).mean(-1)
    assert psnr(one, other) < psnr(one, blurred) - 3
    assert patch_swd(one, other) < 0.7 * patch_swd(one, blurred)
    a = [to_tensor(picture(64, 48, seed=i)) for i in range(4)]
    assert set_swd(a[:3], a[2::-1]).item() == pytest.approx(0, abs=1e-4)  # in any order
    assert set_swd(a[:2], [a[1], a[3]]).item() > 1


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        (check_scales, "MS-SSIM needs 161 px a side, got 40x15"),
        (descriptors, "patch SWD needs 16 px a side, got 40x15"),
        (load_picorank().features, "PicoRank needs 32 px a side, got 40x15"),
    ],
)
def test_a_side_that_is_too_small_is_named(measure, words):
    with pytest.raises(ImageError, match=words):
        measure(torch.zeros(1, 3, 15, 40))


def test_fid_needs_many_pictures_and_its_library(monkeypatch):
    with pytest.raises(ImageError, match="FID and KID need 50 pictures a side, got 24"):
        fid_kid([], [], count=24)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(UnavailableError, match="pip install torchmetrics torch-fidelity"):
        fid_kid([], [], count=50)


def test_structure_distance_follows_ms_ssim():
    torch.manual_seed(0)
    x = F.avg_pool2d(torch.randn(1, 3, 262, 262), 7, 1) * 3
    made = [x + s * torch.randn_like(x) for s in (0.05, 0.1, 0.2)]
    made += [F.avg_pool2d(x, 5, 1, 2), 0 * x]
    ours = [float(structure_distance(y, x)) for y in made]
    theirs = [float(1 - ms_ssim(to_8bit(y), to_8bit(x))) for y in made]
    assert structure_distance(x, x).item() == pytest.approx(0, abs=1e-6)
    assert sorted(range(5), key=ours.__getitem__) == sorted(range(5), key=theirs.__getitem__)
