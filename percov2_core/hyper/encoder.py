"""Hyper-encoder: latent -> one vector per token.

B batch, D code width, h x w token grid; the latent grid is a power of two finer.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from percov2_core.hyper.blocks import stack


class HyperEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Halves the grid once per entry of `widths`, with `depths` blocks after each halving."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        widths: tuple[int, ...] = (192,),
        depths: tuple[int, ...] = (4,),
        code_dim: int = 16,
    ) -> None:
        super().__init__()
        inputs = (latent_channels, *widths[:-1])
        self.shrink = nn.ModuleList(
            nn.Conv2d(4 * i, o, 1) for i, o in zip(inputs, widths, strict=True)
        )
        self.blocks = nn.ModuleList(stack(w, d) for w, d in zip(widths, depths, strict=True))
        self.norm = nn.LayerNorm(widths[-1])
        self.out = nn.Linear(widths[-1], code_dim)

    def forward(self, z: Tensor) -> Tensor:
        """(B, 16, H/8, W/8) float -> (B, D, h, w) float."""
        x: Any = z
        for shrink, blocks in zip(self.shrink, self.blocks, strict=True):
            x = blocks(shrink(F.pixel_unshuffle(x, 2)))
        out: Tensor = self.out(self.norm(x.movedim(1, -1))).movedim(-1, 1)
        return out
