"""Runs settings over pictures, resumable, over processes, GPUs and machines."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from accelerate import PartialState
from PIL import Image
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm

from percov2_core.baselines.base import Baseline, best_within, remembered
from percov2_core.baselines.classic import family_at_all_sizes, find_baseline
from percov2_core.config import DEFAULT_EFFORT
from percov2_core.errors import ConfigError, ImageError, PerCoError
from percov2_core.evaluation import rows as table
from percov2_core.evaluation.judge import Judge, Seen
from percov2_core.evaluation.protocol import Picture
from percov2_core.evaluation.rows import LOG_FOLDER, Row, read_log
from percov2_core.evaluation.settings import OURS, Setting
from percov2_core.hyper.stand_ins import STAND_INS
from percov2_core.metrics import METRICS, bits_per_pixel

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2
    from percov2_core.contents import Tokens

SIGNATURE = "run.json"
THUMBNAIL_PX = 192


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every worker needs to know; it travels to other processes."""

    out: Path  # folder of results
    data: Path  # folder of the pictures, so that rows of another are not added
    model: str = "embedded"  # name or folder for `load_codec`
    device: str = "cpu"
    metrics: tuple[str, ...] = METRICS
    thumbnails: bool = True  # reduced pictures for the report
    keep: bool = False  # every decoded picture as PNG, for set metrics


@dataclass(frozen=True, slots=True)
class Unit:
    """A picture and settings with one `Setting.unit`."""

    picture: Picture
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """An encoded picture, and how to decode it at a setting that shares this file."""

    data: bytes
    decode: Callable[[Setting], Image.Image]
    encode_s: float
    read_s: float = 0.0  # of decoding, shared by all settings
    columns: Mapping[str, Any]  # of `Row`, what the file alone decides


class Worker:
    """Holds the models and the metrics of one process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.judge = Judge(plan.metrics, device=plan.device)
        self._looked: dict[tuple[str, str], tuple[float, Tokens]] = {}

    @cached_property
    def codec(self) -> PerCoV2:
        # Only when a setting asks for it: classic codecs need no model.
        from percov2_core.weights import load_codec

        return load_codec(self.plan.model, device=self.plan.device)

    def run(self, unit: Unit) -> list[Row]:
        """All rows of a unit. What a user can cause becomes a row with its error."""
        rows = [Row(picture=unit.picture.name, setting=setting) for setting in unit.settings]
        try:
            image = unit.picture.open()
        except PerCoError as error:
            return [replace(row, error=str(error)) for row in rows]
        original = self.judge.see(image)
        family: list[Baseline] = []
        files: dict[Setting, _File] = {}
        for i, row in enumerate(rows):
            setting = row.setting
            rows[i] = row = replace(row, width=image.width, height=image.height)
            try:
                if setting.codec != OURS and setting.budget_bytes is not None and not family:
                    family = [remembered(c, image) for c in family_at_all_sizes(setting.codec)]
                if setting.encoding not in files:
                    files[setting.encoding] = self._encode(setting, image, unit.picture, family)
                rows[i] = self._decode(row, files[setting.encoding], original)
            except PerCoError as error:
                rows[i] = replace(row, error=str(error))
        return rows

    def _encode(
        self, setting: Setting, image: Image.Image, picture: Picture, family: list[Baseline]
    ) -> _File:
        if setting.codec == OURS:
            return self._ours(setting, picture, image)
        begun, chosen = time.perf_counter(), None
        if (budget := setting.budget_bytes) is not None:
            fit = best_within(family, image, size_bytes=budget)
            if fit is None:
                raise ImageError(f"{setting.codec} {table.UNMET} {budget} bytes")
            codec, data, chosen = fit.codec, fit.data, f"{fit.codec.name}@{fit.quality}"
        else:
            codec = find_baseline(setting.codec)
            data = codec.encode(image, setting.quality or 0)
        took = time.perf_counter() - begun
        columns = {"description": codec.describe(), "chosen": chosen}
        return _File(data=data, decode=lambda _: codec.decode(data), encode_s=took, columns=columns)

    def _look(self, picture: Picture, image: Image.Image, effort: str) -> tuple[float, Tokens]:
        """Seconds, and the tokens of a picture; those of the last one are kept for its files."""
        if (key := (picture.name, effort)) not in self._looked:
            codec, begun = self.codec, time.perf_counter()  # the model is loaded before the clock
            found = codec.look(image, effort=effort)
            self._looked = {key: (time.perf_counter() - begun, found)}
        return self._looked[key]

    def _ours(self, setting: Setting, picture: Picture, image: Image.Image) -> _File:
        assert setting.mode is not None and setting.schedule is not None
        codec, schedule = self.codec, setting.schedule
        look_s, found = self._look(picture, image, setting.effort or DEFAULT_EFFORT)
        begun = time.perf_counter()
        count, size = setting.tokens, setting.budget_bytes
        put = partial(codec.write, mode=setting.mode, count=count, size=size, schedule=schedule)
        stream = put(found)
        if (better := codec.complete(image, found, stream)) is not found:
            stream = put(better)
        encoded = time.perf_counter()
        contents = codec.read(stream)
        bits = dict(zip(("header_bits", "caption_bits", "token_bits"), contents.bits, strict=True))
        about = f"PerCoV2 {codec.name}, model {codec.fingerprint:02x}, {schedule}"
        columns = {"description": about, "caption_text": contents.caption, **bits}

        def decode(at: Setting) -> Image.Image:
            preset = at.preset or "balanced"
            own = codec if at.stand_in is None else replace(codec, stand_in=STAND_INS[at.stand_in])
            *_, last = own.paint(contents, steps=at.steps, guidance=at.guidance, preset=preset)
            assert last.picture is not None
            return last.picture

        encode_s, read_s = look_s + encoded - begun, time.perf_counter() - encoded
        data = stream.to_bytes()
        return _File(data=data, decode=decode, encode_s=encode_s, read_s=read_s, columns=columns)

    def _decode(self, row: Row, file: _File, original: Seen) -> Row:
        begun = time.perf_counter()
        decoded = file.decode(row.setting)
        seconds = file.read_s + time.perf_counter() - begun
        return replace(
            row,
            size_bytes=len(file.data),
            bpp=bits_per_pixel(len(file.data), *decoded.size),
            encode_s=round(file.encode_s, 4),
            decode_s=round(seconds, 4),
            scores=self.judge.score(original, decoded),
            thumbnail=self._store(row, decoded),
            **file.columns,
        )

    def _store(self, row: Row, decoded: Image.Image) -> str | None:
        if self.plan.keep:
            decoded.save(self._place(table.decoded_path(row.setting.key, row.picture)))
        if not self.plan.thumbnails:
            return None
        name = table.decoded_path(row.setting.key, row.picture, folder="thumbnails", suffix="webp")
        save_thumbnail(decoded, self._place(name))
        return name.as_posix()

    def _place(self, name: Path) -> Path:
        path = self.plan.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def save_thumbnail(image: Image.Image, file: Path | io.BytesIO) -> None:
    """Write a reduced WebP for the report."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small.save(file, "WEBP", quality=80)


def make_units(
    pictures: Iterable[Picture], settings: Sequence[Setting], *, done: set[tuple[str, str]]
) -> list[Unit]:
    """What is left to do: per picture, one unit for all settings that belong together."""
    units = []
    for picture in pictures:
        groups: dict[Setting, list[Setting]] = {}
        for setting in settings:
            if (picture.name, setting.key) not in done:
                groups.setdefault(setting.unit, []).append(setting)
        units += [Unit(picture, tuple(group)) for group in groups.values()]
    return units


def evaluate(
    pictures: Sequence[Picture], settings: Sequence[Setting], plan: Plan, *, processes: int = 1
) -> pd.DataFrame:
    """Run what is missing by so many processes, then write `rows.csv` and `rows.parquet` into
    `plan.out`; -> all rows of that folder, also those of earlier runs.
    Under `accelerate launch` every process takes its share of the units and the first one writes
    the tables; the output folder must be one that all of them see. ConfigError if there is no such
    device, or the folder holds rows of something else."""
    check_device(plan.device)
    state = PartialState(cpu=plan.device == "cpu")
    if plan.device == "auto":
        plan = replace(plan, device=str(state.device))
    if state.is_main_process:
        _sign(plan, pictures)
    state.wait_for_everyone()
    done = {(row["picture"], row["key"]) for row in read_log(plan.out / LOG_FOLDER)}
    units = make_units(pictures, settings, done=done)[state.process_index :: state.num_processes]
    if processes == 1 or not units:
        _run_share(0, units, plan, 1)
    else:
        # Spawned, not forked: a forked child of a process that has used torch may hang. On Linux
        # they leave when their parent does, however that came.
        spawn(_run_share, (units, plan, processes), nprocs=processes)  # type: ignore[no-untyped-call]
    state.wait_for_everyone()
    frame = table.to_frame(read_log(plan.out / LOG_FOLDER))
    if state.is_main_process:
        table.write_tables(frame, plan.out)
    return frame


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have. The ConfigError says what it could be."""
    if name in ("cpu", "auto"):
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device must be cpu, cuda, cuda:N or auto, got {name!r}") from error
    found = torch.cuda.device_count()
    if device.type != "cuda" or (device.index or 0) >= found:
        raise ConfigError(f"device must be cpu, or one of the {found} GPUs here, got {name!r}")


def _run_share(index: int, units: Sequence[Unit], plan: Plan, count: int) -> None:
    """Do every `count`-th unit, from the one at `index`; the first process shows how far it is."""
    share = units[index::count]
    if not share:
        return
    if count > 1:
        # What a worker hears when its parent is gone; shells make background jobs deaf to it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    worker = Worker(plan)
    # A log for each process and run: a line that was cut off harms no other.
    log = plan.out / LOG_FOLDER / f"rows-{time.time_ns()}-{os.getpid()}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    total = sum(len(unit.settings) for unit in share)
    with tqdm(total=total, unit="row", disable=None if index == 0 else True) as bar:
        for unit in share:
            rows = worker.run(unit)
            with log.open("a", encoding="utf-8") as file:  # on disk before the next rows are made
                file.writelines(json.dumps(row.flat()) + "\n" for row in rows)
            bar.update(len(rows))


def _sign(plan: Plan, pictures: Sequence[Picture]) -> None:
    """Rows of different protocols or pictures must not end in one table."""
    signature = {
        "model": plan.model,
        "metrics": list(plan.metrics),
        "square": all(picture.square for picture in pictures),
        "data": str(plan.data.resolve()),
    }
    path = plan.out / SIGNATURE
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, value in signature.items():
        if found.get(name, value) != value:
            differ = f"the rows there have {name} {found[name]!r}, the new ones {value!r}"
            raise ConfigError(f"{path}: {differ}: choose another output folder")
    plan.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(signature, indent=1) + "\n", encoding="utf-8")
