"""LPIPS v0.1 on AlexNet (Zhang et al. 2018) without torchvision: the trunk is five convolutions.

B batch, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percov2_core.errors import WeightsError
from percov2_core.metrics import check_side
from percov2_core.metrics.published import File, load_files

MIN_SIDE_PX = 32  # the trunk's pools need that much
FILES = (
    File(
        "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    ),
    File(
        "alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master"
        "/lpips/weights/v0.1/alex.pth",
        "lpips",
        "weights/v0.1/alex.pth",
    ),
)
_WIDTHS = (64, 192, 384, 256, 256)


class Lpips(nn.Module):
    """Weighted squared distances of unit-length AlexNet activations after each ReLU. Frozen.
    The trunk is named as torchvision does ("features.0.weight"), the heads as lpips does
    ("lin0.model.1.weight"); WeightsError if a tensor is missing or has another shape."""

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        super().__init__()
        a, b, c, d, e = _WIDTHS
        self.features = nn.Sequential(
            *(nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(a, b, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(b, c, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(c, d, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(d, e, 3, 1, 1), nn.ReLU()),
        )
        self.heads = nn.ParameterList(torch.empty(width) for width in _WIDTHS)
        try:
            own = {name: value for name, value in trunk.items() if name.startswith("features.")}
            for i in range(len(_WIDTHS)):
                own[f"heads.{i}"] = heads[f"lin{i}.model.1.weight"].flatten()
            self.load_state_dict(own)
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"LPIPS weights do not fit: {error}") from error
        for name, rgb in (("shift", [-0.030, -0.088, -0.188]), ("scale", [0.458, 0.448, 0.450])):
            self.register_buffer(name, torch.tensor(rgb)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def taps(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB float in [-1, 1] -> five activations; ImageError under 32 px."""
        check_side("LPIPS", x.shape, least_px=MIN_SIDE_PX)
        x, taps = (x - self.shift) / self.scale, []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                taps.append(x)
        return taps

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Two results of `taps` -> (B,) float >= 0."""
        distances = [
            ((F.normalize(x) - F.normalize(y)).square() * head[:, None, None])
            .sum(1)
            .mean(dim=(1, 2))
            for x, y, head in zip(a, b, self.heads, strict=True)
        ]
        return torch.stack(distances).sum(0)


@cache
def load_lpips() -> Lpips:
    """The published metric; UnavailableError if its weights cannot be had here."""
    return Lpips(*load_files("LPIPS", FILES))
