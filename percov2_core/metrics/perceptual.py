"""PicoRank: the bundled perceptual distance, for machines without a network.

A small convolutional net of our own, trained to rank distortions as the SqueezeNet feature
distance does; the code that trained it is that of commit 8b46783. It is not LPIPS and its numbers
compare with nothing but themselves. B batch, H x W pixels.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from percov2_core.metrics import check_side

MIN_SIDE_PX = 32  # two cells at the coarsest tap
WEIGHTS = Path(__file__).parents[1] / "models" / "embedded" / "perceptual.safetensors"
# As many teacher layers stand behind each tap: conv1, fire3, fire5, and fire6 to fire9.
TAP_WEIGHTS = (1 / 7, 1 / 7, 1 / 7, 4 / 7)
_WIDTHS = (32, 48, 96, 128)


class PicoRank(nn.Module):
    """Compares unit-length activations at 1/2, 1/4, 1/8 and 1/16 of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _WIDTHS[0], 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.MaxPool2d(2), nn.Conv2d(before, width, 3, padding=1), nn.ReLU()),
                *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
            )
            for before, width in pairwise(_WIDTHS)
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB float in [-1, 1] -> four (B, C, H / 2^i, W / 2^i) activations;
        ImageError under 32 px."""
        check_side("PicoRank", x.shape, least_px=MIN_SIDE_PX)
        taps = [F.relu(self.stem(x))]
        for block in self.blocks:
            taps.append(block(taps[-1]))
        return taps

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Two results of `features` -> (B,) float in [0, 4], 0 for equal pictures."""
        distances = [distance.mean(dim=(1, 2)) for distance in _distances(a, b)]
        return torch.stack(distances).sum(0)

    def where(self, a: list[Tensor], b: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Two results of `features` -> (B, H, W) float, `size` is H, W: how much every place
        adds. The mean over a picture is close to what `compare` says."""
        shares = [
            F.interpolate(distance[:, None], size, mode="bilinear")[:, 0]
            for distance in _distances(a, b)
        ]
        return torch.stack(shares).sum(0)


def _distances(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Per tap: (B, H / 2^i, W / 2^i) weighted squared distances of unit-length activations."""
    taps = zip(TAP_WEIGHTS, a, b, strict=True)
    return [weight * (_unit(x) - _unit(y)).square().sum(1) for weight, x, y in taps]


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x * (x.square().sum(1, keepdim=True) + 1e-6).rsqrt()


@cache
def load_picorank() -> PicoRank:
    """The bundled network (half precision on disk, float32 in memory), frozen."""
    net = PicoRank()
    net.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items()})
    return net.eval().requires_grad_(False)
