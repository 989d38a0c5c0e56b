"""Convolution blocks that the hyper-encoder and the hyper-decoder are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """ConvNeXt block (Liu et al. 2022): depthwise 7 x 7, then a two-layer map per cell.

    (B, C, h, w) -> (B, C, h, w). A style (B, 2 C) scales and shifts the normed activations
    (FiLM, Perez et al. 2018).
    """

    def __init__(self, channels: int, *, kernel: int = 7) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels,
            channels,
            kernel,
            padding=kernel // 2,
            groups=channels,
        )
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        y = self.norm(self.depthwise(x).movedim(1, -1))
        if style is not None:
            scale, shift = style[:, None, None].chunk(2, dim=-1)
            y = y * (1 + scale) + shift
        y = self.narrow(F.gelu(self.widen(y), approximate="tanh"))
        out: Tensor = x + y.movedim(-1, 1)
        return out


def stack(channels: int, depth: int) -> nn.Sequential:
    """`depth` blocks in a row."""
    return nn.Sequential(*(ConvBlock(channels) for _ in range(depth)))
