"""Rows: one per codec, setting and picture, kept as lines of JSON, published as CSV and Parquet."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from percov2_core.errors import ImageError
from percov2_core.evaluation.settings import Setting
from percov2_core.metrics import METRICS, Scores

LOG_FOLDER, PICTURES = "log", "pictures"
UNMET = "cannot do it in"  # a budget that no quality meets


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one setting on one picture."""

    picture: str  # path below the data folder
    setting: Setting
    width: int | None = None  # pixels
    height: int | None = None
    size_bytes: int | None = None  # length of the real file, everything included
    bpp: float | None = None  # of that file
    header_bits: int | None = None  # these three of our codec only; they add up to the file
    caption_bits: int | None = None
    token_bits: int | None = None
    caption_text: str | None = None  # what is in our file
    chosen: str | None = None  # budgets only: the codec and quality that won
    encode_s: float | None = None  # seconds of wall clock, on whatever ran it
    decode_s: float | None = None
    description: str | None = None  # codec, options and versions
    thumbnail: str | None = None  # path of a reduced picture below the output folder
    error: str | None = None  # why there are no numbers
    scores: Scores = field(default_factory=Scores)

    def flat(self) -> dict[str, Any]:
        """Columns of the table: `setting` and `scores` are spread out."""
        values = asdict(self)
        setting, scores = values.pop("setting"), values.pop("scores")
        head = {"picture": values.pop("picture"), "label": self.setting.label}
        return {**head, "key": self.setting.key, **setting, **values, **scores}


def decoded_path(key: str, picture: str, *, folder: str = "decoded", suffix: str = "png") -> Path:
    """Where a decoded picture is kept, below the output folder; no two rows share a file."""
    # Not the name alone: p.jpg, p.png and x/p.jpg are three pictures.
    name = f"{Path(picture).stem[:40]}-{_digest(picture)}.{suffix}"
    return Path(folder) / _digest(key) / name


def picture_name(key: str) -> str:
    """Of a setting's thumbnail below the published results' `PICTURES`."""
    return f"{_digest(key)}.webp"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


COLUMNS = tuple(Row(picture="", setting=Setting(codec="")).flat())


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """Every row of every run. A line cut off by an interruption is left out."""
    for path in sorted(folder.glob("rows-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def to_frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Flat rows -> a table with every column of `Row`, sorted, the last of equal keys kept."""
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS))
    empty = frame.columns[frame.isna().all()]
    frame[empty] = float("nan")  # numbers, so that means can be taken
    frame = frame.drop_duplicates(["picture", "key"], keep="last")
    return frame.sort_values(["key", "picture"], ignore_index=True)


def write_tables(frame: pd.DataFrame, out: Path, *, stem: str = "rows") -> None:
    """Write `out/stem.csv` and `out/stem.parquet`."""
    out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / f"{stem}.csv", index=False, float_format="%.6g")
    frame.to_parquet(out / f"{stem}.parquet", index=False)


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over pictures: one line per setting, with counts of pictures and of errors."""
    measured = ["size_bytes", "bpp", "header_bits", "caption_bits", "token_bits"]
    numbers = [c for c in (*measured, *METRICS, "encode_s", "decode_s") if c in frame]
    groups = frame.groupby("key", sort=False)
    first = groups[["label", *Setting.__dataclass_fields__]].first()
    counts = groups.agg(pictures=("bpp", "count"), errors=("error", "count"))
    table = pd.concat([first, counts, groups[numbers].mean()], axis=1)
    return table.reset_index().dropna(axis=1, how="all")


def name_failures(frame: pd.DataFrame) -> None:
    """Print every picture that could not be measured, and why; ImageError if there is one."""
    # That a codec cannot be so small is a result.
    wrong = frame[frame["error"].notna()]
    wrong = wrong[~wrong["error"].astype(str).str.contains(UNMET, regex=False)]
    for (picture, error), rows in wrong.groupby(["picture", "error"]):
        many = f" ({len(rows)} settings)" if len(rows) > 1 else f" ({rows['key'].item()})"
        print(f"{picture}: {error}{many}", file=sys.stderr)
    if len(wrong):
        count, total = wrong["picture"].nunique(), frame["picture"].nunique()
        raise ImageError(f"{count} of {total} pictures could not be measured in full, see above")
