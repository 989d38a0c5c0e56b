"""Stage `autoencoder`: 16 channels at 1/8, trained for pixels and features, scored on pictures.

Noise on the latent during training makes equal steps in every channel cost about equal
distortion, so that a squared error on latents later stands for one on pixels.
B batch, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
from percov2_core.training.loop import LoopConfig, StepLoss, processes, run
from percov2_core.training.samples import CropPlan, Photos, crop_batch, to_float

EMBEDDED = {
    "latent_channels": LATENT_CHANNELS,
    "encoder_block_out_channels": (16, 16, 64, 128),
    "decoder_block_out_channels": (16, 16, 64, 128),
    "encoder_layers_per_block": (0, 1, 1, 2),
    "decoder_layers_per_block": (0, 1, 2, 3),
    "encoder_qkv_multiscales": ((), (), (), ()),
    "decoder_qkv_multiscales": ((), (), (), ()),
}
NOISE = 0.25  # standard deviation of the latent noise while training
SHRINK = 5e-3  # keeps latents near unit variance against that noise


class AutoencoderSystem(nn.Module):
    """Autoencoder and its loss."""

    def __init__(
        self, config: dict[str, Any], features: SqueezeNetFeatures | None, *, perceptual: float
    ) -> None:
        super().__init__()
        self.vae = AutoencoderDC(**config).to(memory_format=torch.channels_last)
        self.perceptual = perceptual
        self._features = [features]  # in a list: frozen, not part of the checkpoint

    def reconstruct(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float in [-1, 1] -> the same through the latent."""
        y: Tensor = self.vae.decode(self.vae.encode(x.to(self.vae.device)).latent).sample
        return y

    def forward(self, batch: NDArray[Any], progress: float) -> StepLoss:
        x = to_float(batch).to(next(self.parameters()).device)
        z = self.vae.encode(x).latent
        y = self.vae.decode(z + NOISE * torch.randn_like(z)).sample
        y = y.float()
        mse, mae = F.mse_loss(y, x), F.l1_loss(y, x)
        loss = 20 * mse + mae + SHRINK * z.float().square().mean()
        logs = {"mse": mse.item(), "std": z.detach().float().std().item()}
        features = self._features[0]
        if features is not None and self.perceptual:
            with torch.no_grad():
                target = features(x)
            distance = feature_distance(features(y), target).mean()
            loss = loss + self.perceptual * distance
            logs["fd"] = distance.item()
        return StepLoss(loss, logs)


def train_autoencoder(
    photos: Photos,
    out: Path,
    *,
    loop: LoopConfig,
    plan: CropPlan,
    features: SqueezeNetFeatures | None = None,
    scorer: Scorer | None = None,
    model_config: dict[str, Any] = EMBEDDED,
    perceptual: float = 0.3,
    resume: bool = False,
) -> None:
    """Train, then write the averaged weights to `out/vae` by `save_pretrained`."""
    if features:
        features = features.to(processes(loop.device).device)
    system = AutoencoderSystem(model_config, features, perceptual=perceptual)

    def evaluate(module: nn.Module, step: int) -> dict[str, float]:
        assert scorer is not None and isinstance(module, AutoencoderSystem)
        return scorer.score(module.reconstruct, out / f"sheet-{step:06d}.jpg")

    run(
        system,
        lambda step: crop_batch(photos, plan, seed=loop.seed, step=step),
        out,
        config=loop,
        resume=resume,
        evaluate=evaluate if scorer else None,
    )
    system.vae.register_to_config(scaling_factor=_scaling(system, photos, plan))
    system.vae.half().save_pretrained(out / "vae")


@torch.inference_mode()
def _scaling(system: AutoencoderSystem, photos: Photos, plan: CropPlan) -> float:
    """1 / standard deviation of the latents over a few batches."""
    batches = (to_float(crop_batch(photos, plan, seed=1, step=i)) for i in range(8))
    device = next(system.parameters()).device
    values = [system.vae.encode(x.to(device)).latent.float().flatten() for x in batches]
    return round(1 / torch.cat(values).std().item(), 4)


class Scorer:
    """Scores reconstructions of the evaluation pictures while a stage trains."""

    def __init__(self, folder: Path, features: SqueezeNetFeatures | None) -> None:
        self.pictures = load_512(folder)
        self.features = features

    def score(
        self, reconstruct: Callable[[Tensor], Tensor], sheet: Path | None
    ) -> dict[str, float]:
        """Mean PSNR, MS-SSIM and feature distance of `reconstruct` ((1, 3, H, W) -> same)."""
        rows, tiles = [], []
        for x in torch.split(self.pictures, 1):
            a, b = to_8bit(x), to_8bit(reconstruct(x).float().to(x.device))
            rows.append(self._compare(a, b))
            tiles.append(torch.cat([a, b], dim=2)[0])
        if sheet:
            _contact_sheet(tiles, sheet)
        mean = np.mean(rows, axis=0)
        return {
            n: round(float(v), 4) for n, v in zip(("psnr", "ms_ssim", "fd"), mean, strict=False)
        }

    def _compare(self, a: Tensor, b: Tensor) -> list[float]:
        # Reconstructing may be in half precision, scoring may not.
        with torch.autocast(a.device.type, enabled=False):
            row = [psnr(a, b).item(), ms_ssim(a, b).item()]
            if self.features:
                fa, fb = self.features(a / 127.5 - 1), self.features(b / 127.5 - 1)
                row.append(feature_distance(fa, fb).item())
            return row


def _contact_sheet(tiles: list[Tensor], path: Path, *, columns: int = 8, scale: int = 2) -> None:
    """Write (3, H, W) pictures of 0..255 in rows of `columns`, reduced `scale` times."""
    images = [
        Image.fromarray(t.to(torch.uint8).movedim(0, -1).cpu().numpy()).reduce(scale) for t in tiles
    ]
    w, h = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (w * min(columns, len(images)), h * rows))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * w, i // columns * h))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=90)
