"""Periodic scores on Kodak-512 and the contact sheet, with the evaluation protocol's metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from percov2_core.evaluation.protocol import load_512
from percov2_core.metrics.distortion import ms_ssim, psnr, to_8bit
from percov2_core.metrics.features import SqueezeNetFeatures, feature_distance


class Scorer:
    """Holds the evaluation pictures and compares reconstructions with them."""

    def __init__(self, folder: Path, features: SqueezeNetFeatures | None) -> None:
        self.pictures = load_512(folder)
        self.features = features

    def score(
        self, reconstruct: Callable[[Tensor], Tensor], sheet: Path | None
    ) -> dict[str, float]:
        """Mean PSNR, MS-SSIM and feature distance of `reconstruct` ((1, 3, H, W) -> same)."""
        rows, tiles = [], []
        for x in torch.split(self.pictures, 1):
            a, b = to_8bit(x), to_8bit(reconstruct(x).float())
            rows.append(self._compare(a, b))
            tiles.append(torch.cat([a, b], dim=2)[0])
        if sheet:
            contact_sheet(tiles, sheet)
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


def contact_sheet(tiles: list[Tensor], path: Path, *, columns: int = 8, scale: int = 2) -> None:
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
