"""Metrics against their definitions and the published formula, PicoRank; classic codecs."""

import io
import json
import re
import sys
from hashlib import sha256 as digest
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter

from percov2_core.baselines import CLASSIC
from percov2_core.baselines.base import best_within, largest_within
from percov2_core.baselines.classic import LADDERS, family_at_all_sizes, find_baseline
from percov2_core.errors import (
    BitstreamError,
    ConfigError,
    ImageError,
    UnavailableError,
    WeightsError,
)
from percov2_core.evaluation.judge import fid_kid
from percov2_core.evaluation.protocol import centre_square, to_tensor
from percov2_core.metrics.distortion import check_scales, ms_ssim, psnr, to_8bit
from percov2_core.metrics.dists import Dists, load_dists
from percov2_core.metrics.features import SqueezeNetFeatures, feature_distance
from percov2_core.metrics.lpips import FILES, Lpips, load_lpips
from percov2_core.metrics.perceptual import load_picorank
from percov2_core.metrics.published import ENVIRONMENT, load_files
from percov2_core.metrics.structure import structure_distance
from percov2_core.metrics.swd import descriptors, set_swd, sliced_wasserstein
from tests.picture_files import saved
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


WIDTHS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
SHAPES = {place: (*shape, shape[2]) for place, shape in WIDTHS.items()}


def random_weights():
    generator = torch.Generator().manual_seed(0)
    trunk, heads = {}, {}
    for i, (place, shape) in enumerate(SHAPES.items()):
        fan_in = shape[1] * shape[2] * shape[3]
        trunk[f"features.{place}.weight"] = torch.randn(shape, generator=generator) / fan_in**0.5
        trunk[f"features.{place}.bias"] = torch.randn(shape[0], generator=generator) / 10
        heads[f"lin{i}.model.1.weight"] = torch.rand(1, shape[0], 1, 1, generator=generator)
    return trunk, heads


def pair(side=64):
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 2, 3, side, side, generator=generator) * 2 - 1
    return a, b


def written_out(a, b):
    """AlexNet and the heads as one list of calls, in float64."""
    trunk, heads = ({k: v.double() for k, v in part.items()} for part in random_weights())
    shift = torch.tensor([-0.030, -0.088, -0.188]).double()[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450]).double()[:, None, None]
    x, total = (torch.cat([a, b]).double() - shift) / scale, torch.zeros(len(a)).double()
    for i, place in enumerate(SHAPES):
        if place in (3, 6):
            x = F.max_pool2d(x, kernel_size=3, stride=2)
        stride, padding = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[i]
        weight, bias = (trunk[f"features.{place}.{k}"] for k in ("weight", "bias"))
        x = F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))
        unit = F.normalize(x, dim=1)
        difference = (unit[: len(a)] - unit[len(a) :]) ** 2
        total += F.conv2d(difference, heads[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
    return total


def test_the_metric_is_the_published_formula():
    net, (a, b) = Lpips(*random_weights()), pair()
    got = net.compare(net.taps(a), net.taps(b))
    assert got.double().tolist() == pytest.approx(written_out(a, b).tolist(), rel=1e-4)
    assert net.compare(net.taps(a), net.taps(a)).tolist() == [0, 0]


def vgg_weights():
    """A trunk as torchvision names it, and alpha and beta, at random."""
    generator, trunk, place = torch.Generator().manual_seed(0), {}, 0
    for before, width, count in ((3, 64, 2), (64, 128, 2), (128, 256, 3), *[(0, 512, 3)] * 2):
        for i in range(count):
            into = width if i else before or next(reversed(trunk.values())).numel()
            shape, name = (width, into, 3, 3), f"features.{place}"
            scale = (2 / (9 * into)) ** 0.5
            trunk[f"{name}.weight"] = torch.randn(shape, generator=generator) * scale
            trunk[f"{name}.bias"] = torch.randn(width, generator=generator) / 10
            place += 2
        place += 1
    shares = (torch.rand(1, 1475, 1, 1, generator=generator) for _ in range(2))
    return trunk, dict(zip(("alpha", "beta"), shares, strict=True))


def test_lpips_and_dists_are_what_their_authors_packages_compute():
    # lpips 0.1.4 and DISTS-pytorch 0.1, run once on these weights and pictures.
    for net, wanted in (
        (Lpips(*random_weights()), [0.9227669, 0.9210110]),
        (Dists(*vgg_weights()), [0.0814044, 0.0829338]),
    ):
        a, b = (net.taps(x) for x in pair())
        assert net.compare(a, b).tolist() == pytest.approx(wanted, rel=2e-5)
        assert net.compare(a, a).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_weights_that_do_not_fit_are_named():
    trunk, heads = random_weights()
    with pytest.raises(ImageError, match="LPIPS needs 32 px a side, got 31x31"):
        Lpips(trunk, heads).taps(pair(31)[0])
    del trunk["features.8.bias"]
    with pytest.raises(WeightsError, match=r"(?s)LPIPS weights do not fit: .*features\.8\.bias"):
        Lpips(trunk, heads)
    trunk = vgg_weights()[0] | {"features.0.bias": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"(?s)DISTS weights do not fit: .*features\.0\.bias"):
        Dists(trunk, vgg_weights()[1])


def test_a_file_of_weights_is_looked_for_everywhere_checked_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.delenv("PERCOV2_ALLOW_DOWNLOAD", raising=False)
    wanted = "LPIPS is not shown: put alexnet-owt-7be5be79.pth and alex.pth into a folder"
    with pytest.raises(UnavailableError, match=f"{wanted} and name it in {ENVIRONMENT}"):
        load_lpips()
    with pytest.raises(UnavailableError, match=r"put vgg16-397923af.pth and weights.pt into"):
        load_dists()
    monkeypatch.setenv("PERCOV2_ALLOW_DOWNLOAD", "1")
    monkeypatch.setattr(torch.hub, "download_url_to_file", Mock(side_effect=OSError("no network")))
    with pytest.raises(UnavailableError, match=r"https://download\.pytorch.* \(no network\); put"):
        load_lpips()
    (tmp_path / "alex.pth").write_bytes(b"not the weights")
    (tmp_path / "hub" / "checkpoints").mkdir(exist_ok=True)
    trunk = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    torch.save(random_weights()[0], trunk)
    with pytest.raises(
        WeightsError, match=r"alexnet-owt-7be5be79.pth: SHA-256 must begin 7be5be79"
    ):
        load_lpips()
    torch.save(random_weights()[1], tmp_path / "alex.pth")
    files = [
        f._replace(sha256=digest((trunk, tmp_path / f.name)[i].read_bytes()).hexdigest())
        for i, f in enumerate(FILES)
    ]
    net, (a, b) = Lpips(*load_files("LPIPS", files)), pair()
    assert net.compare(net.taps(a), net.taps(b)).shape == (2,)


def jpeg(image, strength):
    data = saved(image, "JPEG", quality=max(1, round(60 * (1 - strength) ** 2)))
    return Image.open(io.BytesIO(data))


DISTORTIONS = {
    "jpeg": jpeg,
    "noise": lambda image, s: noisy(image, 2 * 30**s),
    "blur": lambda image, s: image.filter(ImageFilter.GaussianBlur(0.5 * 20**s)),
    "grey": lambda image, s: ImageEnhance.Color(image).enhance(0.9 - 0.9 * s),
}


def picorank(reference, other):
    net = load_picorank()
    return net.compare(*(net.features(x / 127.5 - 1) for x in (reference, other)))


DARKNESS = {"darkness": lambda image, s: Image.eval(image, lambda level: level * (1 - 0.8 * s))}
DISTANCES = {
    "MS-SSIM": lambda reference, other: 1 - ms_ssim(reference, other),
    "patch SWD": patch_swd,
    "PicoRank": picorank,
}


@pytest.mark.parametrize("distort", (DISTORTIONS | DARKNESS).values(), ids=DISTORTIONS | DARKNESS)
@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_a_distance_rises_with_the_strength_of_each_distortion(distance, distort):
    seen = [to_tensor(x) for x in (textured(), *(distort(textured(), s) for s in (0.1, 0.5, 0.9)))]
    same, *rising = (distance(seen[0], x).item() for x in seen)
    assert same == pytest.approx(0, abs=1e-6)
    assert 0 < rising[0] < rising[1] < rising[2]


def test_it_ranks_distorted_kodak_pictures_as_the_teacher_does(shared, kodak):
    teacher = SqueezeNetFeatures(shared / "weights" / "squeezenet1_1_features.safetensors")
    wanted, got = [], []
    with torch.inference_mode():
        for path in kodak[::8]:
            image = Image.open(path).convert("RGB").resize((192, 192))
            reference = to_tensor(image)
            truth = teacher(reference / 127.5 - 1)
            for distort in DISTORTIONS.values():
                for strength in np.linspace(0, 1, 5):
                    other = to_tensor(distort(image, float(strength)))
                    wanted.append(feature_distance(truth, teacher(other / 127.5 - 1)).item())
                    got.append(picorank(reference, other).item())
    ranks = pd.DataFrame({"wanted": wanted, "got": got}).corr("spearman")
    assert ranks.loc["wanted", "got"] >= 0.95


@pytest.mark.parametrize("name", [*CLASSIC, "jpeg/2", "webp/3", "webp/12", "avif/6"])
@pytest.mark.parametrize("size", [(160, 96), (101, 67)])
def test_every_codec_gives_back_a_similar_picture_of_the_same_size(name, size):
    codec, image = find_baseline(name), picture(*size)
    good = codec.qualities[len(codec.qualities) * 3 // 4]
    decoded = codec.decode(codec.encode(image, good))
    assert (decoded.size, decoded.mode) == (size, "RGB")
    assert psnr(to_tensor(image), to_tensor(decoded)) > 15


@pytest.mark.parametrize("name", CLASSIC)
def test_a_codec_names_its_version_and_its_scale_rises(name):
    codec = find_baseline(name)
    assert re.search(r"(\d+\.){1,3}\d+", codec.describe())
    assert set(LADDERS[name]) <= set(codec.qualities)
    budget = len(codec.encode(picture(), codec.qualities[len(codec.qualities) // 5]))
    fit = largest_within(codec, picture(), size_bytes=budget)
    assert fit is not None and len(fit.data) <= budget
    after = codec.qualities[codec.qualities.index(fit.quality) + 1]
    assert len(codec.encode(picture(), after)) > budget
    with pytest.raises(BitstreamError):
        codec.decode(b"\x01\x02\x03 no picture \x00")


def test_what_a_codec_cannot_do_is_named_and_few_bytes_take_a_reduced_size():
    with pytest.raises(ImageError, match="vvc: libvvenc cannot code 8x6 pixels"):
        find_baseline("vvc").encode(picture(8, 6), 63)
    assert largest_within(find_baseline("vvc"), picture(8, 6), size_bytes=10**6) is None
    with pytest.raises(BitstreamError, match="the last byte must hold two numbers below 2, got 20"):
        find_baseline("jpeg/2").decode(b"abc\x20")
    for factor in ("17", "x"):
        with pytest.raises(ConfigError, match=f"factor must be 1 to 16, got '{factor}'"):
            find_baseline(f"avif/{factor}")
    codecs = family_at_all_sizes("webp")
    assert best_within(codecs, picture(), size_bytes=20) is None
    fit = best_within(codecs, picture(256, 256), size_bytes=90)
    assert fit and fit.codec.name != "webp" and len(fit.data) <= 90


@pytest.mark.parametrize(
    ("name", "value", "entry"),
    [
        ("jpeg", 1, "JPEG q=1 (Pillow)"),
        ("jpeg", 10, "JPEG q=10 (Pillow)"),
        pytest.param("webp", 0, "WebP q=0 m6 (Pillow)", marks=pytest.mark.slow),
        pytest.param("jpeg2000", 800, "JPEG 2000 rate 800 (Pillow)", marks=pytest.mark.slow),
        pytest.param("avif", 0, "AVIF q=0 speed 2 (Pillow)", marks=pytest.mark.slow),
        pytest.param("avif/2", 0, "AVIF q=0 at half size, bicubic back", marks=pytest.mark.slow),
        pytest.param("vvc", 56, "VVC intra qp 56", marks=pytest.mark.slow),
    ],
)
def test_the_protocols_table_comes_out(shared, kodak, name, value, entry):
    points = json.loads((shared / "reference" / "points.json").read_text(encoding="utf-8"))
    table = {p["codec"]: p for p in points["measured_kodak_512_centre"]["points"]}
    codec, bpp, scores = find_baseline(name), [], []
    for path in kodak:
        image = centre_square(Image.open(path))
        data = codec.encode(image, value)
        bpp.append(8 * len(data) / 512**2)
        scores.append(psnr(to_tensor(image), to_tensor(codec.decode(data))).item())
    assert np.mean(bpp) == pytest.approx(table[entry]["bpp"], rel=0.01)
    assert np.mean(scores) == pytest.approx(table[entry]["psnr"], abs=0.02)
