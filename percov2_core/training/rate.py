"""Run stage 1 for one rate: from photos and an autoencoder to the modules of that rate."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderDC
from PIL import Image
from torch import Tensor, nn

from percov2_core.caption.describer import describe
from percov2_core.codec import RateModules
from percov2_core.errors import ConfigError
from percov2_core.flow.text import TextEncoder
from percov2_core.flow.transformer import TOLD_MAX
from percov2_core.latent import LatentAutoencoder
from percov2_core.metrics.distortion import to_8bit
from percov2_core.metrics.features import SqueezeNetFeatures
from percov2_core.training.data import CropPlan, Photos
from percov2_core.training.loop import CHECKPOINT, LoopConfig, run
from percov2_core.training.quantize import TrainingQuantizer
from percov2_core.training.scoring import Scorer
from percov2_core.training.stage1 import (
    Stage1Loss,
    Stage1Parts,
    Stage1System,
    captioned_batch,
)
from percov2_core.weights import rates
from percov2_core.weights.sizes import Sizes


def open_vae(folder: Path) -> LatentAutoencoder:
    """The trained autoencoder, in float32."""
    vae = AutoencoderDC.from_pretrained(folder, torch_dtype=torch.float32)
    return LatentAutoencoder(vae.to(memory_format=torch.channels_last))


def build_system(
    vae: LatentAutoencoder,
    modules: RateModules,
    loss: Stage1Loss,
    features: SqueezeNetFeatures | None,
) -> Stage1System:
    """The modules of one rate around a frozen autoencoder."""
    assert isinstance(modules.text, TextEncoder)
    quantizer = TrainingQuantizer(modules.quantizer)
    parts = Stage1Parts(
        vae, modules.encoder, quantizer, modules.decoder, modules.text, modules.flow
    )
    return Stage1System(parts, loss, features)


def continue_from(system: Stage1System, folder: Path) -> None:
    """Load the averaged weights of another run's checkpoint.

    Strictly, but that encoder and decoder may have grown: blocks and styles that the earlier run
    did not have start as "no change".
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ConfigError(f"init: no checkpoint at {str(path)!r}")
    weights = torch.load(path, map_location="cpu", weights_only=True)["ema"]
    # The autoencoder's decoder comes with the autoencoder, tuned by the earlier run or not.
    others = {k: v for k, v in weights.items() if not k.startswith("painter.")}
    own = {k: v for k, v in system.state_dict().items() if k.startswith("painter.")}
    grown = {k: v for k, v in system.state_dict().items() if _may_grow(k) and k not in weights}
    system.load_state_dict({**others, **own, **grown}, strict=True)


def _may_grow(key: str) -> bool:
    return key.startswith(("encoder.blocks.", "decoder.blocks.", "decoder.styles."))


def train_rate(
    photos: Photos,
    out: Path,
    *,
    vae: LatentAutoencoder,
    sizes: Sizes,
    loss: Stage1Loss,
    loop: LoopConfig,
    plan: CropPlan,
    features: SqueezeNetFeatures | None = None,
    scorer: Scorer | None = None,
    init: Path | None = None,
    resume: bool = False,
) -> Path:
    """Train one rate, then write its modules to `out/parts`."""
    torch.manual_seed(loop.seed)
    modules = rates.build(sizes)
    system = build_system(vae, modules, loss, features)
    if init is not None and not resume:
        continue_from(system, init)

    def evaluate(module: nn.Module, step: int) -> dict[str, float]:
        assert scorer is not None and isinstance(module, Stage1System)
        return score(module, scorer, out, step)

    run(
        system,
        lambda step: captioned_batch(photos, plan, seed=loop.seed, step=step),
        out,
        config=loop,
        resume=resume,
        evaluate=evaluate if scorer else None,
    )
    rates.save(modules, out / "parts", packed=True)
    if loss.tune_painter:
        system.vae.vae.half().save_pretrained(out / "vae")
    return out / "parts"


def score(system: Stage1System, scorer: Scorer, out: Path, step: int) -> dict[str, float]:
    """One step at the lowest and at the highest guidance."""

    def reconstruct(x: Tensor, guidance: float) -> Tensor:
        pixels = to_8bit(x)[0].to(torch.uint8).movedim(0, -1).cpu().numpy()
        return system.reconstruct(x, describe(Image.fromarray(pixels)), guidance=guidance)

    rows = {}
    for name, guidance in (("faithful", 1.0), ("vivid", TOLD_MAX)):
        sheet = out / f"sheet-{step:06d}-{name}.jpg"
        row = scorer.score(lambda x, g=guidance: reconstruct(x, g), sheet)  # type: ignore[misc]
        rows.update({f"{name}_{k}": v for k, v in row.items()})
    return rows
