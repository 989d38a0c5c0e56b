"""Stage `cache`: photos -> latents and text embeddings on disk, in the layout of `cache`.

B batch, L text tokens, C and P widths.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from percov2_core.caption.captioner import Captioner
from percov2_core.errors import ConfigError
from percov2_core.training.autoencoder import to_float
from percov2_core.training.cache import EMPTY_FILE, INFO_FILE, CacheInfo, read_info
from percov2_core.training.data import GridPlan, Photos, shrunk_crop
from percov2_core.training.shards import to_npy, write_archive
from percov2_core.weights.base import SD3Base

PER_SHARD = 256  # samples
_AT_ONCE_PX = 4 * 1024 * 1024


class _Sample(NamedTuple):
    name: str
    side: int
    photo: int


@torch.inference_mode()
def write_cache(
    photos: Photos,
    out: Path,
    *,
    base: SD3Base,
    captioner: Captioner,
    plan: GridPlan,
    seed: int = 0,
) -> Path:
    """Write a cache folder; shards that are there already stay.

    Under `accelerate launch` each process writes its part of the samples.

    Raises:
        ConfigError: if `out` holds a cache that was made differently.
    """
    out.mkdir(parents=True, exist_ok=True)
    empty = base.text.encode([""])
    info = CacheInfo(
        base=base.name,
        text_tokens=empty.sequence.shape[1],
        captioner=captioner.name,
        sides=plan.sides,
        counts=plan.counts,
        seed=seed,
    )
    _agree(info, out)
    state = PartialState()
    if state.is_main_process:
        named = {name: value.cpu().contiguous() for name, value in empty._asdict().items()}
        save_file(named, out / EMPTY_FILE)
        (out / INFO_FILE).write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    mine = _samples(plan, len(photos), seed)[state.process_index :: state.num_processes]
    starts = range(0, len(mine), PER_SHARD)
    for number, start in enumerate(tqdm(starts, desc=out.name, disable=None)):
        path = out / f"shard-{state.process_index:03d}-{number:05d}.tar"
        if not path.exists():
            chunk = mine[start : start + PER_SHARD]
            write_archive(path, _encoded(photos, chunk, base, captioner, seed))
    state.wait_for_everyone()
    return out


def _samples(plan: GridPlan, photos: int, seed: int) -> list[_Sample]:
    """Every photo as often as every other, each side in an order of its own."""
    found = []
    for side, count in zip(plan.sides, plan.counts, strict=True):
        rng = np.random.default_rng((seed, side))
        rounds = -(-count // photos)
        picks = np.concatenate([rng.permutation(photos) for _ in range(rounds)])[:count]
        found += [_Sample(f"{side:04d}-{i:09d}", side, int(p)) for i, p in enumerate(picks)]
    return found


def _encoded(
    photos: Photos, samples: Sequence[_Sample], base: SD3Base, captioner: Captioner, seed: int
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for group in _batches(samples):
        crops = [_crop(photos, sample, seed) for sample in group]
        captions = [captioner(Image.fromarray(crop)) for crop in crops]
        latent = base.vae.encode(to_float(np.stack(crops)).to(base.vae.device))
        text = base.text.encode(captions)
        for i, sample in enumerate(group):
            yield (
                sample.name,
                {
                    "latent.npy": to_npy(_half(latent[i])),
                    "sequence.npy": to_npy(_half(text.sequence[i])),
                    "pooled.npy": to_npy(_half(text.pooled[i])),
                    "txt": captions[i].encode(),
                },
            )


def _batches(samples: Sequence[_Sample]) -> Iterator[list[_Sample]]:
    """Neighbours of the same side, as many as the autoencoder takes at once."""
    group: list[_Sample] = []
    for sample in samples:
        full = group and (len(group) + 1) * sample.side**2 > _AT_ONCE_PX
        if full or (group and group[0].side != sample.side):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _crop(photos: Photos, sample: _Sample, seed: int) -> NDArray[np.uint8]:
    # From the sample's own number, so that it is the same in any process.
    rng = np.random.default_rng((seed, sample.side, int(sample.name.split("-")[1])))
    return shrunk_crop(photos[sample.photo], sample.side, rng)


def _half(value: Tensor) -> NDArray[np.float16]:
    half: NDArray[np.float16] = value.to(torch.float16).cpu().numpy()
    return half


def _agree(info: CacheInfo, folder: Path) -> None:
    if not (folder / INFO_FILE).is_file():
        return
    other = read_info(folder)
    for name, value in asdict(info).items():
        if (found := getattr(other, name)) != value:
            raise ConfigError(f"cache {str(folder)!r}: {name} is {found!r}, this run has {value!r}")
