"""What the command line says about one run, and one function for each of its stages.

A recipe is a JSON object of plain settings with the optional keys `loop`, `plan`, `loss`, `model`
and, over Stable Diffusion 3, `tuning`; each holds fields of the stage's own dataclasses. What it
leaves out has the value that the embedded model was trained with.

`--model BASE:FOLDER` names a model over Stable Diffusion 3. The stage `cache` needs the base alone;
later ones make the folder if it is not there, and put what they trained back into it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from percov2_core.caption.captioner import get_captioner
from percov2_core.config import RATES
from percov2_core.entropy.exporter import export
from percov2_core.entropy.masked_model import MaskedModelConfig
from percov2_core.errors import ConfigError
from percov2_core.hyper.networks import HyperEncoder, VectorQuantizer
from percov2_core.metrics.features import SqueezeNetFeatures
from percov2_core.training import autoencoder, masked
from percov2_core.training.cache import Cache, read_info, write_cache
from percov2_core.training.caption_language import train_caption_language
from percov2_core.training.loop import LoopConfig, Report, processes
from percov2_core.training.rate import (
    Tuning,
    check_pair,
    embedded_rate,
    open_vae,
    rate_over_base,
    train_rate,
)
from percov2_core.training.samples import (
    CropPlan,
    Encoded,
    EncodedPhotos,
    GridPlan,
    PhotoCrops,
    Photos,
    write_grids,
)
from percov2_core.training.stage1 import Stage1Loss
from percov2_core.weights.about import ABOUT_FILE, ENTROPY_FILE, read_about, write_about
from percov2_core.weights.base import load_base
from percov2_core.weights.files import load_part
from percov2_core.weights.fresh import write_fresh_checkpoint
from percov2_core.weights.places import MODELS_DIR, find_base
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import CLIP_TOKENS, EMBEDDED, T5_TOKENS, Sizes, find_base_model

_Settings = TypeVar("_Settings")

_CROPS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "extreme": {"sides": (192, 256, 384), "weights": (0.55, 0.3, 0.15)},
        "ultra-low": {"sides": (256, 384, 512), "weights": (0.5, 0.25, 0.25)},
    }
)
_GRIDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "extreme": {"sides": (384, 512), "counts": (3000, 1000)},
        "ultra-low": {"sides": (384, 512), "counts": (1500, 2500)},
    }
)
# Of the paper where it says so (learning rate, weight decay, a constant rate), else our choice.
_LOOP_OVER_BASE = {"lr": 1e-5, "floor": 1.0, "warmup_steps": 500, "steps": 100_000}
_LOOP_OVER_BASE |= {"save_every_s": 900.0, "evaluate_every_s": 1800.0}
_LOSS_OVER_BASE = {"times": "logistic", "pixel_share": 0.0}
_LORA_RANK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the command line says about one run; `train --help` explains each.

    Attributes:
        recipe: Settings, see the module.
        report: Called with each line about the cost of a run.
    """

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
    report: Report | None = None

    def photos(self) -> Photos:
        return Photos(self.needs("data"))

    def features(self) -> SqueezeNetFeatures | None:
        return SqueezeNetFeatures(self.perceptual) if self.perceptual else None

    def scorer(self) -> autoencoder.Scorer | None:
        return autoencoder.Scorer(self.pictures, self.features()) if self.pictures else None

    def settings(self, kind: type[_Settings], key: str, defaults: Mapping[str, Any]) -> _Settings:
        """The recipe's values under `key`, before `defaults`."""
        return settings(kind, {**defaults, **self.recipe.get(key, {})}, key)

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

    def over(self) -> tuple[str, Path]:
        """What `--model` says: a base, and the folder of the model over it.

        Raises:
            ConfigError: if it names no base.
        """
        if not self.model:
            raise ConfigError(
                "--model is needed for this stage, got none: a base such as sd3-medium"
            )
        if self.lora_rank is not None and self.lora_rank < 0:
            raise ConfigError(f"--lora-rank must be at least 0, got {self.lora_rank}")
        base, _, folder = self.model.partition(":")
        return find_base_model(base).name, Path(folder) if folder else MODELS_DIR / base

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
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
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


def run_autoencoder(options: RunOptions) -> None:
    _refuse_base(options, "autoencoder")
    plan = {"sides": (192,), "weights": (1.0,), "batch_px": 16 * 192 * 192}
    autoencoder.train_autoencoder(
        options.photos(),
        options.out,
        loop=options.loop(lr=1e-3),
        plan=options.settings(CropPlan, "plan", plan),
        features=options.features(),
        scorer=options.scorer(),
        model_config={**autoencoder.EMBEDDED, **options.recipe.get("model", {})},
        resume=options.resume,
    )


def run_rate(options: RunOptions, name: str) -> None:
    """Stage 1 of one rate."""
    if options.model:
        model, cache = _model_folder(options), options.needs("cache")
        tuning = options.settings(Tuning, "tuning", {})
        loop = options.loop(**_LOOP_OVER_BASE)
        loss = {**_LOSS_OVER_BASE, "shift": read_about(model).shift}
        rate = rate_over_base(
            name,
            Cache(cache, batch_px=tuning.batch_px, seed=loop.seed, held_out=tuning.held_out),
            model,
            loss=options.settings(Stage1Loss, "loss", loss),
            tuning=tuning,
            loop=loop,
        )
    else:
        known = {f.name: getattr(EMBEDDED[name], f.name) for f in fields(EMBEDDED[name])}
        loop = options.loop(lr=8e-4)
        plan = options.settings(CropPlan, "plan", _CROPS[name])
        rate = embedded_rate(
            name,
            PhotoCrops(options.photos(), plan, loop.seed),
            options.out,
            vae=options.needs("vae"),
            sizes=options.settings(Sizes, "model", known),
            loss=options.settings(Stage1Loss, "loss", {}),
            loop=loop,
            features=options.features(),
            scorer=options.scorer(),
        )
    train_rate(
        rate,
        options.out,
        loop=loop,
        init=options.init,
        resume=options.resume,
        report=options.report,
    )


def run_masked(options: RunOptions, name: str) -> None:
    """The entropy model of one rate, on the tokens that its hyper-encoder gives.

    Raises:
        ConfigError: if there are several processes: the model is too small for more than one.
    """
    state = processes(options.device)
    if state.num_processes > 1:
        raise ConfigError(f"stage masked-{name} runs in 1 process, got {state.num_processes}")
    source: Encoded
    if options.model:
        model, source = _model_folder(options), Cache(options.needs("cache"))
        check_pair(model, source)
        modules, minutes = model / name, 60.0
    else:
        modules, minutes = options.needs("parts"), 12.0
        plan = options.settings(GridPlan, "plan", _GRIDS[name])
        source = EncodedPhotos(
            options.photos(), plan, open_vae(options.needs("vae")).to(state.device)
        )
    files = write_grids(
        source,
        options.out / "tokens",
        encoder=load_part(HyperEncoder, modules / "hyper_encoder", state.device),
        quantizer=load_part(VectorQuantizer, modules / "quantizer", state.device),
    )
    loop = {"minutes": minutes, **options.recipe.get("loop", {}), **options.length()}
    trained = masked.train_masked(
        files,
        options.out,
        config=options.settings(MaskedModelConfig, "model", masked.EMBEDDED[name]),
        settings=settings(masked.MaskedTraining, loop, "loop"),
        device=str(state.device),
        init=options.init,
        resume=options.resume,
    )
    if options.model:
        export(trained).save(modules / ENTROPY_FILE)
        write_about(read_about(modules.parent), modules.parent)
    else:
        export(trained).save(options.out / ENTROPY_FILE)


def run_caption(options: RunOptions) -> None:
    """The language model that codes captions."""
    _refuse_base(options, "caption")
    options.out.mkdir(parents=True, exist_ok=True)
    train_caption_language(
        options.needs("captions"), options.needs("data"), options.out / "caption_language.npz"
    )


def run_cache(options: RunOptions) -> None:
    """Latents and text embeddings of photos, once."""
    (name, _), photos = options.over(), options.photos()
    state = processes(options.device)
    device = "cpu" if state.device.type == "cpu" else str(state.device)
    home = Residency.from_environment(device=device)
    captioner = get_captioner(options.captioner, device=str(home.target))
    t5 = T5_TOKENS if options.t5 else 0
    base = load_base(
        find_base(name, t5=t5 > 0),
        name=name,
        residency=home,
        transformer=False,
        t5_tokens=t5,
    )
    plan = options.settings(GridPlan, "plan", {"sides": (512,), "counts": (len(photos),)})
    source = EncodedPhotos(photos, plan, base.vae, captioner)
    write_cache(source, options.out, base=base, captioner=captioner)


def _refuse_base(options: RunOptions, stage: str) -> None:
    if options.model:
        raise ConfigError(
            f"stage {stage!r} trains no part over a base, got --model {options.model}"
        )


def _model_folder(options: RunOptions) -> Path:
    """The model folder; a fresh one is written if there is none.

    Raises:
        ConfigError: if it is there, and a rank for a new one is given.
    """
    (base, folder), state = options.over(), processes(options.device)
    made = (folder / ABOUT_FILE).is_file()
    if state.is_main_process and made and options.lora_rank is not None:
        raise ConfigError(f"--lora-rank is for a new checkpoint, {str(folder)!r} is there")
    if state.is_main_process and not made:
        info = read_info(options.needs("cache"))
        write_fresh_checkpoint(
            folder,
            find_base(base, t5=False),
            base_name=base,
            lora_rank=_LORA_RANK if options.lora_rank is None else options.lora_rank,
            t5_tokens=info.text_tokens - CLIP_TOKENS,
        )
    state.wait_for_everyone()
    return folder


STAGES: Mapping[str, Callable[[RunOptions], None]] = MappingProxyType(
    {
        "autoencoder": run_autoencoder,
        **{rate: partial(run_rate, name=rate) for rate in RATES},
        **{f"masked-{rate}": partial(run_masked, name=rate) for rate in RATES},
        "caption": run_caption,
        "cache": run_cache,
    }
)
