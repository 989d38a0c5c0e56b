"""Large latents in overlapping tiles: the same velocity field, averaged where tiles meet.

H' x W' latent grid; a box is an index into (B, C, H', W').
"""

from __future__ import annotations

from types import EllipsisType

import torch
from torch import Tensor

Box = tuple[EllipsisType, slice, slice]


def _starts(length: int, size: int) -> list[int]:
    """Even starts that cover `length` with windows of `size`, at least a quarter overlapping.

    A patch is two cells, so every start is even.
    """
    if length <= size:
        return [0]
    count = -(-(length - size) // (size - size // 4)) + 1
    return [2 * round((length - size) * i / (count - 1) / 2) for i in range(count)]


def tiles(height: int, width: int, size: int) -> list[Box]:
    """Boxes of at most `size` a side that cover a height x width grid."""
    return [
        (..., slice(y, min(y + size, height)), slice(x, min(x + size, width)))
        for y in _starts(height, size)
        for x in _starts(width, size)
    ]


def _ramp(length: int, device: torch.device) -> Tensor:
    """(length,) positive weights that fall towards both ends of a tile."""
    distance = torch.arange(length, device=device, dtype=torch.float32) + 1
    return torch.minimum(distance, distance.flip(0)).clamp(max=length / 4)


def blend(parts: list[Tensor], boxes: list[Box], shape: torch.Size) -> Tensor:
    """Weighted mean of overlapping (B, C, h', w') parts -> (B, C, H', W')."""
    if len(parts) == 1:
        return parts[0]
    total = parts[0].new_zeros(shape)
    weights = parts[0].new_zeros(shape[-2:])
    for part, box in zip(parts, boxes, strict=True):
        h, w = part.shape[-2:]
        weight = _ramp(h, part.device)[:, None] * _ramp(w, part.device)[None]
        total[box] += part * weight
        weights[box] += weight
    return total / weights
