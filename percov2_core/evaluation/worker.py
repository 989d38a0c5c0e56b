"""One unit of work: a picture, and all settings that share its encoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from percov2_core.baselines.base import Baseline, Remembered, best_within
from percov2_core.baselines.classic import family_at_all_sizes, find_baseline
from percov2_core.errors import ConfigError, ImageError, PerCoError
from percov2_core.evaluation.judge import Judge, Reference
from percov2_core.evaluation.protocol import Picture, to_tensor
from percov2_core.evaluation.rows import UNMET, Row, decoded_path
from percov2_core.evaluation.settings import OURS, Setting
from percov2_core.metrics import METRICS, bits_per_pixel
from percov2_core.metrics.distortion import psnr

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2

THUMBNAIL_PX = 192


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every worker needs to know; it travels to other processes.

    Attributes:
        out: Output folder.
        data: Folder of the pictures, so that rows of another are not added.
        model: Name or folder for `load_codec`.
        device: Where models and metrics run.
        metrics: Names of `metrics.METRICS`.
        captions: Picture stem -> text, for the caption `fixed`.
        budgets: Picture name -> mode -> bytes, for settings with `match`.
        thumbnails: Write reduced pictures for the report.
        keep: Write every decoded picture as PNG, for set metrics.
        threads: Of torch in each worker; 0 leaves the default.
    """

    out: Path
    data: Path | None = None
    model: str = "embedded"
    device: str = "cpu"
    metrics: tuple[str, ...] = METRICS
    captions: Mapping[str, str] = field(default_factory=dict)
    budgets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    thumbnails: bool = True
    keep: bool = False
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Unit:
    """A picture and settings with one `Setting.unit`."""

    picture: Picture
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """An encoded picture.

    Attributes:
        decode: At a setting that shares this file.
        encode_s: Seconds that it took.
        read_s: Seconds of decoding that all settings share.
        columns: Of `Row`, what the file alone decides.
    """

    data: bytes
    decode: Callable[[Setting], Image.Image]
    encode_s: float
    read_s: float = 0.0
    columns: Mapping[str, Any]


class Worker:
    """Holds the models and the metrics of one process."""

    def __init__(self, plan: Plan, *, codec: PerCoV2 | None = None) -> None:
        if plan.threads:
            torch.set_num_threads(plan.threads)
        self.plan = plan
        self.judge = Judge(plan.metrics, device=plan.device)
        self._given = codec

    @cached_property
    def codec(self) -> PerCoV2:
        if self._given is not None:
            return self._given
        # Only when a setting asks for it: classic codecs need no model.
        from percov2_core.weights import load_codec

        return load_codec(self.plan.model, device=self.plan.device)

    def run(self, unit: Unit) -> list[Row]:
        """All rows of a unit. What a user can cause becomes a row with its error."""
        try:
            image = unit.picture.open()
        except PerCoError as error:
            return [
                Row(picture=unit.picture.name, setting=s, error=str(error)) for s in unit.settings
            ]
        return list(self._rows(unit, image))

    def _rows(self, unit: Unit, image: Image.Image) -> Iterator[Row]:
        reference = Reference(image, self.judge.device)
        families: list[Baseline] = []
        files: dict[Setting, _File] = {}
        for setting in unit.settings:
            row = Row(
                picture=unit.picture.name, setting=setting, width=image.width, height=image.height
            )
            try:
                if setting.has_budget and not families:
                    families = [Remembered(c) for c in family_at_all_sizes(setting.codec)]
                if setting.encoding not in files:
                    files[setting.encoding] = self._encode(setting, image, unit.picture, families)
                yield self._decode(row, files[setting.encoding], reference)
            except PerCoError as error:
                yield replace(row, error=str(error))

    def _encode(
        self, setting: Setting, image: Image.Image, picture: Picture, families: list[Baseline]
    ) -> _File:
        if setting.codec == OURS:
            return self._ours(setting, image, caption=self._caption(setting, picture))
        begun = time.perf_counter()
        if setting.has_budget:
            budget = self._budget(setting, picture)
            fit = best_within(families, image, size_bytes=budget, score=_psnr)
            if fit is None:
                raise ImageError(f"{setting.codec} {UNMET} {budget} bytes")
            codec, data, chosen = fit.codec, fit.data, f"{fit.codec.name}@{fit.quality}"
        else:
            codec, chosen = find_baseline(setting.codec), None
            data = codec.encode(image, setting.quality or 0)
        return _File(
            data=data,
            decode=lambda _: codec.decode(data),
            encode_s=time.perf_counter() - begun,
            columns={"description": codec.description, "chosen": chosen},
        )

    def _ours(self, setting: Setting, image: Image.Image, *, caption: str | None) -> _File:
        assert setting.mode is not None and setting.schedule is not None
        codec, begun = self.codec, time.perf_counter()  # the model is loaded before the clock runs
        stream = codec.encode(
            image,
            setting.mode,
            caption=caption,
            schedule=setting.schedule,
            tokens=setting.tokens,
        )
        encoded = time.perf_counter()
        contents = codec.read(stream)
        header, caption_bits, tokens = contents.bits

        def decode(at: Setting) -> Image.Image:
            preset = at.preset or "balanced"
            *_, last = codec.paint(contents, steps=at.steps, guidance=at.guidance, preset=preset)
            assert last.picture is not None
            return last.picture

        return _File(
            data=stream.to_bytes(),
            decode=decode,
            encode_s=encoded - begun,
            read_s=time.perf_counter() - encoded,
            columns={
                "description": f"PerCoV2 {codec.name}, model {codec.fingerprint:02x}, "
                f"{setting.schedule}",
                "header_bits": header,
                "caption_bits": caption_bits,
                "token_bits": tokens,
                "caption_text": contents.caption,
            },
        )

    def _budget(self, setting: Setting, picture: Picture) -> int:
        if setting.match is None:
            return setting.budget_bytes or 0
        sizes = self.plan.budgets.get(picture.name, {})
        if setting.match not in sizes:
            raise ConfigError(f"match={setting.match}: no row of it for {picture.name!r}")
        return sizes[setting.match]

    def _caption(self, setting: Setting, picture: Picture) -> str | None:
        if setting.caption == "none":
            return ""
        if setting.caption != "fixed":
            return None
        stem = picture.path.stem
        if stem not in self.plan.captions:
            raise ConfigError(f"caption 'fixed': the table has no line for {stem!r}")
        return self.plan.captions[stem]

    def _decode(self, row: Row, file: _File, reference: Reference) -> Row:
        begun = time.perf_counter()
        decoded = file.decode(row.setting)
        seconds = file.read_s + time.perf_counter() - begun
        assert row.width is not None and row.height is not None
        return replace(
            row,
            size_bytes=len(file.data),
            bpp=bits_per_pixel(len(file.data), row.width, row.height),
            encode_s=round(file.encode_s, 4),
            decode_s=round(seconds, 4),
            scores=self.judge.score(reference, decoded),
            thumbnail=self._store(row, decoded),
            **file.columns,
        )

    def _store(self, row: Row, decoded: Image.Image) -> str | None:
        if self.plan.keep:
            path = self.plan.out / decoded_path(row.setting.key, row.picture)
            path.parent.mkdir(parents=True, exist_ok=True)
            decoded.save(path)
        if not self.plan.thumbnails:
            return None
        name = decoded_path(row.setting.key, row.picture, folder="thumbnails", suffix="webp")
        path = self.plan.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        small = decoded.copy()
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        small.save(path, quality=80)
        return name.as_posix()


def _psnr(a: Image.Image, b: Image.Image) -> float:
    return float(psnr(to_tensor(a), to_tensor(b)))
