"""What is measured and what it is called: rate, and the metrics of one picture.

Neither torch nor numpy is imported here: names and rates are needed where no metric is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from percov2_core.errors import ImageError


def bits_per_pixel(size_bytes: int, width_px: int, height_px: int) -> float:
    """Bits of the whole file, header included, per pixel of the picture."""
    return 8 * size_bytes / (width_px * height_px)


def check_side(name: str, shape: Sequence[int], *, least_px: int) -> None:
    """Refuse (..., H, W) pictures too small for a metric; the ImageError names it and the size."""
    if min(shape[-2:]) < least_px:
        raise ImageError(f"{name} needs {least_px} px a side, got {shape[-1]}x{shape[-2]}")


def _called(axis: str) -> Any:
    return field(default=None, metadata={"axis": axis})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One picture's metrics; None where a metric was not asked for or cannot be had."""

    psnr: float | None = _called("PSNR, dB (higher is better)")
    ms_ssim: float | None = _called("MS-SSIM (higher is better)")
    lpips: float | None = _called("LPIPS AlexNet (lower is better)")
    # Whether EfficientNet-Lite0 finds the original's first label among the picture's first five,
    # and the cosine of its features. The embedded painter was trained on features of its middle.
    label_kept: float | None = _called("first label kept (higher is better)")
    meaning: float | None = _called("semantic agreement, cosine (higher is better)")
    # In [0, 4]. The embedded model was trained with it.
    feature_distance: float | None = _called("SqueezeNet feature distance (lower is better)")
    picorank: float | None = _called("PicoRank (lower is better)")
    patch_swd: float | None = _called("patch SWD (lower is better)")


METRICS = tuple(metric.name for metric in fields(Scores))
AXES = {"bpp": "bits per pixel", **{m.name: str(m.metadata["axis"]) for m in fields(Scores)}}
