"""LPIPS v0.1 on AlexNet (Zhang et al. 2018) without torchvision: the trunk is five convolutions.

Weights are not part of the package. They are looked for in the folder that
PERCOV2_LPIPS_WEIGHTS names, then in the cache, then downloaded with a checksum. Where none can
be had, LPIPS is unavailable. B batch, H x W pixels.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percov2_core.errors import ImageError, UnavailableError, WeightsError

ENVIRONMENT = "PERCOV2_LPIPS_WEIGHTS"
MIN_SIDE_PX = 32  # the trunk's pools need that much
_TIMEOUT_S = 60


class WeightsFile(NamedTuple):
    """A file of the published weights."""

    name: str
    url: str
    sha256: str


TRUNK = WeightsFile(
    "alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
)
HEADS = WeightsFile(
    "alex.pth",
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master"
    "/lpips/weights/v0.1/alex.pth",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
)


class _Layer(NamedTuple):
    place: int  # in torchvision's `features`
    channels_in: int
    channels_out: int
    kernel: int
    stride: int
    padding: int
    pooled_before: bool


_LAYERS = (
    _Layer(0, 3, 64, 11, 4, 2, False),
    _Layer(3, 64, 192, 5, 1, 2, True),
    _Layer(6, 192, 384, 3, 1, 1, True),
    _Layer(8, 384, 256, 3, 1, 1, False),
    _Layer(10, 256, 256, 3, 1, 1, False),
)


class Lpips(nn.Module):
    """Weighted squared distances of unit-length AlexNet activations after each ReLU."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(c.channels_in, c.channels_out, c.kernel, c.stride, c.padding) for c in _LAYERS
        )
        self.heads = nn.ParameterList(torch.rand(c.channels_out) for c in _LAYERS)
        shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def load_published(self, trunk: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        """Take torchvision's trunk ("features.0.weight") and lpips' heads ("lin0.model.1.weight").

        Raises:
            WeightsError: if a tensor is missing or has another shape.
        """
        try:
            for layer, conv in zip(_LAYERS, self.convs, strict=True):
                prefix = f"features.{layer.place}."
                conv.load_state_dict({k: trunk[prefix + k] for k in ("weight", "bias")})
            for i, head in enumerate(self.heads):
                head.data.copy_(heads[f"lin{i}.model.1.weight"].reshape(head.shape))
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"LPIPS weights do not fit: {error}") from error

    def features(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB float in [-1, 1] -> five activations."""
        x = (x - self.shift) / self.scale
        taps = []
        for layer, conv in zip(_LAYERS, self.convs, strict=True):
            x = F.relu(conv(F.max_pool2d(x, 3, 2) if layer.pooled_before else x))
            taps.append(x)
        return taps

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two (B, 3, H, W) RGB float in [-1, 1] -> (B,) float >= 0.

        Raises:
            ImageError: if a side is under 32 px.
        """
        if min(a.shape[-2:]) < MIN_SIDE_PX:
            raise ImageError(
                f"LPIPS needs {MIN_SIDE_PX} px a side, got {a.shape[-1]}x{a.shape[-2]}"
            )
        distances = [
            ((_unit(x) - _unit(y)).square() * head[:, None, None]).sum(1).mean(dim=(1, 2))
            for x, y, head in zip(self.features(a), self.features(b), self.heads, strict=True)
        ]
        return torch.stack(distances).sum(0)


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def cache_folder() -> Path:
    """Where downloads are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "percov2" / "lpips"


def find_weights(file: WeightsFile) -> Path:
    """The checked file: from PERCOV2_LPIPS_WEIGHTS, else from the cache, else downloaded.

    Raises:
        UnavailableError: if it can be had from nowhere.
        WeightsError: if the file that was named or cached has another checksum.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        return _checked(Path(named) / file.name, file)
    path = cache_folder() / file.name
    if not path.is_file():
        _download(file, path)
    return _checked(path, file)


def _checked(path: Path, file: WeightsFile) -> Path:
    if not path.is_file():
        raise UnavailableError(f"LPIPS is unavailable: {ENVIRONMENT} holds no {file.name}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != file.sha256:
        raise WeightsError(f"{path}: SHA-256 must be {file.sha256}, got {digest}")
    return path


def _download(file: WeightsFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with urllib.request.urlopen(file.url, timeout=_TIMEOUT_S) as response:
            partial.write_bytes(response.read())
    except OSError as error:
        raise UnavailableError(
            f"LPIPS is unavailable: {file.url} cannot be reached ({error}); put {file.name} "
            f"into a folder and name it in {ENVIRONMENT}"
        ) from error
    partial.replace(path)


@cache
def load_lpips() -> Lpips:
    """The published metric, frozen.

    Raises:
        UnavailableError: if the weights cannot be had here.
    """
    net = Lpips()
    trunk, heads = (
        torch.load(find_weights(file), map_location="cpu", weights_only=True)
        for file in (TRUNK, HEADS)
    )
    net.load_published(trunk, heads)
    return net.eval().requires_grad_(False)
