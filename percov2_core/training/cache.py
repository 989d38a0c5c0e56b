"""Latents and text embeddings on disk: no training step runs a frozen part. See `cache_writer`.

A cache folder holds

    cache.json               what it was made with, see `CacheInfo`
    empty.safetensors        embedding of the empty caption: `sequence` (1, L, C), `pooled` (1, P)
    shard-PPP-NNNNN.tar      of process P; samples SIDE-NUMBER with the members
        latent.npy           (16, SIDE/8, SIDE/8) float16, scaled to about unit variance
        sequence.npy         (L, C) float16
        pooled.npy           (P,) float16
        txt                  the caption

The archives follow WebDataset's convention, see `shards`. B batch, L text tokens, C and P widths.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from percov2_core.errors import ConfigError
from percov2_core.flow.text import TextEmbedding
from percov2_core.training.shards import Record, from_npy, index_archives, read_member

FORMAT = 1
INFO_FILE, EMPTY_FILE = "cache.json", "empty.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """What the samples were made with.

    Attributes:
        base: Key into `weights.sizes.BASES`.
        text_tokens: L, which says whether T5 took part.
        captioner: Who wrote the captions.
        sides: Sides of the crops in pixels.
        counts: Samples of each side.
        seed: Of the crops.
        format: Of this layout.
    """

    base: str
    text_tokens: int
    captioner: str
    sides: tuple[int, ...]
    counts: tuple[int, ...]
    seed: int
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """What a step sees. No tuple: FSDP would look inside and round it to half precision."""

    latent: Tensor  # (B, 16, H/8, W/8) float32
    text: TextEmbedding  # (B, L, C), (B, P) float32
    captions: list[str]


class Cache:
    """A cache folder, read by step number."""

    def __init__(self, folder: Path, *, held_out: int = 0) -> None:
        """Index the shards; the last `held_out` samples of each side are never drawn.

        Raises:
            ConfigError: if the folder holds no cache, or too few samples.
        """
        self.info = read_info(folder)
        self.empty = TextEmbedding(**load_file(folder / EMPTY_FILE))
        sides: dict[int, list[Record]] = {}
        for record in index_archives(sorted(folder.glob("shard-*.tar"))):
            sides.setdefault(int(record.name.split("-")[0]), []).append(record)
        if short := [side for side, records in sides.items() if len(records) <= held_out]:
            raise ConfigError(
                f"cache {str(folder)!r}: {len(sides[short[0]])} samples of side {short[0]}, "
                f"need more than the {held_out} that are held out"
            )
        if not sides:
            raise ConfigError(f"cache {str(folder)!r} holds no shard")
        self.drawn = {side: found[: len(found) - held_out] for side, found in sides.items()}
        self.held_out = {side: found[len(found) - held_out :] for side, found in sides.items()}

    def __len__(self) -> int:
        return sum(map(len, self.drawn.values()))

    def draw(self, *, batch_px: int, seed: int, step: int) -> LatentBatch:
        """The batch of this step: one side, as many samples as have `batch_px` pixels."""
        rng = np.random.default_rng((seed, step))
        sides = sorted(self.drawn)
        sizes = np.array([len(self.drawn[side]) for side in sides], dtype=np.float64)
        side = int(rng.choice(sides, p=sizes / sizes.sum()))
        picks = rng.integers(len(self.drawn[side]), size=max(1, batch_px // side**2))
        return read_batch([self.drawn[side][int(i)] for i in picks])

    def all(self, side: int, *, at_once: int = 16) -> Iterator[LatentBatch]:
        """Every sample of a side in order, the held-out ones last."""
        records = [*self.drawn[side], *self.held_out[side]]
        for start in range(0, len(records), at_once):
            yield read_batch(records[start : start + at_once])


def read_batch(records: Sequence[Record]) -> LatentBatch:
    """Samples of one side as tensors.

    Raises:
        ConfigError: if a member is missing.
    """

    def stacked(suffix: str) -> Tensor:
        arrays = [from_npy(read_member(record, suffix)) for record in records]
        return torch.from_numpy(np.stack(arrays).astype(np.float32))

    text = TextEmbedding(stacked("sequence.npy"), stacked("pooled.npy"))
    captions = [read_member(record, "txt").decode() for record in records]
    return LatentBatch(stacked("latent.npy"), text, captions)


def read_info(folder: Path) -> CacheInfo:
    """What a cache was made with.

    Raises:
        ConfigError: if the folder holds no cache, or one of another format.
    """
    path = folder / INFO_FILE
    if not path.is_file():
        raise ConfigError(f"cache: no {INFO_FILE} in {str(folder)!r}; run `train cache` first")
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if values.get("format") != FORMAT:
        raise ConfigError(
            f"cache {str(folder)!r}: format {values.get('format')!r}, this build reads {FORMAT}"
        )
    tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return CacheInfo(**tuples)
