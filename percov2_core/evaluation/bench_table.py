"""Measured points -> one CSV, and the table that people read, with what was not measured."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from percov2_core.errors import ConfigError

STEM = "bench"
NOT_MEASURED = "not measured"
NO_DEVICE = "no device"
TARGET = "percov2-sd3-medium"  # the model that is to be measured on a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One line of the table; seconds of encode, decode and boxes are for one picture.

    Attributes:
        model: Its name.
        weights: "trained" or "random".
        kind, device: "cuda" or "cpu", and which.
        dtype: Of the flow transformer.
        t5: Whether captions go through T5: "yes", "no", or "-" for a model without.
        mode, size_px, batch: What was painted; the picture is square.
        steps, guidance: Of the flow.
        loop_s: Seconds of the sampling loop, for the whole batch.
        loop_tflops: 10^12 operations per second that the loop reached.
        matmul_tflops: The same of a large bf16 matrix product, measured in the same run.
        copies: Between the CPU's memory and the GPU's inside the loop, or "no device".
        peak_gib: Most memory in use: on the GPU, or resident in the process.
        size_bytes: Length of the file.
        note: What else ran, or whatever a reader has to know.
        boxes: Seconds, as "encode autoencoder=0.01; ...".
    """

    model: str
    weights: str
    kind: str
    device: str
    dtype: str
    t5: str
    mode: str
    size_px: int
    batch: int
    steps: int
    guidance: float
    encode_s: float = 0.0
    decode_s: float = 0.0
    loop_s: float = 0.0
    loop_tflops: float = 0.0
    matmul_tflops: float
    copies: str = NO_DEVICE
    peak_gib: float = 0.0
    size_bytes: int = 0
    note: str
    boxes: str = ""

    @property
    def share(self) -> float:
        """Part of the matrix product's speed that the loop reaches."""
        return self.loop_tflops / self.matmul_tflops

    def seconds_by_box(self) -> dict[str, float]:
        """`boxes`, read."""
        pairs = (item.rsplit("=", 1) for item in self.boxes.split("; "))
        return {box: float(seconds) for box, seconds in pairs}

    @property
    def entropy_share(self) -> float:
        """Part of encode and decode together that entropy coding takes."""
        coding = [s for box, s in self.seconds_by_box().items() if box.endswith("coding")]
        return sum(coding) / (self.encode_s + self.decode_s)

    @property
    def key(self) -> tuple[Any, ...]:
        """What a second measurement replaces the first for."""
        names = [f.name for f in fields(self)][:_KEY_FIELDS]
        return tuple(getattr(self, name) for name in names)


_KEY_FIELDS = [f.name for f in fields(BenchRow)].index("encode_s")
_NUMBERS = {f.name: f.type for f in fields(BenchRow) if f.type in ("int", "float")}


def write(rows: Iterable[BenchRow], folder: Path) -> None:
    """Add rows to `bench.csv` in `folder`, newer ones for older, and write `bench.md` anew."""
    path = folder / f"{STEM}.csv"
    known = {row.key: row for row in (*read(path), *rows)}
    names = [f.name for f in fields(BenchRow)]
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in known.values())
    path.with_suffix(".md").write_text(as_markdown(list(known.values())), encoding="utf-8")


def read(path: Path) -> list[BenchRow]:
    """Rows of a CSV that `write` wrote; none if there is no file.

    Raises:
        ConfigError: if it has other columns.
    """
    if not path.exists():
        return []
    names = [f.name for f in fields(BenchRow)]
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != names:
            raise ConfigError(
                f"{str(path)!r} has columns {reader.fieldnames}, expected {', '.join(names)}"
            )
        return [BenchRow(**{k: _parsed(k, v) for k, v in row.items()}) for row in reader]


def as_markdown(rows: Sequence[BenchRow]) -> str:
    """The table, ended by the points of Stable Diffusion 3 on a GPU that nobody measured yet."""
    lines = [_HEAD, *(_line(row) for row in rows)]
    targeted = [r for r in rows if (r.model, r.kind, r.batch) == (TARGET, "cuda", 1)]
    done = {(r.size_px, r.steps, r.guidance > 1, r.t5) for r in targeted}
    lines += [_line_of(*point) for point in TARGETS if point not in done]
    return _ABOUT + "\n".join(lines) + "\n"


# Sizes, steps, guided or not, and T5, at which the full-size model is to be measured.
TARGETS = tuple(product((512, 1024), (1, 4, 20), (False, True), ("no", "yes")))

_ABOUT = """# Seconds, memory and use of the machine

Written by `python -m percov2_core bench --out assets/results`; the seconds of every box are in
`bench.csv`. Encode and decode are for one picture, the loop for the batch. TFLOP/s are counted
by `torch.utils.flop_counter`; beside them is a large bf16 matrix product on the same machine in the
same run. Copies are those between the CPU's memory and the GPU's inside the sampling loop. Memory
is the GPU's, or that of the whole process. Weights marked random give the same speed and memory as
trained ones, and no pictures.

"""
_COLUMNS = (
    "model", "device", "mode", "size", "batch", "steps", "guidance", "T5", "encode s", "decode s",
    "loop s", "loop TFLOP/s", "matmul TFLOP/s", "share", "copies", "peak GiB", "note",
)  # fmt: skip
_HEAD = f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}"


def _line(row: BenchRow) -> str:
    cells = (
        f"{row.model}, {row.weights}, {row.dtype}", row.device, row.mode, row.size_px, row.batch,
        row.steps, f"{row.guidance:g}", row.t5, f"{row.encode_s:.3f}", f"{row.decode_s:.3f}",
        f"{row.loop_s:.3f}", f"{row.loop_tflops:.3g}", f"{row.matmul_tflops:.3g}",
        f"{row.share:.1%}", row.copies, f"{row.peak_gib:.2f}",
        row.note,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _line_of(size: int, steps: int, guided: bool, t5: str) -> str:
    cells: list[object] = [f"{TARGET}, random, bfloat16", "any GPU", "any", size, 1, steps]
    cells += ["above 1" if guided else "1", t5]
    cells += [NOT_MEASURED] * (len(_COLUMNS) - len(cells) - 1) + [""]
    return f"| {' | '.join(map(str, cells))} |"


def _parsed(name: str, text: str) -> Any:
    kind = _NUMBERS.get(name)
    return {"int": int, "float": float}[str(kind)](text) if kind else text


def headline(row: BenchRow) -> str:
    """One line about model and machine."""
    return (
        f"{row.model}, {row.weights} weights, {row.dtype}, on {row.device}; "
        f"bf16 matrix product {row.matmul_tflops:.3g} TFLOP/s"
    )


def as_text(row: BenchRow) -> str:
    """A row for people, the boxes below each other."""
    both = row.encode_s + row.decode_s
    lines = [
        f"\n{row.mode}, {row.size_px}x{row.size_px}, batch {row.batch}, {row.steps} steps, "
        f"guidance {row.guidance:g}, {row.size_bytes} bytes",
        f"  encode {row.encode_s:.3f} s, decode {row.decode_s:.3f} s (medians)",
    ]
    for box, seconds in row.seconds_by_box().items():
        lines.append(f"  {box:<24}{seconds:8.3f} s {seconds / both:7.1%}")
    lines += [
        f"  entropy coding together {row.entropy_share:.1%}",
        f"  sampling loop {row.loop_s:.3f} s, {row.loop_tflops:.3g} TFLOP/s, {row.share:.1%} "
        f"of the matrix product; host-device copies: {row.copies}",
        f"  peak memory {row.peak_gib:.2f} GiB",
    ]
    return "\n".join(lines)
