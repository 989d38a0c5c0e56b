"""DISTS (Ding et al. 2020), structure and texture by VGG16's features, without torchvision.

At the picture's own size, as its authors' package compares by default. B batch, H x W pixels.
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

MIN_SIDE_PX = 32  # two cells at the coarsest stage
FILES = (
    File(
        "vgg16-397923af.pth",
        "397923af",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
    ),
    File(
        "weights.pt",
        "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
        "https://raw.githubusercontent.com/dingkeyan93/DISTS/master/DISTS_pytorch/weights.pt",
        "DISTS_pytorch",
        "weights.pt",
    ),
)
_STAGES = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))
_WIDTHS = (3, *(stage[1] for stage in _STAGES))  # the picture itself counts as well
_TINY = 1e-6


class Dists(nn.Module):
    """Compares means and covariances of every channel. Frozen. The trunk is named as torchvision
    does ("features.0.weight"); `weights` hold alpha and beta. WeightsError if a tensor is missing
    or has another shape."""

    mean: Tensor
    deviation: Tensor
    kernel: Tensor

    def __init__(self, trunk: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width, count in _STAGES:
            # In the place of VGG's pool, which aliases.
            layers += [nn.Identity()] if layers else []
            for i in range(count):
                layers += [nn.Conv2d(width if i else before, width, 3, padding=1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.alpha, self.beta = (nn.Parameter(torch.empty(sum(_WIDTHS))) for _ in range(2))
        own = {name: value for name, value in trunk.items() if name.startswith("features.")}
        try:
            own |= {name: weights[name].flatten() for name in ("alpha", "beta")}
            self.load_state_dict(own)
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"DISTS weights do not fit: {error}") from error
        for name, rgb in (("mean", [0.485, 0.456, 0.406]), ("deviation", [0.229, 0.224, 0.225])):
            self.register_buffer(name, torch.tensor(rgb)[:, None, None], persistent=False)
        taps = torch.tensor([0.5, 1.0, 0.5])
        self.register_buffer("kernel", taps[:, None] * taps / 4, persistent=False)
        self.eval().requires_grad_(False)

    def taps(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB float in [-1, 1] -> the picture in [0, 1] and five activations;
        ImageError under 32 px."""
        check_side("DISTS", x.shape, least_px=MIN_SIDE_PX)
        picture = (x + 1) / 2
        taps, x = [picture], (picture - self.mean) / self.deviation
        for layer in self.features:
            if isinstance(layer, nn.Identity):
                taps.append(x)
                x = self._pool(x)
            x = layer(x)
        return [*taps, x]

    def _pool(self, x: Tensor) -> Tensor:
        """Root mean square under a window of 3, every second place."""
        kernel = self.kernel.expand(x.shape[1], 1, 3, 3)
        squares = F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1])
        return (squares + 1e-12).sqrt()

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Two results of `taps` -> (B,) float, 0 for equal pictures."""
        whole = self.alpha.sum() + self.beta.sum()
        alike = torch.zeros(len(a[0])).to(a[0])
        shares = (torch.split(part.data, list(_WIDTHS)) for part in (self.alpha, self.beta))
        for x, y, alpha, beta in zip(a, b, *shares, strict=True):
            mean_x, mean_y = (v.mean((2, 3), keepdim=True) for v in (x, y))
            texture = (2 * mean_x * mean_y + _TINY) / (mean_x**2 + mean_y**2 + _TINY)
            xx, yy = ((v - m).square().mean((2, 3)) for v, m in ((x, mean_x), (y, mean_y)))
            covariance = (x * y).mean((2, 3)) - (mean_x * mean_y)[..., 0, 0]
            structure = (2 * covariance + _TINY) / (xx + yy + _TINY)
            alike += (alpha * texture[..., 0, 0] + beta * structure).sum(1)
        return 1 - alike / whole


@cache
def load_dists() -> Dists:
    """The published metric; UnavailableError if its weights cannot be had here."""
    return Dists(*load_files("DISTS", FILES))
