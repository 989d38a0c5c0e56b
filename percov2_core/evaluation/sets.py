"""Metrics of a whole set of decoded pictures: set SWD, FID and KID per setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from PIL import Image
from torch import Tensor

from percov2_core.errors import PerCoError
from percov2_core.evaluation.protocol import Picture, to_tensor
from percov2_core.evaluation.rows import setting_slug, stored_name
from percov2_core.metrics.inception import fid_kid
from percov2_core.metrics.swd import set_swd


def compare_sets(
    frame: pd.DataFrame, pictures: Sequence[Picture], out: Path, *, names: Sequence[str]
) -> pd.DataFrame:
    """One line per setting whose decoded pictures were kept under `out/decoded`.

    Args:
        frame: Rows of the run.
        names: Of set_swd, fid, kid.

    Returns:
        The columns key, pictures, those of `names`, and note: why a number is missing.
    """
    lines = []
    for key in sorted(set(frame["key"])):
        folder = out / "decoded" / setting_slug(key)
        kept = [p for p in pictures if (folder / f"{stored_name(p.name)}.png").is_file()]
        if kept:
            lines.append({"key": key, "pictures": len(kept), **_compare(kept, folder, names)})
    return pd.DataFrame(lines, columns=["key", "pictures", *names, "note"])


def _compare(
    kept: Sequence[Picture], folder: Path, names: Sequence[str]
) -> dict[str, float | str | None]:
    values: dict[str, float | str | None] = {}
    if "set_swd" in names:
        values["set_swd"] = float(set_swd(list(_originals(kept)), list(_decoded(kept, folder))))
    if "fid" in names or "kid" in names:
        try:
            result = fid_kid(
                (x.byte() for x in _originals(kept)),
                (x.byte() for x in _decoded(kept, folder)),
                count=len(kept),
            )
            values.update({k: v for k, v in result._asdict().items() if k in names})
        except PerCoError as error:
            values["note"] = str(error)
    return values


def _originals(kept: Sequence[Picture]) -> Iterator[Tensor]:
    return (to_tensor(picture.open()) for picture in kept)


def _decoded(kept: Sequence[Picture], folder: Path) -> Iterator[Tensor]:
    for picture in kept:
        with Image.open(folder / f"{stored_name(picture.name)}.png") as image:
            yield to_tensor(image)
