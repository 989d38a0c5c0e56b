"""Metrics of a whole set of decoded pictures: set SWD, FID and KID per setting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image
from torch import Tensor

from percov2_core.errors import ImageError, PerCoError, UnavailableError
from percov2_core.evaluation.protocol import Picture, to_tensor
from percov2_core.evaluation.rows import decoded_path
from percov2_core.metrics.swd import set_swd

MIN_PICTURES = 50  # below that, FID and KID say nothing
_FEATURES = 2048


class SetDistances(NamedTuple):
    """Distances between two sets of pictures; lower is more alike."""

    fid: float
    kid: float  # mean over subsets of half of the pictures


def compare_sets(
    frame: pd.DataFrame, pictures: Sequence[Picture], out: Path, *, names: Sequence[str]
) -> pd.DataFrame:
    """One line per setting whose decoded pictures were kept below `out`.

    Args:
        frame: Rows of the run.
        names: Of set_swd, fid, kid.

    Returns:
        The columns key, pictures, those of `names`, and note: why a number is missing.
    """
    lines = []
    for key in sorted(set(frame["key"])):
        files = [(picture, out / decoded_path(key, picture.name)) for picture in pictures]
        pairs = [(picture, file) for picture, file in files if file.is_file()]
        if pairs:
            lines.append({"key": key, "pictures": len(pairs), **_compare(pairs, names)})
    return pd.DataFrame(lines, columns=["key", "pictures", *names, "note"])


def _compare(
    pairs: Sequence[tuple[Picture, Path]], names: Sequence[str]
) -> dict[str, float | str | None]:
    values: dict[str, float | str | None] = {}
    if "set_swd" in names:
        values["set_swd"] = float(set_swd(list(_originals(pairs)), list(_decoded(pairs))))
    if "fid" in names or "kid" in names:
        try:
            result = fid_kid(
                (x.byte() for x in _originals(pairs)),
                (x.byte() for x in _decoded(pairs)),
                count=len(pairs),
            )
            values.update({k: v for k, v in result._asdict().items() if k in names})
        except PerCoError as error:
            values["note"] = str(error)
    return values


def _originals(pairs: Sequence[tuple[Picture, Path]]) -> Iterator[Tensor]:
    return (to_tensor(picture.open()) for picture, _ in pairs)


def _decoded(pairs: Sequence[tuple[Picture, Path]]) -> Iterator[Tensor]:
    for _, file in pairs:
        with Image.open(file) as image:
            yield to_tensor(image)


def fid_kid(references: Iterable[Tensor], others: Iterable[Tensor], *, count: int) -> SetDistances:
    """Compare two sets by torchmetrics.

    Args:
        references, others: `count` pictures (1, 3, H, W) uint8 RGB each.

    Raises:
        ImageError: if there are fewer than 50 pictures.
        UnavailableError: if torchmetrics, torch-fidelity or the Inception weights are missing.
    """
    if count < MIN_PICTURES:
        raise ImageError(f"FID and KID need {MIN_PICTURES} pictures a side, got {count}")
    fid, kid = _inception(count)
    for pictures, real in ((references, True), (others, False)):
        for picture in pictures:
            fid.update(picture, real=real)
            kid.update(picture, real=real)
    return SetDistances(float(fid.compute()), float(kid.compute()[0]))


def _inception(count: int) -> tuple[Any, Any]:
    # Heavy and optional: only whoever asks for FID pays for it.
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise UnavailableError(
            "FID and KID are unavailable: pip install torchmetrics torch-fidelity"
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
