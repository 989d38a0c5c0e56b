"""Measured points -> one CSV, and the table that people read, with what was not measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from percov2_core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One line of the table; seconds of encode, decode and boxes are for one picture."""

    model: str
    weights: str = "-"  # "trained" or "random"; classic codecs lack what has a default here
    kind: str  # "cuda" or "cpu"
    device: str  # which, and what PyTorch uses of it
    dtype: str = "-"  # of the flow transformer
    t5: str = "-"  # whether captions go through T5: "yes", "no", or "-" for a model without
    mode: str  # or the quality, of a classic codec
    size: str  # width x height in pixels
    batch: int = 1
    steps: float = math.nan  # of the flow
    guidance: float = math.nan
    effort: str = "-"  # of the encoder
    encode_s: float = math.nan
    decode_s: float = math.nan
    loop_s: float = math.nan  # of the sampling loop, for the whole batch
    loop_tflops: float = math.nan  # 10^12 operations per second that the loop reached
    matmul_tflops: float = (
        math.nan
    )  # the same of a large matrix product in this dtype, in the same run
    copies: str = "-"  # between the CPU's memory and the GPU's inside the loop
    peak_gib: float = math.nan  # most memory in use: on the GPU, or resident in the process
    size_bytes: int = 0  # of the file
    note: str  # what else ran, or whatever a reader has to know
    boxes: str = ""  # seconds, as "encode autoencoder=0.01; ..."

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = map(int, self.size.split("x"))
        return width, height

    def seconds_by_box(self) -> dict[str, float]:
        """`boxes`, read."""
        pairs = (item.rsplit("=", 1) for item in self.boxes.split("; ") if item)
        return {box: float(seconds) for box, seconds in pairs}


NOT_MEASURED = "not measured"
_NAMES = [f.name for f in fields(BenchRow)]
_POINT = _NAMES[: _NAMES.index("encode_s")]  # a second measurement there replaces the first
_TEXTS = {f.name: str for f in fields(BenchRow) if f.type == "str"}
_EMPTY = {f.name: "" for f in fields(BenchRow) if f.type == "float"}


def write(rows: Iterable[BenchRow], folder: Path) -> None:
    """Add rows to `bench.csv` in `folder`, newer ones for older, and write `bench.md` anew."""
    path = folder / "bench.csv"
    frame = pd.DataFrame([asdict(row) for row in (*read(path), *rows)], columns=_NAMES)
    frame = frame.drop_duplicates(_POINT, keep="last").round({"peak_gib": 2}).round(5)
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    path.with_suffix(".md").write_text(as_markdown(read(path)), encoding="utf-8")


def read(path: Path) -> list[BenchRow]:
    """Rows of a CSV of `write`, none without a file; ConfigError if it has other columns."""
    if not path.exists():
        return []
    frame = pd.read_csv(path, dtype=_TEXTS, keep_default_na=False, na_values=_EMPTY)
    if list(frame) != _NAMES:
        raise ConfigError(f"{str(path)!r} has columns {[*frame]}, expected {', '.join(_NAMES)}")
    return [BenchRow(**row) for row in frame.to_dict("records")]


def as_markdown(rows: Sequence[BenchRow]) -> str:
    table = pd.DataFrame([as_cells(row) for row in rows])
    cells = [list(table), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return _ABOUT + "\n".join(lines) + "\n"


def as_cells(row: BenchRow) -> dict[str, str]:
    """What people read of a row, by column."""
    first = "model", "device", "mode", "effort", "size", "size_bytes"
    seconds = "encode_s", "encode_s_per_mp", "decode_s", "decode_s_per_mp", "peak_gib", "share"
    mp = math.prod(row.sides) / 1e6
    rates = {"encode_s_per_mp": row.encode_s / mp, "decode_s_per_mp": row.decode_s / mp}
    rates["share"] = row.loop_tflops / row.matmul_tflops
    values = {**dict.fromkeys(first + seconds), **asdict(row), **rates}
    texts = {n: f"{v:.3g}" if isinstance(v, float) else str(v) for n, v in values.items()}
    if row.note.startswith(NOT_MEASURED):
        texts |= dict.fromkeys(seconds, NOT_MEASURED)
    return {n: "-" if t == "nan" else t for n, t in texts.items() if n not in ("kind", "boxes")}


_ABOUT = """# Seconds, memory and use of the machine

Written by `python -m percov2_core bench --out assets/results`; `bench.csv` has every box. A device
is a GPU, or a processor with the instruction set that PyTorch uses (bfloat16: has AVX512-BF16 or
AMX), cores that the run may use, PyTorch's threads. Encode and decode are for one picture, enlarged
if need be, mp are 10^6 pixels, the loop is for the batch; `matmul_tflops` is a large product in the
same type and run, `share` the loop's part of it, counted by `torch.utils.flop_counter`. Copies are
between the CPU's memory and the GPU's, in the loop. Memory is the most that GPU or process held.

Classic codecs ran on the same cores and pictures: at their libraries' own speed and quality, and at
the best quality within our bytes, or the lowest. WebP takes one thread, VVC one to decode;
its seconds include the start of ffmpeg.

"""


def as_text(row: BenchRow) -> str:
    """A row for people, one thing below the other, the boxes last."""
    both, boxes = row.encode_s + row.decode_s, row.seconds_by_box()
    told = {name: cell for name, cell in as_cells(row).items() if cell not in ("", "-")}
    told |= {box: f"{seconds:.3f} {seconds / both:7.1%}" for box, seconds in boxes.items()}
    if coding := sum(seconds for box, seconds in boxes.items() if box.endswith("coding")):
        told["entropy coding together"] = f"{coding / both:.1%}"
    return "".join(f"{name:<26}{text}\n" for name, text in told.items())
