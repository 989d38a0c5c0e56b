"""Euler sampling of the flow, with guidance in one batched forward.

B batch, H' x W' latent grid, t time from 1 (start) to 0 (latent). Large latents are cut into
overlapping tiles, the velocities averaged where tiles meet.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from itertools import pairwise
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from percov2_core.config import Box
from percov2_core.flow.text import TextEmbedding
from percov2_core.flow.transformer import Conditions, FlowModel

Times = TypeVar("Times", Tensor, NDArray[np.float32])
TimesOf: TypeAlias = Callable[[int, int, int], list[float]]  # steps, H', W' -> times, the last is 0


def shifted(t: Times, shift: float) -> Times:
    """Move times in [0, 1] towards 1 (Esser et al. 2024, equation 23); a shift of 1 moves none."""
    return shift * t / (1 + (shift - 1) * t)


def sigmas(steps: int, shift: float) -> list[float]:
    """The times between which `steps` Euler steps go: equal steps from 1, shifted, then 0. In
    float32. A model over Stable Diffusion 3 takes its scheduler's: `weights.base.load_times`."""
    even = np.linspace(1.0, 1.0 / steps, steps).astype(np.float32)
    return [*shifted(even, shift).tolist(), 0.0]


def draw_noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Standard normal noise from `seed`, drawn on the CPU so that a seed means one picture."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device)


def sample(
    flow: FlowModel,
    conditions: Conditions,
    null: TextEmbedding,
    *,
    times: Sequence[float],
    guidance: float,
    noise: Tensor,
    steer: Callable[[Tensor, float], Tensor] | None = None,
) -> Generator[Tensor | None, None, None]:
    """Integrate the flow from the first of `times` to 0, one step between each two (see `sigmas`).
    `null` is the embedding of the empty caption, one row; `noise` is (B, 16, H', W') standard
    normal. `steer` changes what the flow is heading for at a time. By a `guidance` above 1 the
    caption's part of the velocity is extrapolated (classifier-free guidance, Ho and Salimans 2022);
    a distilled network is told the value as well. Yields the (B, 16, H', W') float latent that the
    flow is heading for after each step, arriving at the last one; of a large picture None before
    it, after each tile but the last."""
    start, features, text = conditions
    boxes = tiles(noise.shape[-2], noise.shape[-1], flow.config.tile)
    x = flow.first(conditions, noise)
    velocity = partial(_velocity, flow, null=null, guidance=guidance)
    for now, then in pairwise(times):
        parts: list[Tensor] = []
        for b in boxes:
            if parts:
                yield None
            parts.append(velocity(x[b], now, Conditions(start[b], features[b], text)))
        v = blend(parts, boxes, x.shape)
        if steer is not None:
            v = (x - steer(x - now * v, now)) / now
        yield x - now * v
        x = x + (then - now) * v


def _velocity(
    flow: FlowModel, x: Tensor, t: float, c: Conditions, *, null: TextEmbedding, guidance: float
) -> Tensor:
    """Of one tile; with guidance by the caption, that of the empty caption is asked beside it."""
    weight = flow.config.text_guidance
    scale = guidance * weight + (1.0 - weight)
    if scale != 1.0:
        text = (torch.cat([b.expand_as(a), a]) for a, b in zip(c.text, null, strict=True))
        c = Conditions(torch.cat([c.start] * 2), torch.cat([c.features] * 2), TextEmbedding(*text))
        x = torch.cat([x, x])
    times, guidances = (torch.full(x.shape[:1], value, device=x.device) for value in (t, guidance))
    v: Tensor = flow(x, times, c, guidances)
    if scale == 1.0:
        return v
    without, with_text = v.chunk(2)
    return without + scale * (with_text - without)


def tiles(height: int, width: int, size: int) -> list[Box]:
    """Boxes of at most `size` a side that cover a height x width grid."""
    return [
        (..., slice(y, min(y + size, height)), slice(x, min(x + size, width)))
        for y in _starts(height, size)
        for x in _starts(width, size)
    ]


def _starts(length: int, size: int) -> list[int]:
    """Starts that cover `length` with windows of `size`, at least a quarter overlapping; even,
    because a patch is two cells."""
    if length <= size:
        return [0]
    count = -(-(length - size) // (size - size // 4)) + 1
    return [2 * round((length - size) * i / (count - 1) / 2) for i in range(count)]


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


def _ramp(length: int, device: torch.device) -> Tensor:
    """(length,) positive weights that fall towards both ends of a tile."""
    distance = torch.arange(length, device=device, dtype=torch.float32) + 1
    return torch.minimum(distance, distance.flip(0)).clamp(max=length / 4)
