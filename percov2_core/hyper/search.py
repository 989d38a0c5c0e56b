"""Encoder-side search: tokens that decode closer to the picture than the nearest codes do.

The nearest code of each hyper-latent vector is not the best token, because neighbouring codes
are decoded together. Each round takes the gradient of the error (squared error and structure) by
the codes, moves every second token (like the squares of a chessboard) to the code that this
gradient and a curvature term promise most from, and keeps the moves after which their own patch of
the picture is closer. The error may include what the token costs in bits, D + lambda R (Sullivan
and Wiegand, IEEE Signal Processing Magazine 15(6), 1998). A surrogate, a network of a twentieth of
the decoder's work, may answer in its place.
No bit of the format depends on it, so that it computes in bfloat16 wherever the machine does.
Large pictures are searched in tiles.
B batch (here 1), D code width, h x w token grid, K codebook size, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from percov2_core.config import Box, SearchConfig
from percov2_core.metrics.structure import structure_maps

if TYPE_CHECKING:
    from percov2_core.hyper.networks import VectorQuantizer

BFLOAT16_ON_CPU: bool = torch.cpu._is_avx512_bf16_supported()  # elsewhere it is emulated, slowly
SEARCH_TILE_PX = 512  # bounds the memory that gradients take
FINEST = 1  # of the structure's scales: the first weighs little and takes three quarters
FINE_SCALES = 2  # of the others, that tell one token from the next


def search_boxes(grid: tuple[int, int], stride: int) -> list[Box]:
    """The tiles of a token grid that are searched one by one."""
    size = SEARCH_TILE_PX // stride
    tops, lefts = (range(0, n, size) for n in grid)
    return [(..., slice(y, y + size), slice(x, x + size)) for y in tops for x in lefts]


def search_tokens(
    tokens: Tensor,
    quantizer: VectorQuantizer,
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    config: SearchConfig,
    bits: Callable[[Tensor], Tensor] | None = None,
    surrogate: Callable[[Tensor], Tensor] | None = None,
    movable: Tensor | None = None,
) -> Tensor:
    """Improve the tokens of a tile for the squared error, the structure and the rate.

    Args:
        tokens: (1, h, w) int64 to start from.
        decode: (1, D, h, w) codes -> (1, 3, H, W) picture, differentiable.
        x: (1, 3, H, W) float in [-1, 1], the picture.
        bits: (h, w) int64 tokens -> (K, h, w) float, what each code would take in each place. None
            if all take the same; asked only if the rate is weighed.
        surrogate: As `decode`, of which it knows what a change of tokens changes; None asks that.
        movable: (1, h, w) bool, which tokens may change; None lets all.

    Returns:
        (1, h, w) int64; no move made its patch, with its bits, cost more, as far as is known.
    """
    half = x.is_cuda or BFLOAT16_ON_CPU
    codebook = quantizer.codebook.float()
    price = x.new_zeros(1, len(codebook), *tokens.shape[-2:])  # of each code, in squared error
    if bits is not None and config.rate:
        price += config.rate * bits(tokens[0])

    first = quantizer.lookup(tokens)
    # The surrogate says what a change does, not what the picture is: this is what it lacks.
    lack = decode(first) - surrogate(first) if surrogate else 0.0

    def look(codes: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            y = (surrogate or decode)(codes).float() + lack
        return y, structure_maps(y, x, finest=FINEST) if config.structure else []

    rows, columns = (torch.arange(n, device=x.device) for n in tokens.shape[-2:])
    parity = (rows[:, None] + columns) % 2  # (h, w)
    for i in range(config.rounds):
        with torch.enable_grad():
            codes = quantizer.lookup(tokens).requires_grad_()
            y, maps = look(codes)
            error = (y - x).square().mean() + config.structure * sum(m.mean() for m in maps)
            (gradient,) = torch.autograd.grad(x.numel() * error, codes)
        saved = _promises(codes.detach(), gradient, codebook, config.curvature)
        saved, best = (saved + price.gather(1, tokens[:, None]) - price).max(dim=1)
        moving = (parity == i % 2) & (saved > 0)
        moved = torch.where(moving if movable is None else moving & movable, best, tokens)
        before = _around_tokens(x, y.detach(), maps, tokens, price, config)
        after = _around_tokens(x, *look(quantizer.lookup(moved)), moved, price, config)
        tokens = torch.where(after < before, moved, tokens)
    return tokens


def _promises(codes: Tensor, gradient: Tensor, codebook: Tensor, curvature: float) -> Tensor:
    """(1, K, h, w) how much each code should lower the error in each place."""
    change = torch.einsum("kd,bdhw->bkhw", codebook, gradient) - (codes * gradient).sum(1)[:, None]
    length = 2 - 2 * torch.einsum("kd,bdhw->bkhw", codebook, codes)  # all codes have unit length
    return -(change + curvature * length)


def _around_tokens(
    x: Tensor, y: Tensor, maps: list[Tensor], tokens: Tensor, price: Tensor, config: SearchConfig
) -> Tensor:
    """(1, h, w) the error around each token, and the token's own price."""
    grid = tokens.shape[-2:]
    error = F.avg_pool2d((y - x).square().mean(dim=1, keepdim=True), x.shape[-1] // grid[1])
    for values in maps[:FINE_SCALES]:
        fine = F.interpolate(values.detach(), grid, mode="bilinear")
        error = error + config.structure * fine
    return (error + price.gather(1, tokens[:, None]) * (tokens.numel() / x.numel()))[:, 0]
