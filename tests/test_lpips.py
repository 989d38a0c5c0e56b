"""LPIPS without torchvision: its arithmetic, and every way in which its weights can be absent."""

import urllib.request
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

from percov2_core.errors import ImageError, UnavailableError, WeightsError
from percov2_core.metrics.lpips import ENVIRONMENT, HEADS, TRUNK, Lpips, find_weights, load_lpips

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


def test_weights_that_do_not_fit_or_cannot_be_had_are_named(tmp_path, monkeypatch):
    trunk, heads = random_weights()
    with pytest.raises(ImageError, match="LPIPS needs 32 px a side, got 31x31"):
        Lpips(trunk, heads).taps(pair(31)[0])
    del trunk["features.8.bias"]
    with pytest.raises(WeightsError, match=r"(?s)LPIPS weights do not fit: .*features\.8\.bias"):
        Lpips(trunk, heads)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    with pytest.raises(UnavailableError, match=f"{ENVIRONMENT} holds no alexnet-owt"):
        find_weights(TRUNK)
    (tmp_path / "alex.pth").write_bytes(b"not the weights")
    with pytest.raises(WeightsError, match="SHA-256 must be df73285e35b2"):
        find_weights(HEADS)
    monkeypatch.delenv(ENVIRONMENT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", Mock(side_effect=OSError("no network")))
    with pytest.raises(UnavailableError, match=r"LPIPS is unavailable: https://download\.pytorch"):
        load_lpips()
