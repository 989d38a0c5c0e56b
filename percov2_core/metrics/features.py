"""SqueezeNet feature distance: DESIGN protocol's `feature_distance`.

The trunk is SqueezeNet v1.1 (Iandola et al. 2016, Caffe weights, which the package lacks). B batch,
H x W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from percov2_core.errors import WeightsError

_POOL_AFTER = {"conv1", "fire3", "fire5"}
_TAPS = ("conv1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9")
_MEAN_BGR = (103.939, 116.779, 123.68)


class SqueezeNetFeatures(nn.Module):
    """The seven activations that the feature distance compares. Frozen."""

    mean: Tensor

    def __init__(self, weights: Path) -> None:
        super().__init__()
        if not weights.is_file():
            raise WeightsError(f"SqueezeNet weights: no file at {str(weights)!r}")
        for name, value in load_file(weights).items():
            self.register_buffer(name.replace(".", "_"), value.float())
        self.register_buffer("mean", torch.tensor(_MEAN_BGR)[:, None, None], persistent=False)

    def _conv(self, x: Tensor, name: str, *, stride: int = 1, padding: int = 0) -> Tensor:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        return F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB float in [-1, 1] -> seven (B, C, H', W') activations."""
        x = (x.flip(1) + 1) * 127.5 - self.mean
        out = []
        for layer in ("conv1", *(f"fire{i}" for i in range(2, 10))):
            if layer == "conv1":
                x = self._conv(x, layer, stride=2)
            else:
                x = self._conv(x, f"{layer}_squeeze1x1")
                wide = self._conv(x, f"{layer}_expand3x3", padding=1)
                x = torch.cat([self._conv(x, f"{layer}_expand1x1"), wide], dim=1)
            if layer in _TAPS:
                out.append(x)
            if layer in _POOL_AFTER:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        return out


def feature_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """(B,) float: mean over layers of the spatial mean of ||a/|a| - b/|b|||^2, as 2 - 2 cos."""
    distances = []
    for x, y in zip(a, b, strict=True):
        x, y = x.float(), y.float()
        # Not F.cosine_similarity: its backward is ten times slower on channels-last activations.
        dot, xx, yy = (x * y).sum(1), (x * x).sum(1), (y * y).sum(1)
        distances.append((2 - 2 * dot * (xx * yy + 1e-6).rsqrt()).mean(dim=(1, 2)))
    return torch.stack(distances).mean(0)
