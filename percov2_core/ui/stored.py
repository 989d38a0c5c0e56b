"""Stored tables behind the Trade-off tab: means over the same pictures, a line per setting."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from percov2_core.config import MODES
from percov2_core.evaluation.rows import PICTURES, picture_name, summarise, to_frame
from percov2_core.ui import text

RESULTS_DIR = Path(__file__).parents[2] / "assets" / "results"
COLUMNS = (
    *("label", "picture", "key", "thumbnail", "preset", "steps", "guidance", "size_bytes"),
    "budget_bytes",
)
MEASURED = "measured_kodak_512_centre"  # among the reference points
_REFERENCE_PICTURES = 24
_STUDIES = ("sweep", "presets", "sizes", "protocol", "classic")
_THUMB_PX = 96


class Measurements:
    """The stored tables, read once."""

    def __init__(self, folder: Path = RESULTS_DIR) -> None:
        files = [folder / f"{name}.csv" for name in _STUDIES]
        tables = [pd.read_csv(file, low_memory=False) for file in files if file.is_file()]
        self.means = pd.DataFrame(columns=list(COLUMNS))
        self.pictures = min((set(table["picture"]) for table in tables), key=len, default=set())
        if tables:
            # Like with like: means over the pictures that every study has.
            rows = pd.concat(tables)
            rows = rows[rows["picture"].isin(self.pictures)]
            means = summarise(to_frame(rows.to_dict("records")))
            self.means = _on_lines(means[means["pictures"] == len(self.pictures)])
            self.means["picture"] = [text.stored(row) for row in self.means.to_dict("records")]
            shown = [folder / PICTURES / picture_name(key) for key in self.means["key"]]
            self.means["thumbnail"] = [_uri(file) if file.is_file() else "" for file in shown]
        points = folder / "reference_points.json"
        self.reference = json.loads(points.read_text("utf-8")) if points.is_file() else {}
        if self.pictures and len(self.pictures) < _REFERENCE_PICTURES:
            self.reference.pop(MEASURED, None)  # other means

    def ours(self) -> list[dict[str, Any]]:
        """Key, mode, preset, steps, guidance, tokens and size of our points, what they have of
        them."""
        if "mode" not in self.means:
            return []
        names = ["key", "mode", "preset", "steps", "guidance", "tokens", "size_bytes"]
        names.append("budget_bytes")
        rows = self.means[self.means["mode"].isin(MODES)].reindex(columns=names)
        return [dict(row.dropna()) for _, row in rows.iterrows()]

    def find(self, key: str) -> dict[str, Any]:
        """The same of one point; empty if it is none of ours."""
        return next((row for row in self.ours() if row["key"] == key), {})


def _on_lines(means: pd.DataFrame) -> pd.DataFrame:
    """Of a sweep, what is at its fewest steps or its least guidance: the rest is a cloud."""
    if not {"steps", "guidance"} <= set(means):
        return means
    swept = means["steps"].notna()
    few = means["steps"] == means["steps"].min()
    return means[~swept | few | (means["guidance"] == means["guidance"].min())].copy()


def _uri(file: Path) -> str:
    return text.data_uri(file.read_bytes(), "image/webp")


def write_thumbnail(image: Image.Image, file: Path | io.BytesIO) -> None:
    """What is shown beside a point of the plot."""
    small = image.copy()
    small.thumbnail((_THUMB_PX, _THUMB_PX))
    small.save(file, "WEBP", quality=75)
