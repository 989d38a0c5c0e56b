"""Stage `autoencoder`: 16 channels at 1/8, trained for pixels and features, scored on pictures.

Noise on the latent makes equal steps in every channel cost about equal distortion, so that squared
errors on latents later stand for those on pixels. B batch, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from percov2_core.config import LATENT_CHANNELS
from percov2_core.evaluation.protocol import load_512
from percov2_core.metrics.distortion import ms_ssim, psnr, to_8bit
from percov2_core.metrics.features import SqueezeNetFeatures, feature_distance
from percov2_core.training.loop import StepLoss, processes, run
from percov2_core.training.samples import CropPlan, PhotoCrops, to_float

if TYPE_CHECKING:
    from percov2_core.training.recipes import RunOptions

EMBEDDED = {
    "latent_channels": LATENT_CHANNELS,
    **{f"{side}_block_out_channels": (16, 16, 64, 128) for side in ("encoder", "decoder")},
    **{f"{side}_qkv_multiscales": ((), (), (), ()) for side in ("encoder", "decoder")},
    "encoder_layers_per_block": (0, 1, 1, 2),
    "decoder_layers_per_block": (0, 1, 2, 3),
}
NOISE = 0.25  # standard deviation of the latent noise while training
PERCEPTUAL = 0.3  # weight of the feature distance
SHRINK = 5e-3  # keeps latents near unit variance against that noise


class AutoencoderSystem(nn.Module):
    """Autoencoder and its loss."""

    def __init__(self, config: dict[str, Any], features: SqueezeNetFeatures | None) -> None:
        super().__init__()
        self.vae = AutoencoderDC(**config).to(memory_format=torch.channels_last)
        self._features = [features]  # in a list: frozen, not part of the checkpoint

    def reconstruct(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float in [-1, 1] -> the same through the latent."""
        y: Tensor = self.vae.decode(self.vae.encode(x.to(self.vae.device)).latent).sample
        return y

    def forward(self, batch: NDArray[Any], progress: float) -> StepLoss:
        x = to_float(batch).to(next(self.parameters()).device)
        z = self.vae.encode(x).latent
        y = self.vae.decode(z + NOISE * torch.randn_like(z)).sample.float()
        mse, mae = F.mse_loss(y, x), F.l1_loss(y, x)
        loss = 20 * mse + mae + SHRINK * z.float().square().mean()
        logs = {"mse": mse.item(), "std": z.detach().float().std().item()}
        if features := self._features[0]:
            with torch.no_grad():
                target = features(x)
            distance = feature_distance(features(y), target).mean()
            loss = loss + PERCEPTUAL * distance
            logs["fd"] = distance.item()
        return StepLoss(loss, logs)


def train_autoencoder(options: RunOptions) -> None:
    """Train, then write the averaged weights to OUT/vae by `save_pretrained`."""
    options.refuse_base("autoencoder")
    photos, loop, scorer = options.photos(), options.loop(lr=1e-3), options.scorer()
    plan = options.settings(CropPlan, "plan", sides=(192,), weights=(1.0,), batch_px=16 * 192 * 192)
    if features := options.features():
        features = features.to(processes(loop.device).device)
    system = AutoencoderSystem({**EMBEDDED, **options.recipe.get("model", {})}, features)
    run(
        system,
        PhotoCrops(photos, plan, loop.seed).pixels,
        options.out,
        config=loop,
        resume=options.resume,
        evaluate=(lambda module, step: scorer.score(module.reconstruct, step)) if scorer else None,
    )
    batches = (to_float(PhotoCrops(photos, plan, 1).pixels(step)) for step in range(8))
    with torch.inference_mode():
        seen = [system.vae.encode(x.to(system.vae.device)).latent.float() for x in batches]
    deviation = torch.cat([latent.flatten() for latent in seen]).std().item()
    system.vae.register_to_config(scaling_factor=round(1 / deviation, 4))
    system.vae.half().save_pretrained(options.out / "vae")


class Scorer:
    """Scores reconstructions of the pictures of a folder while a stage trains into `out`."""

    def __init__(self, folder: Path, features: SqueezeNetFeatures | None, out: Path) -> None:
        self.pictures, self.features, self.out = load_512(folder), features, out

    def score(
        self, reconstruct: Callable[[Tensor], Tensor], step: int, name: str = ""
    ) -> dict[str, float]:
        """Mean PSNR, MS-SSIM and feature distance of `reconstruct` ((1, 3, H, W) -> same).
        Each picture and what became of it stand beside each other on a sheet of this step."""
        rows: list[dict[str, float]] = []
        pairs = []
        for x in torch.split(self.pictures, 1):
            a, b = to_8bit(x), to_8bit(reconstruct(x).float().to(x.device))
            # Reconstructing may be in half precision, scoring may not.
            with torch.autocast(x.device.type, enabled=False):
                rows.append({"psnr": psnr(a, b).item(), "ms_ssim": ms_ssim(a, b).item()})
                if self.features:
                    seen = (self.features(v / 127.5 - 1) for v in (a, b))
                    rows[-1]["fd"] = feature_distance(*seen).item()
            pairs.append(torch.cat([a, b], dim=3)[0])
        pixels = torch.cat(pairs, dim=1).to(torch.uint8).movedim(0, -1)
        sheet = Image.fromarray(pixels.numpy()).reduce(2)
        sheet.save(self.out / f"sheet-{step:06d}{name}.jpg", quality=90)
        return {name: round(fmean(row[name] for row in rows), 4) for name in rows[0]}
