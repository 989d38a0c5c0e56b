"""Hyper-decoder: codes -> the reconstruction that starts the flow, and what conditions it.

The paper upsamples the codes to the latent grid and concatenates them with the noisy latent
(section 3, after PerCo). The newest description of PerCoV2 starts the flow from a
reconstruction as well; this module makes both. B batch, D code width, h x w token grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from percov2_core.hyper.blocks import stack


class Conditions(NamedTuple):
    """What the codes say about the latent, on the latent's own grid."""

    start: Tensor  # (B, 16, H/8, W/8) float, estimate of the latent
    features: Tensor  # (B, C, H/8, W/8) float, for the channels of the patch embedding


class HyperDecoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Doubles the grid after each entry of `widths`, the last time onto the latent grid."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        feature_channels: int = 16,
        widths: tuple[int, ...] = (256,),
        depths: tuple[int, ...] = (5,),
        code_dim: int = 16,
    ) -> None:
        super().__init__()
        outputs = (*widths[1:], latent_channels + feature_channels)
        self.latent_channels = latent_channels
        self.enter = nn.Conv2d(code_dim, widths[0], 1)
        self.blocks = nn.ModuleList(stack(w, d) for w, d in zip(widths, depths, strict=True))
        self.grow = nn.ModuleList(
            nn.Conv2d(i, 4 * o, 1) for i, o in zip(widths, outputs, strict=True)
        )

    def forward(self, codes: Tensor) -> Conditions:
        """(B, D, h, w) float -> start and features on the latent grid."""
        x = self.enter(codes)
        for blocks, grow in zip(self.blocks, self.grow, strict=True):
            x = F.pixel_shuffle(grow(blocks(x)), 2)
        x = x.float()
        return Conditions(x[:, : self.latent_channels], x[:, self.latent_channels :])
