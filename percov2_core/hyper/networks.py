"""The networks between the latent and the tokens: hyper-encoder, quantiser, hyper-decoder.

The paper upsamples the codes to the latent grid and concatenates them with the noisy latent
(section 3, after PerCo). The newest description of PerCoV2 starts the flow from a
reconstruction as well; the hyper-decoder makes both.

B batch, D code width, h x w token grid, K codebook size; the latent grid is a power of two finer.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from percov2_core.errors import BitstreamError


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


class VectorQuantizer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A codebook of K unit vectors: hyper-latent vectors <-> tokens, the nearest by angle."""

    @register_to_config
    def __init__(self, codebook_size: int = 256, code_dim: int = 16) -> None:
        super().__init__()
        codebook = F.normalize(torch.randn(codebook_size, code_dim), dim=-1)
        self.codebook = nn.Parameter(codebook, requires_grad=False)  # (K, D)

    def tokens(self, vectors: Tensor) -> Tensor:
        """(B, D, h, w) float -> (B, h, w) int64 in [0, K): the nearest code of each cell."""
        unit = F.normalize(vectors.float().movedim(1, -1), dim=-1)
        return (unit @ self.codebook.float().T).argmax(dim=-1)

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, h, w) int64 -> (B, D, h, w) float codes. The decoder's half of `tokens`.

        Raises:
            BitstreamError: if a token is outside the codebook.
        """
        size = self.codebook.shape[0]
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            raise BitstreamError(f"tokens must be in [0, {size}), got up to {int(tokens.max())}")
        return F.embedding(tokens, self.codebook.float()).movedim(-1, 1)


class Conditions(NamedTuple):
    """What the codes say about the latent, on the latent's own grid."""

    start: Tensor  # (B, 16, H/8, W/8) float, estimate of the latent
    features: Tensor  # (B, C, H/8, W/8) float, for the channels of the patch embedding


class HyperDecoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Doubles the grid after each entry of `widths`, the last time onto the latent grid.

    With `guidance_width` above 0 every block is styled by that many numbers about the guidance
    (`flow.transformer.guidance_features`): what one step paints is mostly decided here.
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
            nn.ModuleList(_silent(guidance_width, 2 * w) for _ in range(d))
            for w, d in zip(widths, depths, strict=True)
            if guidance_width
        )

    def forward(self, codes: Tensor, told: Tensor) -> Conditions:
        """(B, D, h, w) float codes, (B, guidance_width) float -> start, features, latent grid."""
        told, styles = told.to(codes.dtype), cast(Any, self.styles)
        x: Any = self.enter(codes)
        for i, (blocks, grow) in enumerate(zip(self.blocks, self.grow, strict=True)):
            for j, block in enumerate(cast(nn.Sequential, blocks)):
                x = block(x, styles[i][j](told) if self.guidance_width else None)
            x = F.pixel_shuffle(grow(x), 2)
        x = x.float()
        return Conditions(x[:, : self.latent_channels], x[:, self.latent_channels :])


def _silent(inputs: int, outputs: int) -> nn.Linear:
    """A map that starts as zero: what is added through it changes nothing before training."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ConvBlock(nn.Module):
    """ConvNeXt block (Liu et al. 2022): depthwise 7 x 7, then a two-layer map per cell.

    (B, C, h, w) -> (B, C, h, w). A style (B, 2 C) scales and shifts the normed activations
    (FiLM, Perez et al. 2018).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = _silent(4 * channels, channels)

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
