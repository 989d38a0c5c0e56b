"""Euler sampling of the flow, with guidance in one batched forward.

B batch, H' x W' latent grid, t time from 1 (start) to 0 (latent).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from percov2_core.flow.text import TextEmbedding
from percov2_core.flow.tiling import blend, tiles
from percov2_core.flow.transformer import Conditions, FlowModel


@dataclass(frozen=True, slots=True)
class SamplerStep:
    """Progress of `sample`, after each step."""

    index: int  # 1..total
    total: int
    estimate: Callable[[], Tensor]  # -> (B, 16, H', W') where the flow is heading


def draw_noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Standard normal noise from `seed`, drawn on the CPU so that a seed means one picture."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device)


def sample(
    flow: FlowModel,
    conditions: Conditions,
    null: TextEmbedding,
    *,
    steps: int,
    guidance: float,
    noise: Tensor,
    scheduler: FlowMatchEulerDiscreteScheduler,
    on_step: Callable[[SamplerStep], None] | None = None,
) -> Tensor:
    """Integrate the flow from t = 1 to 0.

    Args:
        null: embedding of the empty caption, one row.
        guidance: above 1, the caption's part of the velocity is extrapolated by it
            (classifier-free guidance, Ho and Salimans 2022); a distilled network is told the
            value as well.
        noise: (B, 16, H', W') standard normal.
        on_step: called after each step; what it raises ends the sampling.

    Returns:
        (B, 16, H', W') float latent.
    """
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
    sigmas = [float(s) for s in scheduler.sigmas]  # copied once: no transfer inside the loop
    x = flow.first(conditions, noise)
    for i in range(steps):
        v = velocity(flow, x, sigmas[i], conditions, null, guidance=guidance)
        if on_step is not None:
            arrived = x - sigmas[i] * v
            on_step(SamplerStep(i + 1, steps, lambda z=arrived: z))  # type: ignore[misc]
        x = x + (sigmas[i + 1] - sigmas[i]) * v
    return x


def velocity(
    flow: FlowModel,
    x: Tensor,
    t: float,
    conditions: Conditions,
    null: TextEmbedding,
    *,
    guidance: float,
) -> Tensor:
    """Guided velocity of the whole picture, tile by tile where it is large."""
    size = flow.config.tile
    parts = []
    boxes = tiles(x.shape[-2], x.shape[-1], size)
    for box in boxes:
        part = Conditions(conditions.start[box], conditions.features[box], conditions.text)
        parts.append(_guided(flow, x[box], t, part, null, guidance))
    return blend(parts, boxes, x.shape)


def _guided(
    flow: FlowModel, x: Tensor, t: float, c: Conditions, null: TextEmbedding, guidance: float
) -> Tensor:
    scale = 1.0 + flow.config.text_guidance * (guidance - 1.0)
    count = x.shape[0]
    if scale == 1.0:
        return flow(x, _full(x, t), c, _full(x, guidance))  # type: ignore[no-any-return]
    both = Conditions(
        torch.cat([c.start] * 2),
        torch.cat([c.features] * 2),
        TextEmbedding(
            torch.cat([c.text.sequence, null.sequence.expand_as(c.text.sequence)]),
            torch.cat([c.text.pooled, null.pooled.expand_as(c.text.pooled)]),
        ),
    )
    xx = torch.cat([x, x])
    v = flow(xx, _full(xx, t), both, _full(xx, guidance))
    with_text, without = v.split(count)
    return without + scale * (with_text - without)  # type: ignore[no-any-return]


def _full(x: Tensor, value: float) -> Tensor:
    return torch.full((x.shape[0],), value, device=x.device)
