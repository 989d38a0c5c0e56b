"""One unit of work: a picture, and all settings that share its encoding."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from percov2_core.baselines.base import Baseline, Remembered, best_within
from percov2_core.baselines.percov2 import Codec, PerCo
from percov2_core.baselines.registry import family_at_all_sizes, find_baseline
from percov2_core.bitstream import Stream
from percov2_core.errors import ConfigError, ImageError, PerCoError
from percov2_core.evaluation.judge import METRICS, Judge, Reference
from percov2_core.evaluation.protocol import Picture, to_tensor
from percov2_core.evaluation.rows import Row, setting_slug, stored_name
from percov2_core.evaluation.settings import OURS, Setting
from percov2_core.metrics.distortion import psnr
from percov2_core.metrics.rate import bits_per_pixel

THUMBNAIL_PX = 192


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every worker needs to know; it travels to other processes.

    Attributes:
        out: Output folder.
        model: Name or folder for `load_codec`.
        device: Where models and metrics run.
        metrics: Names of `judge.METRICS`.
        captions: Picture stem -> text, for the caption `fixed`.
        budgets: Picture name -> mode -> bytes, for settings with `match`.
        thumbnails: Write reduced pictures for the report.
        keep: Write every decoded picture as PNG, for set metrics.
        threads: Of torch in each worker; 0 leaves the default.
    """

    out: Path
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
    """An encoded picture and how to decode it."""

    codec: Baseline
    data: bytes
    seconds: float
    chosen: str | None = None


class Worker:
    """Holds the models and the metrics of one process."""

    def __init__(self, plan: Plan, *, codec: Codec | None = None) -> None:
        if plan.threads:
            torch.set_num_threads(plan.threads)
        self.plan = plan
        self.judge = Judge(plan.metrics, device=plan.device)
        self._given = codec

    @cached_property
    def codec(self) -> Codec:
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
                    files[setting.encoding] = self._encode(setting, image, unit, families)
                yield self._decode(row, files[setting.encoding], reference)
            except PerCoError as error:
                yield replace(row, error=str(error))

    def _encode(
        self, setting: Setting, image: Image.Image, unit: Unit, families: list[Baseline]
    ) -> _File:
        begun = time.perf_counter()
        if setting.has_budget:
            budget = self._budget(setting, unit.picture)
            fit = best_within(families, image, size_bytes=budget, score=_psnr)
            if fit is None:
                raise ImageError(f"{setting.codec} cannot do it in {budget} bytes")
            seconds = time.perf_counter() - begun
            chosen = f"{fit.codec.name}@{fit.quality}"
            return _File(codec=fit.codec, data=fit.data, seconds=seconds, chosen=chosen)
        codec, quality = self._codec(setting, unit.picture)
        begun = time.perf_counter()  # again: the line above may have loaded a model
        data = codec.encode(image, quality)
        return _File(codec=codec, data=data, seconds=time.perf_counter() - begun)

    def _budget(self, setting: Setting, picture: Picture) -> int:
        if setting.match is None:
            return setting.budget_bytes or 0
        sizes = self.plan.budgets.get(picture.name, {})
        if setting.match not in sizes:
            raise ConfigError(f"match={setting.match}: no row of it for {picture.name!r}")
        return sizes[setting.match]

    def _codec(self, setting: Setting, picture: Picture) -> tuple[Baseline, int]:
        if setting.codec != OURS:
            return find_baseline(setting.codec), setting.quality or 0
        return self._ours(setting, self._caption(setting, picture)), setting.tokens or 0

    def _ours(self, setting: Setting, caption: str | None = None) -> PerCo:
        assert setting.mode is not None and setting.schedule is not None
        return PerCo(
            codec=self.codec,
            mode=setting.mode,
            schedule=setting.schedule,
            caption=caption,
            preset=setting.preset or "balanced",
            steps=setting.steps,
            guidance=setting.guidance,
        )

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
        setting = row.setting
        codec = self._ours(setting) if setting.codec == OURS else file.codec
        begun = time.perf_counter()
        decoded = codec.decode(file.data)
        seconds = time.perf_counter() - begun
        assert row.width is not None and row.height is not None
        row = replace(
            row,
            size_bytes=len(file.data),
            bpp=bits_per_pixel(len(file.data), row.width, row.height),
            chosen=file.chosen,
            encode_s=round(file.seconds, 4),
            decode_s=round(seconds, 4),
            description=file.codec.description,
            scores=self.judge.score(reference, decoded),
            thumbnail=self._store(row, decoded),
        )
        return self._with_contents(row, file.data) if setting.codec == OURS else row

    def _with_contents(self, row: Row, data: bytes) -> Row:
        contents = self.codec.read(Stream.from_bytes(data))
        header, caption, tokens = contents.bits
        return replace(
            row,
            header_bits=header,
            caption_bits=caption,
            token_bits=tokens,
            caption_text=contents.caption,
        )

    def _store(self, row: Row, decoded: Image.Image) -> str | None:
        slug, name = setting_slug(row.setting.key), stored_name(row.picture)
        if self.plan.keep:
            path = self.plan.out / "decoded" / slug / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            decoded.save(path)
        if not self.plan.thumbnails:
            return None
        path = self.plan.out / "thumbnails" / slug / f"{name}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = decoded.copy()
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        small.save(path, quality=80)
        return path.relative_to(self.plan.out).as_posix()


def _psnr(a: Image.Image, b: Image.Image) -> float:
    return float(psnr(to_tensor(a), to_tensor(b)))
