"""Flow transformer: diffusers' `SD3Transformer2DModel` with the hyper-latent on its input channels.

Rectified flow: x_t = (1 - t) z + t (start + s e), velocity v = start + s e - z, with e standard
normal. `start = 0, s = 1` is the paper's flow from pure noise; a `start` predicted from the
codes is its newest description. B batch, H' x W' latent grid, t in (0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from percov2_core.errors import ConfigError
from percov2_core.flow.text import TextEmbedding

TIMESTEPS = 1000  # SD3 embeds time as 1000 t
TOLD_MAX = 4.0  # the greatest guidance that a network is told; distillation goes as far


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowConfig:
    """How the transformer's output is read."""

    start: str = "noise"  # or "codes", to flow from the hyper-decoder's reconstruction
    noise_scale: float = 1.0  # s above; for "codes", about the error of the reconstruction
    guidance_width: int = 0  # numbers beside the pooled caption that tell a distilled network
    # How much of a guidance above 1 extrapolates the caption's part: 1 is classifier-free guidance,
    # 0 leaves guidance to the distilled network alone.
    text_guidance: float = 1.0
    tile: int = 64  # largest side of the latent grid seen at once; larger pictures are tiled

    def __post_init__(self) -> None:
        if self.start not in ("codes", "noise"):
            raise ConfigError(f"flow start must be 'codes' or 'noise', got {self.start!r}")


class Conditions(NamedTuple):
    """What the codes say, on the latent grid, and what the caption says."""

    start: Tensor  # (B, 16, H', W') float, the reconstruction that the flow starts from
    features: Tensor  # (B, C, H', W') float, for the channels of the patch embedding
    text: TextEmbedding


class FlowModel(nn.Module):
    """Velocity of the flow, given codes and caption."""

    def __init__(self, transformer: nn.Module, config: FlowConfig) -> None:
        super().__init__()
        self.transformer: Any = transformer
        self.config = config

    def first(self, conditions: Conditions, noise: Tensor) -> Tensor:
        """(B, 16, H', W') the flow's sample at t = 1."""
        if self.config.start == "noise":
            return noise
        return conditions.start + self.config.noise_scale * noise

    def forward(self, x: Tensor, t: Tensor, conditions: Conditions, guidance: Tensor) -> Tensor:
        """(B, 16, H', W') float velocity at `x`, a sample of that shape, and the times `t`, (B,)
        float in (0, 1]. `guidance`, (B,) float >= 1: a network that is not distilled ignores it."""
        text, width = conditions.text, self.config.guidance_width
        if width:
            extra = guidance_features(guidance, width).to(text.pooled.dtype)
            text = TextEmbedding(text.sequence, torch.cat([text.pooled, extra], dim=1))
        if self.config.start == "noise":
            return self._network(x, conditions.features, t, text)
        # The network sees and predicts unit-variance numbers: v is a rotation of the
        # residual x - start by the angle of t, plus s / n times the output
        # (Karras et al. 2022, table 1, carried over to straight paths).
        s, tt = self.config.noise_scale, t[:, None, None, None]
        n = ((1 - tt) ** 2 + tt**2).sqrt()
        residual = (x - conditions.start) / n
        channels = torch.cat([conditions.start, conditions.features], dim=1)
        out = self._network(residual / s, channels, t, text)
        return ((2 * tt - 1) * residual - s * out) / n

    def _network(self, x: Tensor, channels: Tensor, t: Tensor, text: TextEmbedding) -> Tensor:
        dtype = self.transformer.dtype
        out: Tensor = self.transformer(
            hidden_states=torch.cat([x, channels.to(x.dtype)], dim=1).to(dtype),
            encoder_hidden_states=text.sequence.to(dtype),
            pooled_projections=text.pooled.to(dtype),
            timestep=t * TIMESTEPS,
            return_dict=False,
        )[0]
        return out.float()


def guidance_features(guidance: Tensor, width: int) -> Tensor:
    """(B,) float guidance >= 1 -> (B, width) float: sines and cosines of log2(guidance)."""
    steps = math.pi / 4 * torch.arange(1, width // 2 + 1, device=guidance.device)
    angles = torch.log2(guidance.clamp(1.0, TOLD_MAX))[:, None] * steps
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@torch.no_grad()
def extend_patch_embedding(
    transformer: SD3Transformer2DModel, extra_channels: int
) -> SD3Transformer2DModel:
    """Add input channels behind the others, in place: old weights kept, new ones zero, so that
    before training the output does not depend on what the new channels hold."""
    patches = transformer.pos_embed.proj
    wider = F.pad(patches.weight, (0, 0, 0, 0, 0, extra_channels))
    patches.weight = nn.Parameter(wider, requires_grad=patches.weight.requires_grad)
    patches.in_channels += extra_channels
    transformer.register_to_config(in_channels=patches.in_channels)
    return transformer
