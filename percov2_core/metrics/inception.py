"""FID and KID of two folders, by torchmetrics, where it and the Inception weights can be had."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from percov2_core.errors import ImageError, UnavailableError

MIN_PICTURES = 50  # below that the estimates say nothing
_FEATURES = 2048


class SetDistances(NamedTuple):
    """Distances between two sets of pictures; lower is more alike."""

    fid: float
    kid: float  # mean over subsets of half of the pictures


def fid_kid(references: Iterable[Tensor], others: Iterable[Tensor], *, count: int) -> SetDistances:
    """Compare two sets.

    Args:
        references, others: `count` pictures (1, 3, H, W) uint8 RGB each.

    Raises:
        ImageError: if there are fewer than 50 pictures.
        UnavailableError: if torchmetrics, torch-fidelity or the Inception weights are missing.
    """
    if count < MIN_PICTURES:
        raise ImageError(f"FID and KID need {MIN_PICTURES} pictures a side, got {count}")
    fid, kid = _load(count)
    for pictures, real in ((references, True), (others, False)):
        for picture in pictures:
            fid.update(picture, real=real)
            kid.update(picture, real=real)
    return SetDistances(float(fid.compute()), float(kid.compute()[0]))


def _load(count: int) -> tuple[Any, Any]:
    # Heavy and optional: only whoever asks for FID pays for it.
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise UnavailableError(
            "FID and KID are unavailable: install torchmetrics and torch-fidelity"
        ) from error
    try:
        return (
            FrechetInceptionDistance(feature=_FEATURES),
            KernelInceptionDistance(feature=_FEATURES, subset_size=count // 2),
        )
    except (OSError, ModuleNotFoundError) as error:
        raise UnavailableError(
            f"FID and KID are unavailable: no Inception weights ({error})"
        ) from error
