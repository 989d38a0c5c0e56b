"""Measured points -> one CSV, and the table that people read, with what was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path

import pandas as pd

from percov2_core.errors import ConfigError

STEM = "bench"
NO_DEVICE = "no device"
TARGET = "percov2-sd3-medium"  # the model that is to be measured on a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One line of the table; seconds of encode, decode and boxes are for one picture."""

    model: str
    weights: str  # "trained" or "random"
    kind: str  # "cuda" or "cpu"
    device: str  # which
    dtype: str  # of the flow transformer
    t5: str  # whether captions go through T5: "yes", "no", or "-" for a model without
    mode: str
    size_px: int  # a side of the square
    batch: int
    steps: int  # of the flow
    guidance: float
    effort: str = "normal"  # of the encoder
    encode_s: float = 0.0
    decode_s: float = 0.0
    loop_s: float = 0.0  # of the sampling loop, for the whole batch
    loop_tflops: float = 0.0  # 10^12 operations per second that the loop reached
    matmul_tflops: float  # the same of a large bf16 matrix product, in the same run
    copies: str = NO_DEVICE  # between the CPU's memory and the GPU's inside the loop
    peak_gib: float = 0.0  # most memory in use: on the GPU, or resident in the process
    size_bytes: int = 0  # of the file
    note: str  # what else ran, or whatever a reader has to know
    boxes: str = ""  # seconds, as "encode autoencoder=0.01; ..."

    @property
    def share(self) -> float:
        """Part of the matrix product's speed that the loop reaches."""
        return self.loop_tflops / self.matmul_tflops

    def seconds_by_box(self) -> dict[str, float]:
        """`boxes`, read."""
        pairs = (item.rsplit("=", 1) for item in self.boxes.split("; "))
        return {box: float(seconds) for box, seconds in pairs}


_NAMES = [f.name for f in fields(BenchRow)]
_POINT = _NAMES[: _NAMES.index("encode_s")]  # a second measurement there replaces the first
_TEXTS = {f.name: str for f in fields(BenchRow) if f.type == "str"}


def write(rows: Iterable[BenchRow], folder: Path) -> None:
    """Add rows to `bench.csv` in `folder`, newer ones for older, and write `bench.md` anew."""
    path = folder / f"{STEM}.csv"
    frame = pd.DataFrame([asdict(row) for row in (*read(path), *rows)], columns=_NAMES)
    frame = frame.drop_duplicates(_POINT, keep="last").round({"peak_gib": 2}).round(4)
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    path.with_suffix(".md").write_text(as_markdown(read(path)), encoding="utf-8")


def read(path: Path) -> list[BenchRow]:
    """Rows of a CSV of `write`, none without a file; ConfigError if it has other columns."""
    if not path.exists():
        return []
    frame = pd.read_csv(path, dtype=_TEXTS, keep_default_na=False)
    if list(frame) != _NAMES:
        raise ConfigError(f"{str(path)!r} has columns {[*frame]}, expected {', '.join(_NAMES)}")
    return [BenchRow(**row) for row in frame.to_dict("records")]


def as_markdown(rows: Sequence[BenchRow]) -> str:
    """The table, ended by the points of Stable Diffusion 3 on a GPU that nobody measured yet."""
    lines = [_HEAD, *map(_LINE.format, rows)]
    targeted = [r for r in rows if (r.model, r.kind, r.batch) == (TARGET, "cuda", 1)]
    done = {(r.size_px, r.steps, "above 1" if r.guidance > 1 else "1", r.t5) for r in targeted}
    lines += [_MISSING.format(*point) for point in TARGETS if point not in done]
    return _ABOUT + "\n".join(lines) + "\n"


# Sizes, steps, guided or not, and T5, at which the full-size model is to be measured.
TARGETS = tuple(product((512, 1024), (1, 4, 20), ("1", "above 1"), ("no", "yes")))

_ABOUT = """# Seconds, memory and use of the machine

Written by `python -m percov2_core bench --out assets/results`; the seconds of every box are in
`bench.csv`. Encode and decode are for one picture, the loop for the batch. TFLOP/s are counted
by `torch.utils.flop_counter`; beside them is a large bf16 matrix product on the same machine in the
same run. Copies are those between the CPU's memory and the GPU's inside the sampling loop. Memory
is the GPU's, or that of the whole process. Weights marked random give the same speed and memory as
trained ones, and no pictures.

"""
_COLUMNS = {
    "model": "{0.model}, {0.weights}, {0.dtype}",
    "device": "{0.device}",
    "mode": "{0.mode}",
    "size": "{0.size_px}",
    "batch": "{0.batch}",
    "steps": "{0.steps}",
    "guidance": "{0.guidance:g}",
    "T5": "{0.t5}",
    "effort": "{0.effort}",
    "encode s": "{0.encode_s:.3f}",
    "decode s": "{0.decode_s:.3f}",
    "loop s": "{0.loop_s:.3f}",
    "loop TFLOP/s": "{0.loop_tflops:.3g}",
    "matmul TFLOP/s": "{0.matmul_tflops:.3g}",
    "share": "{0.share:.1%}",
    "copies": "{0.copies}",
    "peak GiB": "{0.peak_gib:.2f}",
    "note": "{0.note}",
}
_LINE = f"| {' | '.join(_COLUMNS.values())} |"
_HEAD = f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}"
_MISSING = f"| {TARGET}, random, bfloat16 | any GPU | any | {{}} | 1 | {{}} | {{}} | {{}} |"
_MISSING += " any |" + " not measured |" * 8 + "  |"


def headline(row: BenchRow) -> str:
    """One line about model and machine."""
    where = f"{row.model}, {row.weights} weights, {row.dtype}, on {row.device}"
    return f"{where}; bf16 matrix product {row.matmul_tflops:.3g} TFLOP/s"


def as_text(row: BenchRow) -> str:
    """A row for people, the boxes below each other."""
    both, boxes = row.encode_s + row.decode_s, row.seconds_by_box()
    coding = sum(seconds for box, seconds in boxes.items() if box.endswith("coding"))
    lines = [
        f"\n{row.mode}, {row.effort}, {row.size_px}x{row.size_px}, batch {row.batch}, "
        f"{row.steps} steps, guidance {row.guidance:g}, {row.size_bytes} bytes",
        f"  encode {row.encode_s:.3f} s, decode {row.decode_s:.3f} s (medians)",
        *(f"  {box:<24}{s:8.3f} s {s / both:7.1%}" for box, s in boxes.items()),
        f"  entropy coding together {coding / both:.1%}",
        f"  sampling loop {row.loop_s:.3f} s, {row.loop_tflops:.3g} TFLOP/s, {row.share:.1%} "
        f"of the matrix product; host-device copies: {row.copies}",
        f"  peak memory {row.peak_gib:.2f} GiB",
    ]
    return "\n".join(lines)
