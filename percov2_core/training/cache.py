"""Latents and text embeddings on disk, so that no training step runs a frozen part.

A cache folder holds

    cache.json               what it was made with, see `CacheInfo`
    empty.safetensors        embedding of the empty caption: `sequence` (1, L, C), `pooled` (1, P)
    shard-PPP-NNNNN.tar      of process P; samples SIDE-NUMBER with the members
        latent.npy           (16, SIDE/8, SIDE/8) float16, scaled to about unit variance
        sequence.npy         (L, C) float16
        pooled.npy           (P,) float16
        txt                  the caption

The archives follow WebDataset's convention: a sample is the run of members NAME.SUFFIX that share a
NAME, and `webdataset.WebDataset` reads the same files (github.com/webdataset/webdataset; checked
with its version 1.0.2). That library streams and shuffles; here a step must find its samples by
number, so that a resumed run sees what an unbroken one would have seen. So archives are written
and indexed with the standard library. L text tokens, C and P widths.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from percov2_core.caption.captioner import get_captioner
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

FORMAT = 1
PER_SHARD = 256  # samples
_INFO_FILE, _EMPTY_FILE = "cache.json", "empty.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """What the samples of a cache were made with."""

    base: str  # key into `weights.sizes.BASES`
    text_tokens: int  # L, which says whether T5 took part
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
        sides: dict[int, list[_Record]] = {}
        for record in _read_index(sorted(folder.glob("shard-*.tar"))):
            sides.setdefault(int(record.name.split("-")[0]), []).append(record)
        if not sides:
            raise ConfigError(f"cache {str(folder)!r} holds no shard")
        for side, records in sides.items():
            if len(records) <= held_out:
                raise ConfigError(
                    f"cache {str(folder)!r}: {len(records)} samples of side {side}, need more than "
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
        return _read([self.drawn[side][int(i)] for i in picks])

    def held_out(self) -> list[Samples]:
        """The samples that are never drawn."""
        return [s for side in self.sides for s in self._all(self._held_out[side], side)]

    def every(self, side: int) -> Iterator[Samples]:
        """All samples of a side in order, the held-out ones last."""
        return self._all([*self.drawn[side], *self._held_out[side]], side)

    def _all(self, records: Sequence[_Record], side: int) -> Iterator[Samples]:
        count = self._at_once(side)
        return (_read(records[i : i + count]) for i in range(0, len(records), count))

    def _at_once(self, side: int) -> int:
        return max(1, self.batch_px // side**2)


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
        base=base.name,
        text_tokens=empty.sequence.shape[1],
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
    mine = islice(source.planned(), state.process_index, None, state.num_processes)
    bar = tqdm(desc=out.name, unit=" shards", disable=None)
    for number, chunk in enumerate(iter(lambda: list(islice(mine, PER_SHARD)), [])):
        path = out / f"shard-{state.process_index:03d}-{number:05d}.tar"
        if not path.exists():
            _write_archive(path, source, chunk, base)
        bar.update()
    state.wait_for_everyone()


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


def _half(value: Tensor) -> bytes:
    """As the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, value.to(torch.float16).cpu().numpy(), allow_pickle=False)
    return buffer.getvalue()


def _read(records: Sequence[_Record]) -> Samples:
    def stacked(suffix: str) -> Tensor:
        arrays = [np.load(io.BytesIO(_read_member(record, suffix))) for record in records]
        return torch.from_numpy(np.stack(arrays).astype(np.float32))

    return Samples(
        [_read_member(record, "txt").decode() for record in records],
        latent=stacked("latent.npy"),
        text=TextEmbedding(stacked("sequence.npy"), stacked("pooled.npy")),
    )


class _Record(NamedTuple):
    name: str
    archive: Path
    members: dict[str, tuple[int, int]]  # start and size of each, by suffix


@torch.inference_mode()
def _write_archive(
    path: Path, source: EncodedPhotos, chunk: Sequence[PlannedCrop], base: SD3Base
) -> None:
    """Encode and write these crops; a broken write leaves no archive. The same crops give the same
    bytes: no owner, no time."""
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for group, samples in source.encode(chunk):
            assert samples.latent is not None
            named = {"latent": samples.latent, **base.text.encode(samples.captions)._asdict()}
            for i, crop in enumerate(group):
                members = {f"{name}.npy": _half(values[i]) for name, values in named.items()}
                for suffix, data in {**members, "txt": samples.captions[i].encode()}.items():
                    entry = tarfile.TarInfo(f"{crop.name}.{suffix}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    partial.replace(path)


def _read_index(paths: Sequence[Path]) -> Iterator[_Record]:
    """Every sample of these archives, in order; only headers are read. ConfigError if a file is no
    tar archive."""
    for path in paths:
        records: dict[str, _Record] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    name, _, suffix = member.name.partition(".")
                    record = records.setdefault(name, _Record(name, path, {}))
                    record.members[suffix] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            raise ConfigError(f"shard {str(path)!r} is no tar archive: {error}") from error
        yield from records.values()


def _read_member(record: _Record, suffix: str) -> bytes:
    """The bytes of one member; ConfigError if there is none, or the archive ends before it."""
    shard = f"shard {str(record.archive)!r}"
    if suffix not in record.members:
        raise ConfigError(f"{shard}: sample {record.name!r} has no member {suffix!r}")
    start, size = record.members[suffix]
    with record.archive.open("rb") as file:
        file.seek(start)
        data = file.read(size)
    if len(data) != size:
        raise ConfigError(f"{shard} ends inside sample {record.name!r}")
    return data
