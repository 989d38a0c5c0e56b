"""Open a model, measure it at its points, and say what came out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from PIL import Image, ImageOps

from percov2_core.codec import PerCoV2
from percov2_core.errors import ConfigError
from percov2_core.evaluation.bench.boxes import time_boxes
from percov2_core.evaluation.bench.loop import Point, time_loop
from percov2_core.evaluation.bench.machine import device_name, matmul_peak
from percov2_core.evaluation.bench.rows import BenchRow, Machine, to_row
from percov2_core.flow.sd3_text import SD3TextEncoder
from percov2_core.weights import load_codec
from percov2_core.weights.fresh import random_codec
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import BASES, T5_TOKENS, TINY

TINY_RANDOM = TINY.name


def open_codec(name: str, *, random: bool, t5: bool, device: str | None) -> PerCoV2:
    """Load a model, or build one of a published size on random weights.

    Raises:
        ConfigError: if random weights are asked for where no published size is known.
        WeightsError: if the model cannot be loaded.
    """
    home = Residency.from_environment(device=device)
    if name == TINY_RANDOM:
        return random_codec(TINY, residency=home, t5_tokens=T5_TOKENS if t5 else 0)
    if not random:
        return load_codec(name, residency=home if t5 else home.without_t5())
    if name not in BASES:
        known = ", ".join((*BASES, TINY_RANDOM))
        raise ConfigError(f"--random-weights: model must be one of {known}, got {name!r}")
    return random_codec(BASES[name], residency=home, t5_tokens=T5_TOKENS if t5 else 0)


def describe(codec: PerCoV2, *, random: bool, note: str = "") -> Machine:
    """What all points of a run have in common; times the matrix product."""
    modules = next(iter(codec.rates.values()))
    t5 = "-"
    if isinstance(modules.text, SD3TextEncoder):
        t5 = "no" if modules.text.towers[2] is None else "yes"
    return Machine(
        model=codec.name,
        weights="random" if random else "trained",
        kind=codec.device.type,
        device=device_name(codec.device),
        dtype=str(modules.flow.transformer.dtype).removeprefix("torch."),
        t5=t5,
        peak_flops=matmul_peak(codec.device),
        note=note,
    )


def points(
    codec: PerCoV2,
    mode: str,
    size_px: int,
    batch: int,
    steps: Sequence[int] | None,
    guidance: Sequence[float] | None,
) -> Iterator[Point]:
    """Every pair of steps and guidance; what is not given comes from the preset `balanced`."""
    preset = codec.presets[mode]["balanced"]
    for count, scale in product(steps or [preset.steps], guidance or [preset.guidance]):
        yield Point(mode=mode, size_px=size_px, batch=batch, steps=count, guidance=scale)


def measure(
    codec: PerCoV2, machine: Machine, point: Point, image: Image.Image, *, repeats: int
) -> BenchRow:
    """Boxes of one picture, then the sampling loop of a batch."""
    square = ImageOps.fit(image, (point.size_px, point.size_px))
    boxes = time_boxes(
        codec,
        square,
        point.mode,
        repeats=repeats,
        steps=point.steps,
        guidance=point.guidance,
    )
    return to_row(machine, point, boxes, time_loop(codec, point, repeats=repeats))


def headline(machine: Machine) -> str:
    """One line about model and machine."""
    return (
        f"{machine.model}, {machine.weights} weights, {machine.dtype}, on {machine.device}; "
        f"bf16 matrix product {machine.peak_flops / 1e12:.3g} TFLOP/s"
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
