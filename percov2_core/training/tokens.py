"""Photos -> token grids with captions, which the masked image model is trained on.

S grids, h x w tokens in each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from percov2_core.caption.describer import describe
from percov2_core.hyper.networks import VectorQuantizer
from percov2_core.latent import LatentAutoencoder
from percov2_core.training.autoencoder import to_float
from percov2_core.training.data import GridPlan, Photos, shrunk_crop

_BATCH_PX = 4 * 512 * 512


EMBEDDED = {
    "extreme": GridPlan(sides=(384, 512), counts=(3000, 1000)),
    "ultra-low": GridPlan(sides=(384, 512), counts=(1500, 2500)),
}


@torch.inference_mode()
def write_grids(
    photos: Photos,
    out: Path,
    *,
    vae: LatentAutoencoder,
    encoder: nn.Module,
    quantizer: VectorQuantizer,
    plan: GridPlan,
    seed: int = 0,
) -> list[Path]:
    """Write one .npz per crop side with "tokens" (S, h, w) uint8 and "captions" (S,)."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for side, count in zip(plan.sides, plan.counts, strict=True):
        path = out / f"tokens-{side}.npz"
        files.append(path)
        if path.exists():
            continue
        rng = np.random.default_rng((seed, side))
        grids, captions = [], []
        rounds = -(-count // len(photos))
        picks = np.concatenate([rng.permutation(len(photos)) for _ in range(rounds)])[:count]
        chunks = np.array_split(picks, max(1, len(picks) * side * side // _BATCH_PX))
        for chunk in tqdm(chunks, desc=path.stem, disable=None):
            crops = np.stack([shrunk_crop(photos[int(i)], side, rng) for i in chunk])
            captions += [describe(Image.fromarray(crop)) for crop in crops]
            with torch.autocast(vae.device.type, dtype=torch.bfloat16):
                latent = vae.encode(to_float(crops).to(vae.device))
                vectors = encoder(latent)
            grids.append(quantizer.tokens(vectors).to(torch.uint8).cpu().numpy())
        np.savez_compressed(path, tokens=np.concatenate(grids), captions=np.array(captions))
    return files
