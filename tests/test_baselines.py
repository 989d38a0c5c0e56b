"""Classic codecs: sizes, versions, budgets, damaged files, and the protocol's table."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from percov2_core.baselines import CLASSIC
from percov2_core.baselines.base import best_within, largest_within
from percov2_core.baselines.classic import LADDERS, family_at_all_sizes, find_baseline
from percov2_core.errors import BitstreamError, ConfigError, ImageError
from percov2_core.evaluation.protocol import centre_square, to_tensor
from percov2_core.metrics.distortion import psnr
from tests.tiny import picture


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
