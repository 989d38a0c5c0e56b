"""One function per training stage of the command line, from a recipe of plain settings.

What a recipe leaves out has the value that the embedded model was trained with. Stages over
Stable Diffusion 3 are in `sd3_recipes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from percov2_core.config import RATES
from percov2_core.errors import ConfigError
from percov2_core.training import sd3_recipes
from percov2_core.training.data import CropPlan, GridPlan
from percov2_core.training.jobs import Job, read_recipe, settings

__all__ = ["STAGES", "Job", "read_recipe", "settings"]


def run_autoencoder(job: Job) -> None:
    _refuse_base(job, "autoencoder")
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
    if job.model:
        return sd3_recipes.run_rate(job, rate)
    from percov2_core.training import rate as stage
    from percov2_core.training.stage1 import Stage1Loss
    from percov2_core.weights.sizes import EMBEDDED, Sizes

    known = EMBEDDED[rate]
    sizes = {f.name: getattr(known, f.name) for f in dataclasses.fields(known)}
    sizes |= job.recipe.get("model", {})
    stage.train_rate(
        job.photos(),
        job.out,
        vae=stage.open_vae(job.needs("vae")),
        sizes=settings(Sizes, sizes, "model"),
        loss=settings(Stage1Loss, job.recipe.get("loss", {}), "loss"),
        loop=job.loop(lr=8e-4),
        plan=settings(CropPlan, {**_PLANS[rate], **job.recipe.get("plan", {})}, "plan"),
        features=job.features(),
        scorer=job.scorer(),
        init=job.init,
        resume=job.resume,
    )


def run_masked(job: Job, rate: str) -> None:
    if job.model:
        return sd3_recipes.run_masked(job, rate)
    import torch

    from percov2_core.entropy.exporter import export
    from percov2_core.hyper.networks import HyperEncoder, VectorQuantizer
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
        plan=settings(GridPlan, plan, "plan"),
    )
    loop = {"minutes": 12.0, **job.recipe.get("loop", {}), **job.length()}
    model = masked.train_masked(
        files,
        job.out,
        config=settings(
            masked.MaskedModelConfig,
            {**masked.EMBEDDED[rate], **job.recipe.get("model", {})},
            "model",
        ),
        settings=settings(masked.MaskedTraining, loop, "loop"),
        device=str(device),
        init=job.init,
        resume=job.resume,
    )
    export(model).save(job.out / "entropy.safetensors")


def run_caption(job: Job) -> None:
    _refuse_base(job, "caption")
    from percov2_core.training.caption_language import train_caption_language

    job.out.mkdir(parents=True, exist_ok=True)
    train_caption_language(
        job.needs("captions"), job.needs("data"), job.out / "caption_language.npz"
    )


def _refuse_base(job: Job, stage: str) -> None:
    if job.model:
        raise ConfigError(f"stage {stage!r} trains no part over a base, got --model {job.model}")


STAGES: Mapping[str, Callable[[Job], None]] = MappingProxyType(
    {
        "autoencoder": run_autoencoder,
        **{rate: partial(run_rate, rate=rate) for rate in RATES},
        **{f"masked-{rate}": partial(run_masked, rate=rate) for rate in RATES},
        "caption": run_caption,
        "cache": sd3_recipes.run_cache,
    }
)
