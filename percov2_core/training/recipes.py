"""What the command line says about one run, and the stages that it can name.

A recipe is a JSON object of plain settings with the optional keys `loop`, `plan`, `loss`, `model`,
`shown` and `tuning`; each holds fields of the stage's own dataclasses. What it leaves out has the
value that the embedded model was trained with.

`--model BASE:FOLDER` names a model over Stable Diffusion 3. The stage `cache` needs the base alone;
later ones make the folder if it is not there, and put what they trained back into it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from percov2_core.config import LEVELS
from percov2_core.errors import ConfigError
from percov2_core.metrics.features import SqueezeNetFeatures
from percov2_core.training.autoencoder import Scorer, train_autoencoder
from percov2_core.training.cache import write_cache
from percov2_core.training.caption_language import train_caption_language
from percov2_core.training.loop import LoopConfig
from percov2_core.training.masked import train_masked
from percov2_core.training.model import train_stage1
from percov2_core.training.photos import Photo, find_photos
from percov2_core.training.surrogate import train_surrogate
from percov2_core.weights.find import MODELS_DIR
from percov2_core.weights.sizes import find_base_model

_Settings = TypeVar("_Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the command line says about one run; `train --help` explains each."""

    out: Path
    data: Path | None = None
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

    def photos(self) -> list[Photo]:
        return find_photos(self.needs("data"))

    def features(self) -> SqueezeNetFeatures | None:
        return SqueezeNetFeatures(self.perceptual) if self.perceptual else None

    def scorer(self) -> Scorer | None:
        return Scorer(self.pictures, self.features(), self.out) if self.pictures else None

    def settings(self, kind: type[_Settings], key: str, **defaults: Any) -> _Settings:
        """The recipe's values under `key`, before `defaults`."""
        return settings(kind, {**defaults, **self.recipe.get(key, {})}, key)

    def loop(self, **defaults: Any) -> LoopConfig:
        """Length and speed: the recipe goes before `defaults`, the command line before both."""
        values, last = defaults, {"steps": self.steps, "device": self.device}
        for said in (self.recipe.get("loop", {}), {"minutes": self.minutes}, last):
            given = {name: value for name, value in said.items() if value is not None}
            values |= {"steps": None, **given} if "minutes" in given else given
        return settings(LoopConfig, values, "loop")

    def over(self) -> tuple[str, Path]:
        """What `--model` says: a base, and the folder over it; ConfigError if it names no base."""
        if not self.model:
            raise ConfigError("--model is needed for this stage: a base such as sd3-medium")
        if self.lora_rank is not None and self.lora_rank < 0:
            raise ConfigError(f"--lora-rank must be at least 0, got {self.lora_rank}")
        base, _, folder = self.model.partition(":")
        return find_base_model(base).name, Path(folder) if folder else MODELS_DIR / base

    def needs(self, name: str) -> Path:
        if (value := getattr(self, name)) is None:
            raise ConfigError(f"--{name} is needed for this stage, got none")
        return Path(value)

    def refuse_base(self, stage: str) -> None:
        if self.model:
            raise ConfigError(f"stage {stage!r} trains no part over a base, got {self.model!r}")


def settings(kind: type[_Settings], values: Mapping[str, Any], where: str) -> _Settings:
    """A dataclass from recipe values; ConfigError if a name is unknown."""
    known = sorted(f.name for f in fields(kind))  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - known):
        raise ConfigError(f"recipe {where}: expected {', '.join(known)}, got {unknown[0]!r}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def read_recipe(path: Path | None) -> dict[str, Any]:
    """The JSON object at `path`, or an empty one; ConfigError if it is something else."""
    if path is None:
        return {}
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"recipe {str(path)!r} is not JSON: {error}") from error
    if not isinstance(recipe, dict):
        raise ConfigError(f"recipe {str(path)!r} must be an object, got {type(recipe).__name__}")
    return recipe


STAGES: Mapping[str, Callable[[RunOptions], None]] = {
    "autoencoder": train_autoencoder,
    "tokens": partial(train_stage1, name="tokens"),
    **{f"masked-{level}": partial(train_masked, name=level) for level in LEVELS},
    "painter": partial(train_stage1, name="painter"),
    "surrogate": train_surrogate,
    "caption": train_caption_language,
    "cache": write_cache,
}
