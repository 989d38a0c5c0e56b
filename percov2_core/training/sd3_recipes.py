"""The stages over Stable Diffusion 3: `cache`, then for each rate stage 1 and its entropy model.

`--model BASE:CHECKPOINT` names the model folder; stages after `cache` make it if it is not there,
and each puts what it trained back into it. Recipe keys: `loop`, `loss`, `tuning`, `plan`; for the
entropy model `loop` and `model`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from percov2_core.errors import ConfigError
from percov2_core.training.data import GridPlan
from percov2_core.training.jobs import Job, settings
from percov2_core.training.loop import processes
from percov2_core.weights.about import ABOUT_FILE, ENTROPY_FILE, read_about, write_about
from percov2_core.weights.places import MODELS_DIR, find_base
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import CLIP_TOKENS, T5_TOKENS, find_base_model

# Of the paper where it says so (learning rate, weight decay, a constant rate), else our choice.
LOOP = {"lr": 1e-5, "floor": 1.0, "weight_decay": 0.01, "ema": 0.999, "warmup_steps": 500}
LOOP |= {"steps": 100_000, "save_every_s": 900.0, "evaluate_every_s": 1800.0}
LORA_RANK = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """What `--model` says: the base, and the folder of the checkpoint over it."""

    base: str
    folder: Path


def find_place(job: Job) -> Place:
    """Read `--model`.

    Raises:
        ConfigError: if it names no base.
    """
    if not job.model:
        raise ConfigError("--model is needed for this stage, got none: a base such as sd3-medium")
    if job.lora_rank is not None and job.lora_rank < 0:
        raise ConfigError(f"--lora-rank must be at least 0, got {job.lora_rank}")
    base, _, folder = job.model.partition(":")
    return Place(find_base_model(base).name, Path(folder) if folder else MODELS_DIR / base)


def run_cache(job: Job) -> None:
    """Embed photos and their captions, once."""
    from percov2_core.caption.captioner import get_captioner
    from percov2_core.training.cache_writer import write_cache
    from percov2_core.weights.base import load_base

    place = find_place(job)
    state = processes(job.device)
    device = "cpu" if state.device.type == "cpu" else str(state.device)
    home = Residency.from_environment(device=device)
    captioner = get_captioner(job.captioner, device=str(home.target))
    t5 = T5_TOKENS if job.t5 else 0
    base = load_base(
        find_base(place.base, t5=t5 > 0),
        name=place.base,
        residency=home,
        transformer=False,
        t5_tokens=t5,
    )
    with state.main_process_first():  # unpacks them once for all
        photos = job.photos()
    plan = {"sides": (512,), "counts": (len(photos),), **job.recipe.get("plan", {})}
    write_cache(
        photos,
        job.out,
        base=base,
        captioner=captioner,
        plan=settings(GridPlan, plan, "plan"),
    )


def run_rate(job: Job, rate: str) -> None:
    """Stage 1 of one rate."""
    from percov2_core.training.sd3 import Tuning, train_sd3_rate
    from percov2_core.training.sd3_stage1 import SD3Loss

    place = find_place(job)
    model = _checkpoint(job, place)
    loss: dict[str, Any] = {"shift": read_about(model).shift, **job.recipe.get("loss", {})}
    train_sd3_rate(
        model,
        rate,
        job.needs("cache"),
        job.out,
        loop=job.loop(**LOOP),
        loss=settings(SD3Loss, loss, "loss"),
        tuning=settings(Tuning, job.recipe.get("tuning", {}), "tuning"),
        resume=job.resume,
        report=job.report,
    )


def run_masked(job: Job, rate: str) -> None:
    """The entropy model of one rate, on the tokens that the checkpoint's hyper-encoder gives.

    Raises:
        ConfigError: if there are several processes: the model is too small for more than one.
    """
    from percov2_core.entropy.exporter import export
    from percov2_core.hyper.networks import HyperEncoder, VectorQuantizer
    from percov2_core.training import masked
    from percov2_core.training.cache import Cache
    from percov2_core.training.sd3 import check_pair
    from percov2_core.training.sd3_tokens import write_cached_grids
    from percov2_core.weights.files import load_part

    if (count := processes(job.device).num_processes) > 1:
        raise ConfigError(f"stage masked-{rate} runs in 1 process, got {count}")
    model, cache = _checkpoint(job, find_place(job)), Cache(job.needs("cache"))
    check_pair(model, cache)
    device = torch.device(job.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    files = write_cached_grids(
        cache,
        job.out / "tokens",
        encoder=load_part(HyperEncoder, model / rate / "hyper_encoder", device),
        quantizer=load_part(VectorQuantizer, model / rate / "quantizer", device),
    )
    sizes = {**masked.EMBEDDED[rate], **job.recipe.get("model", {})}
    loop = {"minutes": 60.0, **job.recipe.get("loop", {}), **job.length()}
    trained = masked.train_masked(
        files,
        job.out,
        config=settings(masked.MaskedModelConfig, sizes, "model"),
        settings=settings(masked.MaskedTraining, loop, "loop"),
        device=str(device),
        init=job.init,
        resume=job.resume,
    )
    export(trained).save(model / rate / ENTROPY_FILE)
    write_about(read_about(model), model)


def _checkpoint(job: Job, place: Place) -> Path:
    """The model folder; a fresh one is written if there is none.

    Raises:
        ConfigError: if the folder was made with another rank than the one asked for.
    """
    from percov2_core.training.cache import read_info
    from percov2_core.weights.fresh import write_fresh_checkpoint

    state = processes(job.device)
    made = (place.folder / ABOUT_FILE).is_file()
    if state.is_main_process and made and job.lora_rank is not None:
        raise ConfigError(f"--lora-rank is for a new checkpoint, {str(place.folder)!r} is there")
    if state.is_main_process and not made:
        info = read_info(job.needs("cache"))
        write_fresh_checkpoint(
            place.folder,
            find_base(place.base, t5=False),
            base_name=place.base,
            lora_rank=LORA_RANK if job.lora_rank is None else job.lora_rank,
            t5_tokens=info.text_tokens - CLIP_TOKENS,
        )
    state.wait_for_everyone()
    return place.folder
