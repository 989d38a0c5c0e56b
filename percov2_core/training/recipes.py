"""One function per training stage of the command line, from a recipe of plain settings.

A recipe is a JSON object with the optional keys `loop`, `plan`, `loss`, `model`; each holds fields
of the stage's own dataclasses. What is left out has the value that the embedded model was
trained with.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from percov2_core.config import RATES
from percov2_core.errors import ConfigError
from percov2_core.metrics.features import SqueezeNetFeatures
from percov2_core.training.data import CropPlan, Photos, open_photos
from percov2_core.training.loop import LoopConfig
from percov2_core.training.scoring import Scorer

_Settings = TypeVar("_Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the command line says about one run.

    Attributes:
        data: Folder of photos (stage `caption`: its sibling `captions` is used as well).
        out: Folder of the run.
        recipe: Settings, see the module.
        vae: Folder of the trained autoencoder.
        parts: Folder of the rate's trained modules (stages `masked`).
        init: Folder of an earlier run of the same stage to go on from.
        perceptual: SqueezeNet weights, or None to train and score without.
        pictures: Folder of evaluation pictures, or None not to score.
        captions: Gzipped captions, one a line (stage `caption`).
    """

    data: Path
    out: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    minutes: float | None = None
    steps: int | None = None
    device: str | None = None
    resume: bool = False
    vae: Path | None = None
    parts: Path | None = None
    init: Path | None = None
    perceptual: Path | None = None
    pictures: Path | None = None
    captions: Path | None = None

    def photos(self) -> Photos:
        return open_photos(self.data, self.out.parent / "photos")

    def features(self) -> SqueezeNetFeatures | None:
        return SqueezeNetFeatures(self.perceptual) if self.perceptual else None

    def scorer(self) -> Scorer | None:
        return Scorer(self.pictures, self.features()) if self.pictures else None

    def loop(self, **defaults: Any) -> LoopConfig:
        given = {"minutes": self.minutes, "steps": self.steps, "device": self.device}
        said = {k: v for k, v in given.items() if v is not None}
        return settings(LoopConfig, {**defaults, **self.recipe.get("loop", {}), **said}, "loop")

    def needs(self, name: str) -> Path:
        value = getattr(self, name)
        if value is None:
            raise ConfigError(f"--{name} is needed for this stage, got none")
        return Path(value)


def settings(kind: type[_Settings], values: Mapping[str, Any], where: str) -> _Settings:
    """A dataclass from recipe values.

    Raises:
        ConfigError: if a name is unknown.
    """
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ConfigError(
            f"recipe {where}: expected {', '.join(sorted(known))}, got {unknown[0]!r}"
        )
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**tuples)


def read_recipe(path: Path | None) -> dict[str, Any]:
    """The JSON object at `path`, or an empty one.

    Raises:
        ConfigError: if it is not a JSON object.
    """
    if path is None:
        return {}
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"recipe {str(path)!r} is not JSON: {error}") from error
    if not isinstance(recipe, dict):
        raise ConfigError(f"recipe {str(path)!r} must be an object, got {type(recipe).__name__}")
    return recipe


def run_autoencoder(job: Job) -> None:
    from percov2_core.training import autoencoder as stage

    plan = {"sides": (192,), "weights": (1.0,), "batch_px": 16 * 192 * 192}
    model = {**stage.EMBEDDED, **job.recipe.get("model", {})}
    stage.train_autoencoder(
        job.photos(),
        job.out,
        loop=job.loop(lr=1e-3),
        plan=settings(CropPlan, {**plan, **job.recipe.get("plan", {})}, "plan"),
        features=job.features(),
        scorer=job.scorer(),
        model_config=model,
        resume=job.resume,
    )


_PLANS = MappingProxyType(
    {
        "extreme": {"sides": (192, 256, 384), "weights": (0.55, 0.3, 0.15)},
        "ultra-low": {"sides": (256, 384, 512), "weights": (0.5, 0.25, 0.25)},
    }
)


def run_rate(job: Job, rate: str) -> None:
    from percov2_core.training import parts
    from percov2_core.training import rate as stage
    from percov2_core.training.stage1 import Stage1Loss

    known = parts.EMBEDDED[rate]
    sizes = {f.name: getattr(known, f.name) for f in dataclasses.fields(known)}
    sizes |= job.recipe.get("model", {})
    stage.train_rate(
        job.photos(),
        job.out,
        vae=stage.open_vae(job.needs("vae")),
        sizes=settings(parts.Sizes, sizes, "model"),
        loss=settings(Stage1Loss, job.recipe.get("loss", {}), "loss"),
        loop=job.loop(lr=8e-4),
        plan=settings(CropPlan, {**_PLANS[rate], **job.recipe.get("plan", {})}, "plan"),
        features=job.features(),
        scorer=job.scorer(),
        init=job.init,
        resume=job.resume,
    )


_MASKED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "extreme": {"width": 192, "heads": 6, "content_layers": 2, "query_layers": 3},
        "ultra-low": {
            "width": 160,
            "heads": 5,
            "content_layers": 2,
            "query_layers": 3,
            "dropout": 0.1,
        },
    }
)


def run_masked(job: Job, rate: str) -> None:
    import torch

    from percov2_core.entropy.exporter import export
    from percov2_core.hyper.encoder import HyperEncoder
    from percov2_core.hyper.quantizer import VectorQuantizer
    from percov2_core.training import masked, tokens
    from percov2_core.training import rate as stage
    from percov2_core.weights import load_part

    folder, device = job.needs("parts"), torch.device(job.device or "cpu")
    plan = {**dataclasses.asdict(tokens.EMBEDDED[rate]), **job.recipe.get("plan", {})}
    files = tokens.write_grids(
        job.photos(),
        job.out / "tokens",
        vae=stage.open_vae(job.needs("vae")),
        encoder=load_part(HyperEncoder, folder / "hyper_encoder", device),
        quantizer=load_part(VectorQuantizer, folder / "quantizer", device),
        plan=settings(tokens.GridPlan, plan, "plan"),
    )
    said = {k: v for k, v in (("minutes", job.minutes), ("steps", job.steps)) if v is not None}
    loop = {"minutes": 12.0, **job.recipe.get("loop", {}), **said}
    model = masked.train_masked(
        files,
        job.out,
        config=settings(
            masked.MaskedModelConfig, {**_MASKED[rate], **job.recipe.get("model", {})}, "model"
        ),
        settings=settings(masked.MaskedTraining, loop, "loop"),
        device=str(device),
        init=job.init,
        resume=job.resume,
    )
    export(model).save(job.out / "entropy.safetensors")


def run_caption(job: Job) -> None:
    from percov2_core.training.caption_language import train_caption_language

    job.out.mkdir(parents=True, exist_ok=True)
    train_caption_language(job.needs("captions"), job.data, job.out / "caption_language.npz")


STAGES: Mapping[str, Callable[[Job], None]] = MappingProxyType(
    {
        "autoencoder": run_autoencoder,
        **{rate: partial(run_rate, rate=rate) for rate in RATES},
        **{f"masked-{rate}": partial(run_masked, rate=rate) for rate in RATES},
        "caption": run_caption,
    }
)
