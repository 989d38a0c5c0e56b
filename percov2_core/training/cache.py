"""Latents and text embeddings on disk, so that no training step runs a frozen part.

A cache folder holds

    cache.json               what it was made with, see `CacheInfo`
    empty.safetensors        embedding of the empty caption: `sequence` (1, L, C), `pooled` (1, P)
    shard-PPP-NNNNN.safetensors
                             of process P; of each sample SIDE-NUMBER the caption, in the file's
                             metadata, and in bfloat16
        SIDE-NUMBER.latent   (16, SIDE/8, SIDE/8), scaled to about unit variance
        SIDE-NUMBER.clip     (CLIP tokens, widths of both CLIP models), without the zeros beside it
        SIDE-NUMBER.t5       (T5 tokens, C)
        SIDE-NUMBER.pooled   (P,)

L text tokens, C and P widths. Tokens behind the end of a caption are no padding: the transformer
sees them, and what the text models make of them differs from caption to caption.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from percov2_core.caption.captioner import get_captioner
from percov2_core.config import LATENT_CHANNELS, LATENT_STRIDE
from percov2_core.errors import ConfigError
from percov2_core.flow.text import TextEmbedding
from percov2_core.training.loop import processes
from percov2_core.training.samples import AT_ONCE_PX, EncodedPhotos, GridPlan, PlannedCrop, Samples
from percov2_core.weights.base import SD3Base, load_base
from percov2_core.weights.files import write_json
from percov2_core.weights.find import find_base
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import T5_TOKENS

if TYPE_CHECKING:
    from percov2_core.training.recipes import RunOptions

FORMAT = 3
PER_SHARD = 128  # samples
_PARTS = ("latent", "clip", "t5", "pooled")
_INFO_FILE, _EMPTY_FILE = "cache.json", "empty.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """What the samples of a cache were made with."""

    base: str  # key into `weights.sizes.BASES`
    text_tokens: int  # L, which says whether T5 took part
    clip_tokens: int  # the first of them
    clip_widths: tuple[int, ...]  # of both CLIP models
    captioner: str  # who wrote the captions
    sides: tuple[int, ...]  # of the crops, in pixels
    counts: tuple[int, ...]  # samples of each side
    seed: int  # of the crops
    format: int = FORMAT  # of this layout


class Cache:
    """A cache folder, read by step number."""

    def __init__(
        self, folder: Path, *, batch_px: int = AT_ONCE_PX, seed: int = 0, held_out: int = 0
    ) -> None:
        """Index the shards; the last `held_out` samples of each side are never drawn.
        ConfigError if the folder holds no cache, or too few samples."""
        self.info = read_info(folder)
        self.batch_px, self.seed = batch_px, seed
        self.empty = TextEmbedding(**load_file(folder / _EMPTY_FILE))
        self.encoders = _encoders(self.info, self.empty)
        sides: dict[int, list[_Sample]] = {}
        for sample in _read_index(sorted(folder.glob("shard-*.safetensors"))):
            sides.setdefault(int(sample.name.split("-")[0]), []).append(sample)
        if not sides:
            raise ConfigError(f"cache {str(folder)!r} holds no shard")
        for side, samples in sides.items():
            if len(samples) <= held_out:
                raise ConfigError(
                    f"cache {str(folder)!r}: {len(samples)} samples of side {side}, need more than "
                    f"the {held_out} that are held out"
                )
        self.drawn = {side: found[: len(found) - held_out] for side, found in sides.items()}
        self._held_out = {side: found[len(found) - held_out :] for side, found in sides.items()}
        self.sides = sorted(sides)

    def draw(self, step: int) -> Samples:
        """The batch of this step: one side, as many samples as have `batch_px` pixels."""
        rng = np.random.default_rng((self.seed, step))
        sizes = np.array([len(self.drawn[side]) for side in self.sides], dtype=np.float64)
        side = int(rng.choice(self.sides, p=sizes / sizes.sum()))
        picks = rng.integers(len(self.drawn[side]), size=self._at_once(side))
        return self._read([self.drawn[side][int(i)] for i in picks])

    def held_out(self) -> list[Samples]:
        """The samples that are never drawn."""
        return [s for side in self.sides for s in self._all(self._held_out[side], side)]

    def every(self, side: int) -> Iterator[Samples]:
        """All samples of a side in order, the held-out ones last."""
        return self._all([*self.drawn[side], *self._held_out[side]], side)

    def _all(self, samples: Sequence[_Sample], side: int) -> Iterator[Samples]:
        count = self._at_once(side)
        return (self._read(samples[i : i + count]) for i in range(0, len(samples), count))

    def _at_once(self, side: int) -> int:
        return max(1, self.batch_px // side**2)

    def _read(self, samples: Sequence[_Sample]) -> Samples:
        found: dict[str, list[Tensor]] = {name: [] for name in _PARTS}
        for sample in samples:
            with safe_open(sample.shard, framework="pt") as file:
                for part, values in found.items():
                    values.append(file.get_tensor(f"{sample.name}.{part}").float())
        latent, clip, t5, pooled = (torch.stack(values) for values in found.values())
        beside = self.empty.sequence.shape[2] - clip.shape[2]
        text = TextEmbedding(torch.cat([F.pad(clip, (0, beside)), t5], dim=1), pooled)
        return Samples([sample.caption for sample in samples], latent=latent, text=text)


def write_cache(options: RunOptions) -> None:
    """Write latents and text embeddings of photos, shard by shard; those that are there stay.
    Under `accelerate launch` each process writes its part of the samples. ConfigError if OUT holds
    a cache that was made differently."""
    (name, _), photos, out = options.over(), options.photos(), options.out
    state = processes(options.device)
    home = Residency.from_environment(device=str(state.device))
    captioner = get_captioner(options.captioner, device=str(home.target))
    place, t5 = find_base(name, t5=options.t5), T5_TOKENS if options.t5 else 0
    base = load_base(place, name=name, residency=home, t5_tokens=t5)
    plan = options.settings(GridPlan, "plan", sides=(512,), counts=(len(photos),))
    source = EncodedPhotos(photos, plan, base.vae, captioner)
    with torch.inference_mode():
        empty = base.text.encode([""])
    info = CacheInfo(
        base=name,
        text_tokens=empty.sequence.shape[1],
        clip_tokens=base.text.clip_tokens,
        clip_widths=base.text.clip_widths,
        captioner=captioner.name,
        seed=source.seed,
        **asdict(plan),
    )
    if (out / _INFO_FILE).is_file() and (found := read_info(out)) != info:
        raise ConfigError(f"cache {str(out)!r} was made with {found}, this run has {info}")
    out.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        named = {name: value.cpu().contiguous() for name, value in empty._asdict().items()}
        save_file(named, out / _EMPTY_FILE)
        write_json(out / _INFO_FILE, asdict(info))
    size, free = cache_bytes(info, empty) / 1e9, shutil.disk_usage(out).free / 1e9
    said = f"cache: {sum(plan.counts)} samples of {len(photos)} photos will take {size:.3g} GB"
    state.print(f"{said} (counted; captions come on top); {free:.3g} GB are free there")
    mine = islice(source.planned(), state.process_index, None, state.num_processes)
    bar = tqdm(desc=out.name, unit=" shards", disable=None)
    for number, chunk in enumerate(iter(lambda: list(islice(mine, PER_SHARD)), [])):
        path = out / f"shard-{state.process_index:03d}-{number:05d}.safetensors"
        if not path.exists():
            _write_shard(path, source, chunk, base)
        bar.update()
    state.wait_for_everyone()


def cache_bytes(info: CacheInfo, empty: TextEmbedding) -> int:
    """What the tensors of all samples take together."""
    t5 = (info.text_tokens - info.clip_tokens) * empty.sequence.shape[2]
    text = info.clip_tokens * sum(info.clip_widths) + t5 + empty.pooled.shape[1]
    latents = (LATENT_CHANNELS * (side // LATENT_STRIDE) ** 2 for side in info.sides)
    return sum(2 * n * (text + z) for n, z in zip(info.counts, latents, strict=True))


def read_info(folder: Path) -> CacheInfo:
    """What a cache was made with; ConfigError if there is none, or one of another format."""
    path = folder / _INFO_FILE
    if not path.is_file():
        raise ConfigError(f"cache: no {_INFO_FILE} in {str(folder)!r}; run `train cache` first")
    values = json.loads(path.read_text(encoding="utf-8"))
    if (found := values.get("format")) != FORMAT:
        raise ConfigError(f"cache {str(folder)!r}: format {found!r}, this build reads {FORMAT}")
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return CacheInfo(**(values | tuples))


class _Sample(NamedTuple):
    name: str  # SIDE-NUMBER
    caption: str
    shard: Path


def _encoders(info: CacheInfo, empty: TextEmbedding) -> TextEmbedding:
    """Which text encoder each number of an embedding comes from: (L, C) and (P,) int64."""
    ends = torch.tensor(info.clip_widths).cumsum(0)
    columns = torch.arange(empty.sequence.shape[2])
    # The zeros beside what CLIP says are anybody's.
    clip = torch.bucketize(columns, ends, right=True).clamp_max(len(ends) - 1)
    sequence = clip.repeat(empty.sequence.shape[1], 1)
    sequence[info.clip_tokens :] = len(ends)
    return TextEmbedding(sequence, clip[: empty.pooled.shape[1]])


def _read_index(paths: Sequence[Path]) -> Iterator[_Sample]:
    """Every sample of these shards, in order; only headers are read. ConfigError if one is damaged
    or cut short."""
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                captions = json.loads(file.metadata()["captions"])
        except SafetensorError as error:
            raise ConfigError(f"shard {str(path)!r} is damaged: {error}") from error
        yield from (_Sample(name, caption, path) for name, caption in captions.items())


@torch.inference_mode()
def _write_shard(
    path: Path, source: EncodedPhotos, chunk: Sequence[PlannedCrop], base: SD3Base
) -> None:
    """Encode and write these crops; a broken write leaves no shard. The same crops give the same
    bytes."""
    captions: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for group, samples in source.encode(chunk):
        assert samples.latent is not None
        text, n = base.text.encode(samples.captions), base.text.clip_tokens
        clip, t5 = text.sequence[:, :n, : sum(base.text.clip_widths)], text.sequence[:, n:]
        parts = dict(zip(_PARTS, (samples.latent, clip, t5, text.pooled), strict=True))
        for i, crop in enumerate(group):
            captions[crop.name] = samples.captions[i]
            halves = {f"{crop.name}.{part}": values[i].bfloat16() for part, values in parts.items()}
            tensors |= {name: half.cpu().contiguous() for name, half in halves.items()}
    partial = path.with_suffix(".partial")
    # In one entry of the metadata: several would be written in any order.
    save_file(tensors, partial, metadata={"captions": json.dumps(captions)})
    partial.replace(path)
