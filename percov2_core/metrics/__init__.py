"""What is measured and what it is called: rate, and the metrics of one picture.

Neither torch nor numpy is imported here: names and rates are needed where no metric is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from percov2_core.errors import ImageError

STAR = "*"
STAR_NOTE = "related to the training loss of the bundled model: no claim rests on it alone"


def bits_per_pixel(size_bytes: int, width_px: int, height_px: int) -> float:
    """Bits of the whole file, header included, per pixel of the picture."""
    return 8 * size_bytes / (width_px * height_px)


def check_side(name: str, shape: Sequence[int], *, least_px: int) -> None:
    """Refuse (..., H, W) pictures too small for a metric; the ImageError names it and the size."""
    if min(shape[-2:]) < least_px:
        raise ImageError(f"{name} needs {least_px} px a side, got {shape[-1]}x{shape[-2]}")


def _called(axis: str, *, related: bool = False) -> Any:
    """`related`: the bundled model was trained with it, or with what it is derived from."""
    axis = f"{axis} {STAR}" if related else axis
    return field(default=None, metadata={"axis": axis, "related": related})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One picture's metrics; None where a metric was not asked for or cannot be had."""

    # The loss holds the squared error, and a stand-in for MS-SSIM.
    psnr: float | None = _called("PSNR, dB (higher is better)", related=True)
    ms_ssim: float | None = _called("MS-SSIM (higher is better)", related=True)
    lpips: float | None = _called("LPIPS AlexNet (lower is better)")
    dists: float | None = _called("DISTS (lower is better)")
    # Whether EfficientNet-Lite0 finds the original's first label among the picture's first five,
    # and the cosine of its features. The embedded painter was trained on features of its middle.
    label_kept: float | None = _called("first label kept (higher is better)", related=True)
    meaning: float | None = _called("semantic agreement, cosine (higher is better)", related=True)
    # In [0, 4]. It is in the loss, and PicoRank was distilled from it.
    feature_distance: float | None = _called(
        "SqueezeNet feature distance (lower is better)", related=True
    )
    picorank: float | None = _called("PicoRank (lower is better)", related=True)
    patch_swd: float | None = _called("patch SWD (lower is better)")


METRICS = tuple(metric.name for metric in fields(Scores))
RELATED = frozenset(metric.name for metric in fields(Scores) if metric.metadata["related"])
STARRED = {name: f"{name} {STAR}" for name in RELATED}  # names of columns
AXES = {"bpp": "bits per pixel", **{m.name: str(m.metadata["axis"]) for m in fields(Scores)}}
