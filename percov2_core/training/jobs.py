"""What the command line says about one run, and recipes of plain settings.

A recipe is a JSON object with the optional keys `loop`, `plan`, `loss`, `model`; each holds fields
of the stage's own dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from percov2_core.errors import ConfigError
from percov2_core.metrics.features import SqueezeNetFeatures
from percov2_core.training.data import Photos, open_photos
from percov2_core.training.loop import LoopConfig
from percov2_core.training.scoring import Scorer

log = logging.getLogger(__name__)

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
        model: Base or BASE:CHECKPOINT to train over instead of the embedded model.
        cache: Folder that the stage `cache` wrote, which later stages over a base read.
        captioner: Who writes the captions of a cache.
        t5: Whether a new cache takes the third text encoder along.
        lora_rank: Of the transformer's difference in a new checkpoint; 0 trains it in full.
        report: Called with each line about the cost of a run.
    """

    data: Path | None = None
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
    model: str | None = None
    cache: Path | None = None
    captioner: str = "auto"
    t5: bool = True
    lora_rank: int | None = None
    report: Callable[[str], None] = log.info

    def photos(self) -> Photos:
        return open_photos(self.needs("data"), self.out.parent / "photos")

    def features(self) -> SqueezeNetFeatures | None:
        return SqueezeNetFeatures(self.perceptual) if self.perceptual else None

    def scorer(self) -> Scorer | None:
        return Scorer(self.pictures, self.features()) if self.pictures else None

    def loop(self, **defaults: Any) -> LoopConfig:
        """Length and speed: the recipe goes before `defaults`, the command line before both."""
        recipe = self.recipe.get("loop", {})
        recipe = {"steps": None, **recipe} if "minutes" in recipe else recipe
        said = {**self.length(), **({"device": self.device} if self.device else {})}
        return settings(LoopConfig, {**defaults, **recipe, **said}, "loop")

    def length(self) -> dict[str, float | None]:
        """What the command line says about the length of the run; it goes before a recipe."""
        if self.steps is not None:
            return {"steps": self.steps}
        return {} if self.minutes is None else {"minutes": self.minutes, "steps": None}

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
