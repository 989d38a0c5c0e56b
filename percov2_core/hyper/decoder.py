"""Hyper-decoder: codes -> the reconstruction that starts the flow, and what conditions it.

The paper upsamples the codes to the latent grid and concatenates them with the noisy latent
(section 3, after PerCo). The newest description of PerCoV2 starts the flow from a
reconstruction as well; this module makes both. B batch, D code width, h x w token grid.

A distilled decoder is told the guidance: what one step paints is mostly decided here.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from percov2_core.guidance import guidance_features
from percov2_core.hyper.blocks import stack


class Conditions(NamedTuple):
    """What the codes say about the latent, on the latent's own grid."""

    start: Tensor  # (B, 16, H/8, W/8) float, estimate of the latent
    features: Tensor  # (B, C, H/8, W/8) float, for the channels of the patch embedding


class HyperDecoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Doubles the grid after each entry of `widths`, the last time onto the latent grid.

    With `guidance_width` above 0 every block is styled by that many guidance features.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        feature_channels: int = 16,
        widths: tuple[int, ...] = (256,),
        depths: tuple[int, ...] = (5,),
        code_dim: int = 16,
        guidance_width: int = 0,
    ) -> None:
        super().__init__()
        outputs = (*widths[1:], latent_channels + feature_channels)
        self.latent_channels = latent_channels
        self.guidance_width = guidance_width
        self.enter = nn.Conv2d(code_dim, widths[0], 1)
        self.blocks = nn.ModuleList(stack(w, d) for w, d in zip(widths, depths, strict=True))
        self.grow = nn.ModuleList(
            nn.Conv2d(i, 4 * o, 1) for i, o in zip(widths, outputs, strict=True)
        )
        self.styles = nn.ModuleList(
            nn.ModuleList(_neutral_style(guidance_width, w) for _ in range(d))
            for w, d in zip(widths, depths, strict=True)
            if guidance_width
        )

    def forward(self, codes: Tensor, guidance: Tensor) -> Conditions:
        """(B, D, h, w) float codes, (B,) float guidance -> start and features, latent grid."""
        told = guidance_features(guidance, self.guidance_width).to(codes.dtype)
        x: Any = self.enter(codes)
        for i, (blocks, grow) in enumerate(zip(self.blocks, self.grow, strict=True)):
            for j, block in enumerate(cast(nn.Sequential, blocks)):
                x = block(x, self._style(i, j, told))
            x = F.pixel_shuffle(grow(x), 2)
        x = x.float()
        return Conditions(x[:, : self.latent_channels], x[:, self.latent_channels :])

    def _style(self, stage: int, block: int, told: Tensor) -> Tensor | None:
        if not self.guidance_width:
            return None
        layers = cast(nn.ModuleList, self.styles[stage])
        style: Tensor = layers[block](told)
        return style


def _neutral_style(inputs: int, channels: int) -> nn.Linear:
    """A map to the style of one block that starts as "no change"."""
    layer = nn.Linear(inputs, 2 * channels)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
