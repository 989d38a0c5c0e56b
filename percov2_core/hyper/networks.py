"""The networks between the latent and the tokens: hyper-encoder, quantiser, hyper-decoder.

The paper upsamples the codes to the latent grid and concatenates them with the noisy latent
(section 3, after PerCo). The newest description of PerCoV2 starts the flow from a
reconstruction as well; the hyper-decoder makes both.

B batch, D code width, h x w token grid, K codebook size; the latent grid is a power of two finer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from percov2_core.errors import BitstreamError

_CELLS_AT_ONCE = 1024  # of a block's two-layer map
_GELU = (2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715)


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


class Codes(NamedTuple):
    """What is known of the tokens, as vectors: what the hyper-decoder starts from."""

    fine: Tensor  # (B, D, h, w) float, the expected code where the token was not sent
    sent: Tensor | None = None  # (B, 1, h, w) float, 1 where it was sent, else 0
    coarse: Tensor | None = None  # (B, D, hp, wp) float, of the coarser level; 0 if left out
    raised: Tensor | None = None  # what `HyperDecoder.raise_coarse` makes of it, if that is known


class Conditions(NamedTuple):
    """What the codes say about the latent, on the latent's own grid."""

    start: Tensor  # (B, 16, H/8, W/8) float, estimate of the latent
    features: Tensor  # (B, C, H/8, W/8) float, for the channels of the patch embedding


class HyperDecoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Doubles the grid after each entry of `widths`, the last time onto the latent grid.

    With `guidance_width` above 0 every block is styled by that many numbers about the guidance
    (`flow.transformer.guidance_features`): what one step paints is mostly decided here.

    With `coarse_widths`, the codes of a coarser level are doubled likewise up to the grid of the
    fine ones, and join them there: they know colour and layout, the fine ones structure.
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
        coarse_widths: tuple[int, ...] = (),
        coarse_depths: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        outputs = (*widths[1:], latent_channels + feature_channels)
        self.latent_channels = latent_channels
        self.guidance_width = guidance_width
        # Beside the codes, a channel that says which were sent.
        self.enter = nn.Conv2d(code_dim + bool(coarse_widths), widths[0], 1)
        self.blocks = nn.ModuleList(stack(w, d) for w, d in zip(widths, depths, strict=True))
        self.grow = nn.ModuleList(
            nn.Conv2d(i, 4 * o, 1) for i, o in zip(widths, outputs, strict=True)
        )
        self.styles = _styles(guidance_width, widths, depths)
        if coarse_widths:
            self.coarse = CoarseTower(coarse_widths, coarse_depths, code_dim, guidance_width)
            self.join = nn.Conv2d(coarse_widths[-1], widths[0], 1)
            for parameter in self.join.parameters():
                nn.init.zeros_(parameter)

    def forward(self, codes: Codes, told: Tensor) -> Conditions:
        """Codes and (B, guidance_width) float -> start and features on the latent grid."""
        told = told.to(codes.fine.dtype)
        if codes.coarse is None:
            x: Any = self.enter(codes.fine)
        else:
            x = self.enter(torch.cat([codes.fine, cast(Tensor, codes.sent)], dim=1))
            h, w = x.shape[-2:]
            raised = codes.raised
            if raised is None:
                raised = self.raise_coarse(codes.coarse, told)
            x = x + raised[..., :h, :w]
        for blocks, grow, styles in zip(self.blocks, self.grow, self.styles, strict=True):
            x = F.pixel_shuffle(grow(_styled(x, blocks, styles, told)), 2)
        x = x.float()
        return Conditions(x[:, : self.latent_channels], x[:, self.latent_channels :])

    def raise_coarse(self, coarse: Tensor, told: Tensor) -> Tensor:
        """(B, D, hp, wp) codes -> (B, C, h, w), what joins the fine ones; h x w whole parents."""
        raised: Tensor = self.join(self.coarse(coarse, told))
        return raised


def draw_surrogate(surrogate: HyperDecoder, codes: Tensor) -> Tensor:
    """(B, D, h, w) codes -> (B, 3, H, W) about what the whole decoder makes of them."""
    start = surrogate(Codes(codes), codes.new_zeros(1, 0)).start
    return F.pixel_shuffle(start, 4)


class CoarseTower(nn.Module):
    """Codes of a coarser level up to the grid of the finer: doubled between entries of `widths`."""

    def __init__(
        self, widths: Sequence[int], depths: Sequence[int], code_dim: int, guidance_width: int
    ) -> None:
        super().__init__()
        self.enter = nn.Conv2d(code_dim, widths[0], 1)
        self.blocks = nn.ModuleList(stack(w, d) for w, d in zip(widths, depths, strict=True))
        self.grow = nn.ModuleList(nn.Conv2d(i, 4 * o, 1) for i, o in pairwise(widths))
        self.styles = _styles(guidance_width, widths, depths)

    def forward(self, codes: Tensor, told: Tensor) -> Tensor:
        """(B, D, hp, wp) -> (B, C, h, w)."""
        x = self.enter(codes)
        for i, (blocks, styles) in enumerate(zip(self.blocks, self.styles, strict=True)):
            if i:
                x = F.pixel_shuffle(self.grow[i - 1](x), 2)
            x = _styled(x, blocks, styles, told)
        return cast(Tensor, x)


def _styles(guidance_width: int, widths: Sequence[int], depths: Sequence[int]) -> nn.ModuleList:
    """For each stack one map per block from the told guidance to the block's style, if any."""
    return nn.ModuleList(
        nn.ModuleList(_silent(guidance_width, 2 * w) for _ in range(d if guidance_width else 0))
        for w, d in zip(widths, depths, strict=True)
    )


def _styled(x: Any, blocks: Any, styles: Any, told: Tensor) -> Any:
    """A stack of blocks with the styles of the told guidance."""
    for block, style in zip_longest(blocks, styles):
        x = block(x, None if style is None else style(told))
    return x


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
        self.depthwise = Depthwise(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = _silent(4 * channels, channels)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        y = self.depthwise(x).movedim(1, -1)
        # In parts that stay in the cache, and whose memory does not grow with the picture.
        rows = max(1, _CELLS_AT_ONCE // y.shape[2])
        parts = (self._map(part, style).movedim(-1, 1) for part in y.split(rows, dim=1))
        if torch.is_grad_enabled():
            out: Tensor = x + torch.cat(list(parts), dim=2)
            return out
        out = torch.empty_like(x)
        pieces = zip(torch.split(x, rows, 2), torch.split(out, rows, 2), parts, strict=True)
        for before, after, made in pieces:
            torch.add(before, made, out=after)
        return out

    def _map(self, y: Tensor, style: Tensor | None) -> Tensor:
        y = self.norm(y)
        if style is not None:
            scale, shift = style[:, None, None].chunk(2, dim=-1)
            y = y * (1 + scale) + shift
        return cast(Tensor, self.narrow(_gelu(self.widen(y))))


def _gelu(x: Tensor) -> Tensor:
    """GELU by its tanh form; without gradients as x sigmoid(2 u), which a CPU does in half the time
    as it has no fast tanh. Overwrites nothing."""
    if torch.is_grad_enabled() or x.is_cuda:
        return F.gelu(x, approximate="tanh")
    u = (x * x).mul_(_GELU[1]).add_(_GELU[0]).mul_(x)
    return u.sigmoid_().mul_(x)


class Depthwise(nn.Conv2d):
    """In float32, which on a CPU takes a third of the time of bfloat16 on the way back."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def stack(channels: int, depth: int) -> nn.Sequential:
    """`depth` blocks in a row."""
    return nn.Sequential(*(ConvBlock(channels) for _ in range(depth)))
