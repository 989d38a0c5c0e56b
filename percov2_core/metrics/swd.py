"""Patch SWD: sliced Wasserstein distance of Laplacian-pyramid patches (after Karras et al. 2018).

Measures whether detail of the right strength is there at each scale, wherever it is: a measure
of realism that needs no weights, for one picture or for a set. Patches are scaled by the
mean and deviation of the *reference*, not of each side on its own as in the paper, so that
lost contrast counts. B batch, H x W pixels, N patches, L levels, P = 3 * 7 * 7 values a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from percov2_core.metrics import check_side

PATCH_PX = 7
MIN_SIDE_PX = 16  # the coarsest level still holds patches
MAX_LEVELS = 5  # 512, 256, 128, 64 and 32 px for a picture of 512
_PATCHES = 2048  # per picture and level
_DIRECTIONS = 128


def descriptors(x: Tensor) -> list[Tensor]:
    """(1, 3, H, W) RGB float in [0, 255] -> L tensors (N, P), finest level first: patches at
    random places, the same for every picture. ImageError under 16 px."""
    check_side("patch SWD", x.shape, least_px=MIN_SIDE_PX)
    generator = torch.Generator().manual_seed(0)
    return [_patches(level, generator) for level in laplacian_pyramid(x.float() / 127.5 - 1)]


def laplacian_pyramid(x: Tensor) -> list[Tensor]:
    """(B, 3, H, W) -> up to five levels, finest first, the last one low-pass."""
    levels: list[Tensor] = []
    taps = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 5, 5)  # binomial
    while len(levels) < MAX_LEVELS - 1 and min(x.shape[-2:]) >= 2 * MIN_SIDE_PX:
        padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
        small = F.conv2d(padded, kernel, stride=2, groups=x.shape[1])
        levels.append(x - F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False))
        x = small
    return [*levels, x]


def _patches(level: Tensor, generator: torch.Generator) -> Tensor:
    h, w = level.shape[-2] - PATCH_PX + 1, level.shape[-1] - PATCH_PX + 1
    count = min(_PATCHES, h * w)
    where = torch.randperm(h * w, generator=generator)[:count].to(level.device)
    windows = level[0].unfold(1, PATCH_PX, 1).unfold(2, PATCH_PX, 1)  # (3, h, w, 7, 7)
    return windows[:, where // w, where % w].movedim(0, 1).flatten(1)  # (N, P)


def sliced_wasserstein(reference: list[Tensor], other: list[Tensor]) -> Tensor:
    """Mean over levels and 128 random directions of the 1-D Wasserstein distance, times 1000.
    L tensors (N, P), of one picture or concatenated over a set, twice -> () float >= 0."""
    generator = torch.Generator().manual_seed(0)
    distances = [_one_level(a, b, generator) for a, b in zip(reference, other, strict=True)]
    return 1000 * torch.stack(distances).mean()


def _one_level(a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    a, b = a.reshape(len(a), 3, -1), b.reshape(len(b), 3, -1)  # (N, 3, 49)
    mean = a.mean(dim=(0, 2), keepdim=True)
    # The floor is a quarter of a grey level: a flat reference must not magnify rounding.
    scale = a.std(dim=(0, 2), keepdim=True).clamp_min(0.25 / 127.5)
    directions = torch.randn(a[0].numel(), _DIRECTIONS, generator=generator).to(a)
    directions = directions / directions.norm(dim=0)
    x, y = (((v - mean) / scale).flatten(1) @ directions for v in (a, b))  # (N, 128)
    gap: Tensor = x.sort(0).values - y.sort(0).values
    return gap.abs().mean()


def set_swd(references: list[Tensor], others: list[Tensor]) -> Tensor:
    """Patch SWD between two sets of equally many (1, 3, H, W) pictures -> () float."""
    # Pictures of different sizes have different depths: only the levels that all have count.
    a, b = (
        [torch.cat(level) for level in zip(*map(descriptors, side), strict=False)]
        for side in (references, others)
    )
    return sliced_wasserstein(a, b)
