"""Stage 1, from photos and an autoencoder, or over Stable Diffusion 3, in two runs.

`tokens` trains hyper-encoders, codebooks and painter together. Then come the masked models of both
levels (`masked`); then `painter` trains the painter to the end, tokens frozen and the masked model
beside it. The embedded model's modules start fresh and are written to OUT/parts; those over Stable
Diffusion 3 come from a model folder and go back there. The run's own checkpoint holds what it
trains, and nothing of a base.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderDC
from PIL import Image
from torch import Tensor

from percov2_core.caption.describer import describe
from percov2_core.config import FINE, LEVELS
from percov2_core.entropy.exporter import restore
from percov2_core.entropy.masked_model import MaskedImageModel
from percov2_core.errors import ConfigError
from percov2_core.flow.text import TextEmbedding
from percov2_core.flow.transformer import TOLD_MAX
from percov2_core.latent import LatentAutoencoder
from percov2_core.metrics.distortion import to_8bit
from percov2_core.metrics.meaning import EfficientNetLite0
from percov2_core.searching import LevelModules
from percov2_core.training.autoencoder import Scorer
from percov2_core.training.cache import Cache
from percov2_core.training.checkpoint import fill, kept, load_average
from percov2_core.training.loop import Evaluate, Groups, LoopConfig, on_cpu, processes, run, sharded
from percov2_core.training.samples import CropPlan, PhotoCrops
from percov2_core.training.shown import Shown
from percov2_core.training.stage1 import Stage1, Stage1Loss, mean_scores, parameter_groups
from percov2_core.weights import files, parts
from percov2_core.weights.files import PAINTER_DIR, read_about
from percov2_core.weights.find import find_base
from percov2_core.weights.fresh import write_fresh_checkpoint
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import CLIP_TOKENS, EMBEDDED, Sizes

if TYPE_CHECKING:
    from percov2_core.training.recipes import RunOptions

_CROPS = {"sides": (192, 256, 384), "weights": (0.3, 0.4, 0.3)}
_PAINTER_LOSS = {
    "freeze_tokens": True,
    "tune_autoencoder": True,
    "own_path": True,
    "flow": 0.1,
    "whole_flow": 0.75,
    "start": 0.05,
    "pixel": 20.0,
    "pixel_relief": 0.7,
    "structure": 2.0,
    "feature_share": 0.7,
    "perceptual": (0.0, 3.0),
    "texture": 0.4,
    "meaning": (0.0, 1.5),
}
_LORA_RANK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How modules over Stable Diffusion 3 are trained."""

    # Learning rate of what starts from random numbers (hyper-encoder, hyper-decoder, low-rank
    # matrices), as a multiple of the run's, which is the transformer's.
    new_scale: float = 10.0
    warmup: int = 250  # steps until the codebook is set from vectors seen; 0: it is trained already
    batch_px: int = 8 * 512 * 512  # pixels in one step of one process
    gradient_checkpointing: bool = True  # compute the transformer's activations twice, keep few
    held_out: int = 16  # last samples of each side, used for scores only


@dataclass(frozen=True, slots=True)
class CachedText:
    """Stands for the text models while they are not needed: knows the empty caption alone."""

    empty: TextEmbedding

    def encode(self, captions: list[str]) -> TextEmbedding:
        assert captions == [""]
        return self.empty


def train_stage1(options: RunOptions, name: str) -> None:
    """`tokens` or `painter`; ConfigError if `--resume` or `--init` find no checkpoint that fits."""
    (_train_over_base if options.model else _train_embedded)(options, name)


def _train_embedded(options: RunOptions, name: str) -> None:
    """Around a frozen autoencoder; to OUT/parts. An autoencoder that was tuned goes to OUT/vae."""
    loop = options.loop(lr=8e-4 if name == "tokens" else 5e-4)
    plan = options.settings(CropPlan, "plan", **_CROPS)
    loss = options.settings(Stage1Loss, "loss", **(_PAINTER_LOSS if name == "painter" else {}))
    shown = options.settings(Shown, "shown")
    vae, features, scorer = options.needs("vae"), options.features(), options.scorer()
    meaning = EfficientNetLite0() if any(loss.meaning) and features else None
    home = Residency(device=str(processes(loop.device).device), dtype="float32")

    def build() -> Stage1:
        if name == "tokens":
            known = {f.name: getattr(EMBEDDED, f.name) for f in fields(Sizes)}
            levels, painter = parts.build(options.settings(Sizes, "model", **known))
        else:
            folder = options.needs("parts")
            levels = parts.load_levels(folder, home)
            painter = parts.load_painter(folder / PAINTER_DIR, home)
        for module in (painter.decoder, painter.flow, painter.text):
            if isinstance(module, torch.nn.Module):
                module.float().requires_grad_(True)
        return Stage1(
            levels,
            painter,
            loss,
            shown,
            mean_use=_mean_use(plan.batch_px, loop),
            prior=_prior(levels) if name == "painter" else None,
            vae=open_vae(vae).to(home.target),
            features=features.to(home.target) if features else None,
            meaning=meaning.to(home.target) if meaning else None,
        )

    def save(system: Stage1) -> None:
        parts.save_painter(system.painter, options.out / "parts" / PAINTER_DIR, packed=True)
        for level, modules in () if loss.freeze_tokens else system.levels.items():
            parts.save_level(modules, options.out / "parts" / level, packed=True)
        if loss.tune_autoencoder:
            system.vae.vae.register_to_config(_name_or_path="percov2")  # no path of this machine
            system.vae.vae.half().save_pretrained(options.out / "vae")

    crops = PhotoCrops(options.photos(), plan, loop.seed)
    evaluate = partial(_score, scorer) if scorer else None
    _train(options, loop, crops, build=build, save=save, evaluate=evaluate)


def _prior(levels: Mapping[str, LevelModules]) -> MaskedImageModel:
    """The masked model of the fine level, out of its integer twin."""
    level = levels[FINE.name]
    twin = level.prior.model
    return restore(twin, twin.config).to(level.quantizer.device)


def _train_over_base(options: RunOptions, name: str) -> None:
    """A model folder over Stable Diffusion 3, on cached samples; what is trained goes back."""
    tuning, shown = options.settings(Tuning, "tuning"), options.settings(Shown, "shown")
    # Of the paper where it says so (learning rate, decay, a constant rate), else our choice.
    loop = options.loop(
        lr=1e-5, floor=1.0, warmup_steps=500, steps=100_000, save_every_s=900, evaluate_every_s=1800
    )
    model, cache = over_base(
        options, batch_px=tuning.batch_px, seed=loop.seed, held_out=tuning.held_out
    )
    defaults = {"times": "logistic", "shift": read_about(model).shift, "pixel_share": 0.0}
    loss = options.settings(Stage1Loss, "loss", **defaults, freeze_tokens=name == "painter")
    build = partial(build_over_base, cache, model, loss=loss, shown=shown, tuning=tuning, loop=loop)
    held_out = cache.held_out()
    _train(
        options,
        loop,
        cache,
        build=build,
        save=lambda system: _put_back(system, model, cache.info.captioner),
        evaluate=(lambda system, step: mean_scores(system, held_out)) if held_out else None,
        groups=partial(parameter_groups, new_scale=tuning.new_scale),
    )


def _train(
    options: RunOptions,
    loop: LoopConfig,
    source: PhotoCrops | Cache,
    *,
    build: Callable[[], Stage1],
    save: Callable[[Stage1], None],
    evaluate: Evaluate | None,
    groups: Callable[[Stage1], Groups] | None = None,
) -> None:
    """Train what `build` gives on a source, and save it with the averaged weights."""
    torch.manual_seed(loop.seed)
    system = build()
    if options.init and not options.resume:
        _continue_from(system, load_average(options.init))
    run(
        system,
        source.draw,
        options.out,
        config=loop,
        resume=options.resume,
        evaluate=evaluate,
        groups=groups(system) if groups else None,
    )
    state = processes(loop.device)
    if state.is_main_process:
        # Built anew: those of the run may be in pieces on several processes.
        trained = build()
        fill(trained, load_average(options.out))
        save(trained)
    state.wait_for_everyone()


def open_vae(folder: Path) -> LatentAutoencoder:
    """The trained autoencoder, in float32."""
    vae = AutoencoderDC.from_pretrained(folder, torch_dtype=torch.float32)
    return LatentAutoencoder(vae.to(memory_format=torch.channels_last))


def over_base(options: RunOptions, **how: int) -> tuple[Path, Cache]:
    """The model folder, made afresh if it is not there, and its cache, opened as `how` says.
    ConfigError if the cache is for another base or text length, or a rank is given for a model that
    is there."""
    (base, folder), state = options.over(), processes(options.device)
    cache = Cache(options.needs("cache"), **how)
    tokens, made = cache.info.text_tokens - CLIP_TOKENS, (folder / files.ABOUT_FILE).is_file()
    if state.is_main_process and made and options.lora_rank is not None:
        raise ConfigError(f"--lora-rank is for a new checkpoint, {str(folder)!r} is there")
    if state.is_main_process and not made:
        rank = _LORA_RANK if options.lora_rank is None else options.lora_rank
        place = find_base(base, t5=False)
        write_fresh_checkpoint(folder, place, base_name=base, lora_rank=rank, t5_tokens=tokens)
    state.wait_for_everyone()
    about = read_about(folder)
    if (found := cache.info.base) != about.base:
        raise ConfigError(f"cache: made with {found!r}, checkpoint is over {about.base!r}")
    if tokens != (wanted := about.t5_tokens):
        raise ConfigError(f"cache: made with {tokens} tokens of T5, checkpoint expects {wanted}")
    return folder, cache


def build_over_base(
    cache: Cache, model: Path, *, loss: Stage1Loss, shown: Shown, tuning: Tuning, loop: LoopConfig
) -> Stage1:
    """A model folder with its loss, on the CPU; ConfigError if a low-rank difference is to be
    sharded. What is trained is in float32, a frozen base may be in half precision."""
    place = model / PAINTER_DIR
    low_rank = (place / "lora").is_dir()
    if low_rank and sharded():
        raise ConfigError(
            "FSDP cuts weights of one precision only, a low-rank difference has two: launch "
            "without it, every GPU holds the frozen base"
        )
    half = low_rank and not on_cpu(loop.device)
    home = Residency(device="cpu", dtype="bfloat16" if half else "float32")
    base, text = find_base(read_about(model).base, t5=False), CachedText(cache.empty)
    levels = parts.load_levels(model, Residency(device="cpu"))
    painter = parts.load_painter(place, home, base=base, text=text, merge=False)
    transformer = painter.flow.transformer
    if not low_rank:
        transformer.requires_grad_(True)
    for parameter in transformer.parameters():
        if parameter.requires_grad:  # small steps vanish in half precision
            parameter.data = parameter.data.float()
    if tuning.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return Stage1(
        levels,
        painter,
        loss,
        shown,
        mean_use=_mean_use(tuning.batch_px, loop),
        warmup=tuning.warmup,
        empty=cache.empty,
        encoders=cache.encoders,
        prior=_prior(levels) if loss.freeze_tokens else None,
    )


def _put_back(system: Stage1, model: Path, captioner: str) -> None:
    """Replace what was trained in a model folder."""
    transformer = system.painter.flow.transformer
    if not parts.is_lora(transformer):
        for parameter in transformer.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)  # as the base is published
    fresh, old = model / "trained.new", model / "trained.old"
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    parts.save_painter(system.painter, fresh / PAINTER_DIR, packed=False)
    for name, modules in system.levels.items() if not system.weights.freeze_tokens else ():
        parts.save_level(modules, fresh / name, packed=False)
        modules.prior.model.save(fresh / name / files.ENTROPY_FILE)
    for part in sorted(fresh.iterdir()):
        (model / part.name).rename(old)
        part.rename(model / part.name)
        shutil.rmtree(old)
    fresh.rmdir()
    files.write_about(replace(read_about(model), captioner=captioner), model)


def _continue_from(system: Stage1, weights: dict[str, Tensor]) -> None:
    """Load another run's averaged weights: strictly, but that encoder and decoder may have grown.
    Blocks and styles that the earlier run did not have start as "no change"."""
    own = kept(system)
    # The autoencoder's decoder comes with the autoencoder, tuned by the earlier run or not.
    others = {k: v for k, v in weights.items() if not k.startswith("pixels.")}
    grown = ("pixels.", "decoder.blocks.", "decoder.styles.")
    new = {k: v for k, v in own.items() if k not in others and k.startswith(grown)}
    fill(system, {**others, **new})


def _mean_use(batch_px: int, loop: LoopConfig) -> dict[str, float]:
    """By level: tokens of a step on all processes, over the codebook's size."""
    pixels = processes(loop.device).num_processes * batch_px
    return {n: pixels / v.token_stride**2 / v.codebook_size for n, v in LEVELS.items()}


def _score(scorer: Scorer, system: Stage1, step: int) -> dict[str, float]:
    """One step at the lowest and at the highest guidance."""

    def reconstruct(x: Tensor, guidance: float) -> Tensor:
        pixels = to_8bit(x)[0].to(torch.uint8).movedim(0, -1).cpu().numpy()
        return system.reconstruct(x, describe(Image.fromarray(pixels)), guidance)

    rows: dict[str, float] = {}
    for name, guidance in (("faithful", 1.0), ("vivid", TOLD_MAX)):
        row = scorer.score(partial(reconstruct, guidance=guidance), step, f"-{name}")
        rows |= {f"{name}_{k}": v for k, v in row.items()}
    return rows
