"""Image <-> latent, through any diffusers autoencoder with 16 channels at 1/8.

B batch, H x W pixels (multiples of 8). Latents are scaled to about unit variance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, AutoencoderKL
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from percov2_core.config import FINE, LATENT_STRIDE, Box

TILE = 64  # latent cells along one side; larger pictures go through in tiles, which a CPU likes
MARGIN = 4  # cells seen around a tile: with them its edges come out as without tiles, to 1/255


class _Pass(NamedTuple):
    """Of `deblocked`."""

    period: int  # px
    alike: int  # periods that are compared, along a row and along a column
    blur: int  # px, odd
    most: float  # amplitude

    @property
    def seen(self) -> int:
        """Cells of the latent around one."""
        return (self.alike // 2 * self.period + self.blur // 2) // LATENT_STRIDE


# The last for what changes its sign from token to token, as a honeycomb does.
_PASSES = tuple(
    _Pass(turn * FINE.token_stride, alike, turn * FINE.token_stride + 1, most / 127.5)
    for turn, alike, most in ((1, 5, 12), (1, 5, 6), (2, 3, 12))
)
_SEEN = max(each.seen for each in _PASSES)


class LatentAutoencoder(nn.Module):
    """One face for `AutoencoderKL` (Stable Diffusion 3) and `AutoencoderDC` (embedded).

    Tiles bound the memory of activations: `AutoencoderKL` works in blended ones of its own size
    (1024 px a side as published), `AutoencoderDC` in those that overlap by `MARGIN`.
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae
        if isinstance(vae, AutoencoderKL):
            vae.enable_tiling()
        else:
            for part in vae.modules():
                if type(part) is RMSNorm:
                    part.__class__ = _Norm
        self.tile = 0 if isinstance(vae, AutoencoderKL) else TILE
        config: Any = vae.config
        self.scale = float(config.scaling_factor)
        self.shift = float(config.get("shift_factor") or 0.0)

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, H, W) float in [-1, 1] -> (B, 16, H/8, W/8) float, the posterior mean.

        The mean and never a sample for files: the same picture must give the same one. With a
        `generator` a sample, as the published image-to-image pipeline takes.
        """
        return _whole(self._tiles(x, partial(self._encode, generator=generator), LATENT_STRIDE, 1))

    def decode(self, z: Tensor) -> Tensor:
        """(B, 16, H/8, W/8) float -> (B, 3, H, W) float, about [-1, 1], not clamped."""
        return _whole(self.decode_tiles(z))

    def encode_tiles(self, x: Tensor) -> Iterator[tuple[Box, Tensor]]:
        """`encode`, tile by tile: where each belongs in the latent, and what."""
        return self._tiles(x, self._encode, LATENT_STRIDE, 1)

    def decode_tiles(self, z: Tensor, *, deblock: int = 0) -> Iterator[tuple[Box, Tensor]]:
        """`decode`, tile by tile: where each belongs in the picture, and what. `AutoencoderDC`'s is
        filtered `deblock` times: latents from guessed tokens bring out a grid of its own."""
        filtered = bool(deblock) and isinstance(self.vae, AutoencoderDC)
        through = (
            (lambda part: deblocked(self._decode(part), deblock)) if filtered else self._decode
        )
        return self._tiles(z, through, 1, LATENT_STRIDE, MARGIN + _SEEN * filtered)

    def count_tiles(self, height: int, width: int) -> int:
        """How many tiles a latent of this grid takes."""
        return len(_spans(height, self.tile)) * len(_spans(width, self.tile))

    def _tiles(
        self,
        x: Tensor,
        through: Callable[[Tensor], Tensor],
        come: int,
        go: int,
        margin: int = MARGIN,
    ) -> Iterator[tuple[Box, Tensor]]:
        """A cell of the latent is `come` long a side in `x`, and `go` in what is made."""
        h, w = (n // come for n in x.shape[2:])
        for y0, y1 in _spans(h, self.tile):
            for x0, x1 in _spans(w, self.tile):
                top, left = max(0, y0 - margin), max(0, x0 - margin)
                part = x[..., come * top : come * (y1 + margin), come * left : come * (x1 + margin)]
                made = through(part)
                made = made[..., go * (y0 - top) : go * (y1 - top), go * (x0 - left) :]
                box = (..., slice(go * y0, go * y1), slice(go * x0, go * x1))
                yield box, made[..., : go * (x1 - x0)]

    def _encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        out = self.vae.encode(x.to(self.vae.dtype))
        if hasattr(out, "latent"):
            z: Tensor = out.latent
        else:
            z = out.latent_dist.sample(generator) if generator else out.latent_dist.mode()
        return (z.float() - self.shift) * self.scale

    def _decode(self, z: Tensor) -> Tensor:
        sample: Tensor = self.vae.decode((z / self.scale + self.shift).to(self.vae.dtype)).sample
        return sample.float()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class _Norm(RMSNorm):  # type: ignore[misc]
    """The library's with half of its passes over the numbers, of which a CPU feels each."""

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
        x = x * (length.square() / x.shape[-1] + self.eps).rsqrt().to(x.dtype)
        return x * self.weight if self.bias is None else torch.addcmul(self.bias, x, self.weight)


def deblocked(x: Tensor, passes: int) -> Tensor:
    """(B, 3, H, W) float -> the same less what repeats from fine token to fine token.

    A pattern is what the high pass shows in the mean of some periods along a row and along a
    column, the weaker of both where they agree, each counted up to an amplitude: edges stay. A
    second pass takes out what the weaker of both leaves, a third what repeats every other token."""
    h, w = x.shape[2:]
    whole = 2 * FINE.token_stride
    x = F.pad(x, (0, -w % whole, 0, -h % whole), mode="replicate")
    for side, alike, blur, most in _PASSES[:passes]:
        smooth = _mean(_mean(x, blur, along=2), blur, along=3)
        high = (x - smooth).clamp(-most, most)
        cells = F.pixel_unshuffle(high, side)  # (B, 3 side^2, H/side, W/side)
        along_columns, along_rows = (_mean(cells, alike, along=axis) for axis in (2, 3))
        weaker = torch.minimum(along_rows.abs(), along_columns.abs())
        shared = torch.where(along_rows * along_columns > 0, along_rows.sign() * weaker, 0)
        x = x - F.pixel_shuffle(shared, side)
    return x[..., :h, :w]


def _mean(x: Tensor, count: int, *, along: int) -> Tensor:
    """(B, C, H, W) -> the mean of `count` (odd) values around each along an axis, edges repeated.
    Sums of shifted views, as pooling takes four times as long on a CPU."""
    half, length = count // 2, x.shape[along]
    sides = (0, 0, half, half) if along == 2 else (half, half, 0, 0)
    padded = F.pad(x, sides, mode="replicate")
    total = padded.narrow(along, 0, length).clone()
    for i in range(1, count):
        total += padded.narrow(along, i, length)
    return total / count


def _spans(length: int, size: int) -> list[tuple[int, int]]:
    """Nearly equal parts of `length`, none longer than `size`; one if that is 0."""
    count = -(-length // size) if size else 1
    return list(pairwise(length * i // count for i in range(count + 1)))


def _whole(tiles: Iterator[tuple[Box, Tensor]]) -> Tensor:
    """Put tiles together; the last one's end is that of the whole."""
    parts = list(tiles)
    (_, rows, columns), last = parts[-1]
    out = last.new_empty(*last.shape[:2], rows.stop, columns.stop)
    for box, part in parts:
        out[box] = part
    return out
