"""Cached latents -> token grids with captions, which the masked image model is trained on.

S grids, h x w tokens in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from percov2_core.entropy.schedule import MAX_TILE
from percov2_core.hyper.networks import VectorQuantizer
from percov2_core.training.cache import Cache


@torch.inference_mode()
def write_cached_grids(
    cache: Cache, out: Path, *, encoder: nn.Module, quantizer: VectorQuantizer
) -> list[Path]:
    """Write one .npz per side with "tokens" (S, h, w) uint8 and "captions" (S,).

    Grids that are larger than the entropy model's tile are cut as the codec cuts them. Files that
    are there already stay.
    """
    out.mkdir(parents=True, exist_ok=True)
    device = next(encoder.parameters()).device
    files = []
    for side in sorted(cache.drawn):
        path = out / f"tokens-{side}.npz"
        files.append(path)
        if path.exists():
            continue
        grids, captions = [], []
        for batch in cache.all(side):
            tokens = quantizer.tokens(encoder(batch.latent.to(device)))
            for grid, caption in zip(tokens.to(torch.uint8).cpu(), batch.captions, strict=True):
                cut = list(_tiles(grid.numpy()))
                grids += cut
                captions += [caption] * len(cut)
        np.savez_compressed(path, tokens=np.stack(grids), captions=np.array(captions))
    return files


def _tiles(grid: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Equal parts of at most `MAX_TILE` a side; what does not fill one is left out."""
    h, w = (min(MAX_TILE, n) for n in grid.shape)
    for y in range(0, grid.shape[0] - h + 1, h):
        for x in range(0, grid.shape[1] - w + 1, w):
            yield grid[y : y + h, x : x + w]
