"""Train one rate in stage 1: from photos and an autoencoder, or over Stable Diffusion 3.

The embedded model's modules start fresh and are written to OUT/parts; those over Stable Diffusion 3
come from RATE/ of a model folder and go back there. The run's own checkpoint holds what it trains,
and nothing of a base.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderDC
from PIL import Image
from torch import Tensor

from percov2_core.caption.describer import describe
from percov2_core.codec import RateModules
from percov2_core.config import RATES
from percov2_core.errors import ConfigError
from percov2_core.flow.text import TextEmbedding
from percov2_core.flow.transformer import TOLD_MAX
from percov2_core.latent import LatentAutoencoder
from percov2_core.metrics.distortion import to_8bit
from percov2_core.training.autoencoder import Scorer
from percov2_core.training.cache import Cache, read_info
from percov2_core.training.checkpoint import fill, kept, load_average
from percov2_core.training.loop import Evaluate, Groups, LoopConfig, on_cpu, processes, run, sharded
from percov2_core.training.samples import CropPlan, PhotoCrops
from percov2_core.training.stage1 import Stage1, Stage1Loss, mean_scores, parameter_groups
from percov2_core.weights import rates
from percov2_core.weights.files import ABOUT_FILE, ENTROPY_FILE, read_about, write_about
from percov2_core.weights.find import find_base
from percov2_core.weights.fresh import write_fresh_checkpoint
from percov2_core.weights.rates import is_lora
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import CLIP_TOKENS, EMBEDDED, Sizes

if TYPE_CHECKING:
    from percov2_core.training.recipes import RunOptions

_CROPS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "extreme": {"sides": (192, 256, 384), "weights": (0.55, 0.3, 0.15)},
        "ultra-low": {"sides": (256, 384, 512), "weights": (0.5, 0.25, 0.25)},
    }
)
_LORA_RANK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How modules over Stable Diffusion 3 are trained.

    Attributes:
        new_scale: Learning rate of what starts from random numbers (hyper-encoder, hyper-decoder,
            low-rank matrices), as a multiple of the run's, which is the transformer's.
        warmup: Steps before the codebook is set from the vectors seen so far; 0 to go on from a
            codebook that is trained already.
        batch_px: Pixels in one step of one process.
        gradient_checkpointing: Compute activations of the transformer twice, keep few.
        held_out: Last samples of each side, used for scores only.
    """

    new_scale: float = 10.0
    warmup: int = 250
    batch_px: int = 8 * 512 * 512
    gradient_checkpointing: bool = True
    held_out: int = 16


@dataclass(frozen=True, slots=True)
class CachedText:
    """Stands for the text models while they are not needed: knows the empty caption alone."""

    empty: TextEmbedding

    def encode(self, captions: list[str]) -> TextEmbedding:
        assert captions == [""]
        return self.empty


def train_rate(options: RunOptions, name: str) -> None:
    """Stage 1 of one rate.

    Raises:
        ConfigError: if there is nothing to resume from, or `--init` holds no checkpoint that fits.
    """
    (_train_over_base if options.model else _train_embedded)(options, name)


def _train_embedded(options: RunOptions, name: str) -> None:
    """Fresh modules around a frozen autoencoder; they go to OUT/parts."""
    loop = options.loop(lr=8e-4)
    plan = options.settings(CropPlan, "plan", **_CROPS[name])
    loss = options.settings(Stage1Loss, "loss")
    known = {f.name: getattr(EMBEDDED[name], f.name) for f in fields(Sizes)}
    sizes = options.settings(Sizes, "model", **known)
    vae, features, scorer = options.needs("vae"), options.features(), options.scorer()
    device = processes(loop.device).device

    def build() -> Stage1:
        return Stage1(
            rates.build(sizes),
            loss,
            mean_use=_mean_use(name, plan.batch_px, loop),
            vae=open_vae(vae).to(device),
            features=features.to(device) if features else None,
        )

    def save(system: Stage1) -> None:
        rates.save(system.rate_modules, options.out / "parts", packed=True)
        if loss.tune_painter:
            system.vae.vae.half().save_pretrained(options.out / "vae")

    def evaluate(system: Stage1, step: int) -> dict[str, float]:
        assert scorer
        return _score(system, scorer, options.out, step)

    crops = PhotoCrops(options.photos(), plan, loop.seed)
    _train(options, loop, crops, build=build, save=save, evaluate=evaluate if scorer else None)


def _train_over_base(options: RunOptions, name: str) -> None:
    """RATE/ of a model folder over Stable Diffusion 3, on cached samples; it goes back there."""
    model, tuning = model_over_base(options), options.settings(Tuning, "tuning")
    # Of the paper where it says so (learning rate, decay, a constant rate), else our choice.
    loop = options.loop(
        lr=1e-5,
        floor=1.0,
        warmup_steps=500,
        steps=100_000,
        save_every_s=900.0,
        evaluate_every_s=1800.0,
    )
    cache = Cache(
        options.needs("cache"), batch_px=tuning.batch_px, seed=loop.seed, held_out=tuning.held_out
    )
    check_pair(model, cache)
    shift = read_about(model).shift
    loss = options.settings(Stage1Loss, "loss", times="logistic", pixel_share=0.0, shift=shift)
    held_out = cache.held_out()
    _train(
        options,
        loop,
        cache,
        build=lambda: build_over_base(name, cache, model, loss=loss, tuning=tuning, loop=loop),
        save=lambda system: _put_back(system.rate_modules, model / name, cache.info.captioner),
        evaluate=(lambda system, step: mean_scores(system, held_out)) if held_out else None,
        groups=lambda system: parameter_groups(system, new_scale=tuning.new_scale),
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


def build_over_base(
    name: str, cache: Cache, model: Path, *, loss: Stage1Loss, tuning: Tuning, loop: LoopConfig
) -> Stage1:
    """RATE/ of a model folder over Stable Diffusion 3 with its loss."""
    modules = _load(model / name, cache.empty, loop)
    mean_use = _mean_use(name, tuning.batch_px, loop)
    if tuning.gradient_checkpointing:
        modules.flow.transformer.enable_gradient_checkpointing()
    return Stage1(modules, loss, mean_use=mean_use, warmup=tuning.warmup, empty=cache.empty)


def model_over_base(options: RunOptions) -> Path:
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


def check_pair(model: Path, cache: Cache) -> None:
    """See that a cache was made for this model folder.

    Raises:
        ConfigError: if base or text length differ.
    """
    about = read_about(model)
    if cache.info.base != about.base:
        raise ConfigError(
            f"cache: made with {cache.info.base!r}, checkpoint is over {about.base!r}"
        )
    if (tokens := cache.info.text_tokens - CLIP_TOKENS) != about.t5_tokens:
        raise ConfigError(
            f"cache: made with {tokens} tokens of T5, checkpoint expects {about.t5_tokens}"
        )


def _load(folder: Path, empty: TextEmbedding, loop: LoopConfig) -> RateModules:
    """On the CPU. What is trained is in float32, a frozen base may be in half precision.

    Raises:
        ConfigError: if a low-rank difference is to be sharded.
    """
    low_rank = (folder / "lora").is_dir()
    if low_rank and sharded():
        raise ConfigError(
            "FSDP cuts weights of one precision only, a low-rank difference has two: launch "
            "without it, every GPU holds the frozen base"
        )
    half = low_rank and not on_cpu(loop.device)
    home = Residency(device="cpu", dtype="bfloat16" if half else "float32")
    base = find_base(read_about(folder.parent).base, t5=False)
    modules = rates.load(folder, home, base=base, text=CachedText(empty), merge=False)
    transformer = modules.flow.transformer
    if not low_rank:
        transformer.requires_grad_(True)
    for parameter in transformer.parameters():
        if parameter.requires_grad:  # small steps vanish in half precision
            parameter.data = parameter.data.float()
    return modules


def _put_back(modules: RateModules, folder: Path, captioner: str) -> None:
    """Replace RATE/ of a model folder."""
    transformer = modules.flow.transformer
    if not is_lora(transformer):
        for parameter in transformer.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)  # as the base is published
    fresh, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(fresh, ignore_errors=True)
    rates.save(modules, fresh, packed=False)
    modules.prior.model.save(fresh / ENTROPY_FILE)
    folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old)
    model = folder.parent
    write_about(replace(read_about(model), captioner=captioner), model)


def _continue_from(system: Stage1, weights: dict[str, Tensor]) -> None:
    """Load another run's averaged weights.

    Strictly, but that encoder and decoder may have grown: blocks and styles that the earlier run
    did not have start as "no change".
    """
    own = kept(system)
    # The autoencoder's decoder comes with the autoencoder, tuned by the earlier run or not.
    others = {k: v for k, v in weights.items() if not k.startswith("painter.")}
    grown = ("painter.", "encoder.blocks.", "decoder.blocks.", "decoder.styles.")
    new = {k: v for k, v in own.items() if k not in others and k.startswith(grown)}
    fill(system, {**others, **new})


def _mean_use(name: str, batch_px: int, loop: LoopConfig) -> float:
    """Tokens of a step on all processes, over the codebook's size."""
    config = RATES[name]
    tokens: float = processes(loop.device).num_processes * batch_px / config.token_stride**2
    return tokens / config.codebook_size


def _score(system: Stage1, scorer: Scorer, out: Path, step: int) -> dict[str, float]:
    """One step at the lowest and at the highest guidance."""

    def reconstruct(x: Tensor, guidance: float) -> Tensor:
        pixels = to_8bit(x)[0].to(torch.uint8).movedim(0, -1).cpu().numpy()
        return system.reconstruct(x, describe(Image.fromarray(pixels)), guidance)

    rows = {}
    for name, guidance in (("faithful", 1.0), ("vivid", TOLD_MAX)):
        sheet = out / f"sheet-{step:06d}-{name}.jpg"
        row = scorer.score(lambda x, g=guidance: reconstruct(x, g), sheet)  # type: ignore[misc]
        rows.update({f"{name}_{k}": v for k, v in row.items()})
    return rows
