"""Stage 1 of one rate over Stable Diffusion 3: from a checkpoint folder and a cache, back into it.

The run's own checkpoint holds what it trains, and nothing of the base. When it ends, the averaged
weights replace RATE/ in the model folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState

from percov2_core.codec import RateModules
from percov2_core.errors import ConfigError
from percov2_core.flow.text import TextEmbedding
from percov2_core.training import checkpoint
from percov2_core.training.cache import Cache, LatentBatch, read_batch
from percov2_core.training.cost import count_cost, measuring
from percov2_core.training.loop import LoopConfig, on_cpu, processes, run
from percov2_core.training.quantize import TrainingQuantizer
from percov2_core.training.sd3_stage1 import (
    SD3Loss,
    SD3Parts,
    SD3System,
    mean_scores,
    parameter_groups,
)
from percov2_core.weights import rates
from percov2_core.weights.about import ENTROPY_FILE, read_about, write_about
from percov2_core.weights.lora import is_lora
from percov2_core.weights.places import find_base
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import CLIP_TOKENS

FSDP_VARIABLE = "ACCELERATE_USE_FSDP"  # set by `accelerate launch`


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How the modules are trained.

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


class CachedText:
    """Stands for the text models while they are not needed: knows the empty caption alone."""

    def __init__(self, empty: TextEmbedding) -> None:
        self.empty = empty

    def encode(self, captions: list[str]) -> TextEmbedding:
        """The embedding of the empty caption.

        Raises:
            ConfigError: if another one is asked for.
        """
        if captions != [""]:
            raise ConfigError(f"the cache embeds no caption {captions[0]!r}")
        return self.empty


def train_sd3_rate(
    model: Path,
    rate: str,
    cache_folder: Path,
    out: Path,
    *,
    loop: LoopConfig,
    loss: SD3Loss,
    tuning: Tuning,
    resume: bool = False,
    report: Callable[[str], None],
) -> Path:
    """Train RATE/ of a checkpoint folder on cached samples; returns the folder.

    Raises:
        ConfigError: if cache and checkpoint do not belong together, or there is nothing to resume.
        WeightsError: if the checkpoint or its base cannot be loaded.
    """
    cache = Cache(cache_folder, held_out=tuning.held_out)
    check_pair(model, cache)
    torch.manual_seed(loop.seed)
    modules = _load(model, rate, cache.empty, precise=on_cpu(loop.device))
    system = build_system(modules, cache.empty, loss, tuning)
    held_out = _held_out(cache, tuning.batch_px)
    state = processes(loop.device)
    run(
        system,
        lambda step: cache.draw(batch_px=tuning.batch_px, seed=loop.seed, step=step),
        out,
        config=loop,
        resume=resume,
        evaluate=(lambda module, step: mean_scores(module, held_out)) if held_out else None,
        groups=lambda module: parameter_groups(module, new_scale=tuning.new_scale),
        on_step=_announce(system, cache, loop, tuning, state, report),
    )
    if state.is_main_process:
        put_back(model, rate, out, cache)
    state.wait_for_everyone()
    return model


def _announce(
    system: SD3System,
    cache: Cache,
    loop: LoopConfig,
    tuning: Tuning,
    state: PartialState,
    report: Callable[[str], None],
) -> Callable[[int, float], None] | None:
    """Report what a run will cost; the callback reports what its first steps cost."""
    if not state.is_main_process:
        return None
    batch = len(cache.draw(batch_px=tuning.batch_px, seed=loop.seed, step=0).latent)
    count, sharded = state.num_processes, _sharded()
    cost = count_cost(system, loop, batch=batch, processes=count, sharded=sharded)
    report(cost.describe())
    return measuring(cost, loop, report)


def build_system(
    modules: RateModules, empty: TextEmbedding, loss: SD3Loss, tuning: Tuning
) -> SD3System:
    """The modules of a rate, what is to be trained of them set so.

    Raises:
        ConfigError: if a low-rank difference is to be sharded.
    """
    transformer = modules.flow.transformer
    if not is_lora(transformer):
        transformer.requires_grad_(True)
    elif _sharded():
        raise ConfigError(
            "FSDP cuts weights of one precision only, a low-rank difference has two: launch "
            "without it, every GPU holds the frozen base"
        )
    for parameter in transformer.parameters():
        if parameter.requires_grad:  # small steps vanish in half precision
            parameter.data = parameter.data.float()
    if tuning.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    modules.flow.train()
    parts = SD3Parts(
        modules.encoder.train().requires_grad_(True),
        TrainingQuantizer(modules.quantizer, warmup=tuning.warmup),
        modules.decoder.train().requires_grad_(True),
        modules.flow,
    )
    return SD3System(parts, empty, loss)


def put_back(model: Path, rate: str, out: Path, cache: Cache) -> None:
    """Write the averaged weights of a run into RATE/ of a model folder."""
    modules = _load(model, rate, cache.empty, precise=True)
    # With the run's settings out of the way: only its weights are read.
    system = build_system(modules, cache.empty, SD3Loss(), Tuning(gradient_checkpointing=False))
    checkpoint.fill(system, checkpoint.load_average(out / checkpoint.CHECKPOINT))
    if not is_lora(modules.flow.transformer):
        for parameter in modules.flow.transformer.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)  # as the base is published
    fresh, old = model / f"{rate}.new", model / f"{rate}.old"
    shutil.rmtree(fresh, ignore_errors=True)
    rates.save(modules, fresh, packed=False)
    modules.prior.model.save(fresh / ENTROPY_FILE)
    (model / rate).rename(old)
    fresh.rename(model / rate)
    shutil.rmtree(old)
    about = replace(read_about(model), captioner=cache.info.captioner)
    write_about(about, model)


def check_pair(model: Path, cache: Cache) -> None:
    """See that a cache was made for this checkpoint.

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


def _load(model: Path, rate: str, empty: TextEmbedding, *, precise: bool) -> RateModules:
    """On the CPU. What is trained is in float32, a frozen base may be in half precision."""
    full = not (model / rate / "lora").is_dir()
    home = Residency(device="cpu", dtype="float32" if full or precise else "bfloat16")
    base = find_base(read_about(model).base, t5=False)
    return rates.load(model / rate, home, base=base, text=CachedText(empty), merge=False)


def _held_out(cache: Cache, batch_px: int) -> list[LatentBatch]:
    found = []
    for side, records in cache.held_out.items():
        count = max(1, batch_px // side**2)
        found += [read_batch(records[i : i + count]) for i in range(0, len(records), count)]
    return found


def _sharded() -> bool:
    return os.environ.get(FSDP_VARIABLE, "").lower() == "true"
