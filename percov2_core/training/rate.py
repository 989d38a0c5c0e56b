"""Train one rate in stage 1: from photos and an autoencoder, or over Stable Diffusion 3.

The embedded model's modules start fresh and are written to OUT/parts; those over Stable Diffusion 3
come from RATE/ of a model folder and go back there. The run's own checkpoint holds what it trains,
and nothing of a base.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

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
from percov2_core.metrics.features import SqueezeNetFeatures
from percov2_core.training.autoencoder import Scorer
from percov2_core.training.cache import Cache
from percov2_core.training.checkpoint import fill, kept, load_average
from percov2_core.training.loop import Evaluate, Groups, LoopConfig, on_cpu, processes, run, sharded
from percov2_core.training.samples import PhotoCrops
from percov2_core.training.stage1 import Stage1, Stage1Loss, mean_scores, parameter_groups
from percov2_core.weights import rates
from percov2_core.weights.about import ENTROPY_FILE, read_about, write_about
from percov2_core.weights.lora import is_lora
from percov2_core.weights.places import find_base
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import CLIP_TOKENS, Sizes


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Where the modules of one rate come from, what they are trained on, where they go.

    Attributes:
        build: The modules with their loss, as they are before the run.
        save: Writes such modules, the averaged weights in them.
    """

    build: Callable[[], Stage1]
    source: PhotoCrops | Cache
    save: Callable[[Stage1], None]
    evaluate: Evaluate | None
    groups: Groups | None = None


def train_rate(
    rate: Rate,
    out: Path,
    *,
    loop: LoopConfig,
    init: Path | None = None,
    resume: bool = False,
    report: Callable[[str], None] | None = None,
) -> None:
    """Train a rate on its source, and save it with the averaged weights.

    Args:
        init: Folder of another run to start from.

    Raises:
        ConfigError: if there is nothing to resume from, or `init` holds no checkpoint that fits.
    """
    torch.manual_seed(loop.seed)
    system = rate.build()
    if init is not None and not resume:
        _continue_from(system, load_average(init))
    run(
        system,
        rate.source.draw,
        out,
        config=loop,
        resume=resume,
        evaluate=rate.evaluate,
        groups=rate.groups,
        report=report,
    )
    state = processes(loop.device)
    if state.is_main_process:
        # Built anew: those of the run may be in pieces on several processes.
        trained = rate.build()
        fill(trained, load_average(out))
        rate.save(trained)
    state.wait_for_everyone()


def open_vae(folder: Path) -> LatentAutoencoder:
    """The trained autoencoder, in float32."""
    vae = AutoencoderDC.from_pretrained(folder, torch_dtype=torch.float32)
    return LatentAutoencoder(vae.to(memory_format=torch.channels_last))


def embedded_rate(
    name: str,
    source: PhotoCrops,
    out: Path,
    *,
    vae: Path,
    sizes: Sizes,
    loss: Stage1Loss,
    loop: LoopConfig,
    features: SqueezeNetFeatures | None,
    scorer: Scorer | None,
) -> Rate:
    """Fresh modules around a frozen autoencoder."""
    state = processes(loop.device)

    def build() -> Stage1:
        return Stage1(
            rates.build(sizes),
            loss,
            mean_use=_mean_use(name, source.plan.batch_px, loop),
            vae=open_vae(vae).to(state.device),
            features=features.to(state.device) if features else None,
        )

    def save(system: Stage1) -> None:
        rates.save(system.rate_modules, out / "parts", packed=True)
        if loss.tune_painter:
            system.vae.vae.half().save_pretrained(out / "vae")

    def evaluate(system: torch.nn.Module, step: int) -> dict[str, float]:
        assert scorer is not None and isinstance(system, Stage1)
        return _score(system, scorer, out, step)

    return Rate(build=build, source=source, save=save, evaluate=evaluate if scorer else None)


def rate_over_base(
    name: str, cache: Cache, model: Path, *, loss: Stage1Loss, tuning: Tuning, loop: LoopConfig
) -> Rate:
    """RATE/ of a model folder over Stable Diffusion 3, on cached samples.

    Raises:
        ConfigError: if cache and model do not belong together.
    """
    check_pair(model, cache)
    held_out = cache.held_out()

    def build() -> Stage1:
        modules = _load(model / name, cache.empty, loop)
        mean_use = _mean_use(name, tuning.batch_px, loop)
        if tuning.gradient_checkpointing:
            modules.flow.transformer.enable_gradient_checkpointing()
        return Stage1(modules, loss, mean_use=mean_use, warmup=tuning.warmup, empty=cache.empty)

    return Rate(
        build=build,
        source=cache,
        save=lambda system: _put_back(system.rate_modules, model / name, cache.info.captioner),
        evaluate=(lambda system, step: mean_scores(system, held_out)) if held_out else None,
        groups=lambda system: parameter_groups(system, new_scale=tuning.new_scale),
    )


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
