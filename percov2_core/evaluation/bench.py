"""Measure a model, box by box, how well its large loop runs, and classic codecs beside it."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
from PIL import Image, ImageOps
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from percov2_core import painting, repaint, searching
from percov2_core.baselines import CLASSIC
from percov2_core.baselines.base import largest_within
from percov2_core.baselines.classic import USUAL
from percov2_core.bitstream import Stream
from percov2_core.caption import packing
from percov2_core.codec import PerCoV2
from percov2_core.config import OWN_PAINTER, check_choice
from percov2_core.errors import PerCoError
from percov2_core.evaluation.bench_table import NOT_MEASURED, BenchRow
from percov2_core.flow.sampler import sample
from percov2_core.flow.text import TextEmbedding
from percov2_core.flow.transformer import Conditions
from percov2_core.painting import Painter
from percov2_core.repaint import REPAINT_PRESETS, Repainter
from percov2_core.weights import load_codec
from percov2_core.weights.base import SD3TextEncoder
from percov2_core.weights.fresh import random_codec, random_repainter
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import BASES, T5_TOKENS, TINY

Box: TypeAlias = tuple[str, Any, str]  # label, owner and name of what is called
_PRODUCTS = 10  # the fastest of them counts
_SIDES = {"cuda": 8192, "cpu": 2048}  # large enough for the device to be busy
# What a CUDA trace calls a copy between the CPU's memory and the GPU's.
_COPIES = ("memcpy htod", "memcpy dtoh")
# The counter of torch knows every attention kernel but the CPU's.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)  # type: ignore[no-untyped-call]
    )
}


def open_codec(args: argparse.Namespace) -> PerCoV2:
    """Load a model, or build one of a published size on random weights, or only its second painter;
    WeightsError if that cannot be, ConfigError if no size of it is known for random weights."""
    home = Residency.from_environment(device=args.device)
    home, known = replace(home, t5=home.t5 and not args.no_t5), {**BASES, TINY.name: TINY}
    if args.painter != OWN_PAINTER:
        codec = load_codec(args.model, residency=home)
        if _measurable(codec, args) and (args.random_weights or args.painter == TINY.name):
            check_choice("--random-weights: painter", args.painter, known)
            second = random_repainter(known[args.painter], residency=home)
            codec.painters = lambda name: second
        return codec
    if not args.random_weights and args.model != TINY.name:
        return load_codec(args.model, residency=home)
    check_choice("--random-weights: model", args.model, known)
    return random_codec(known[args.model], residency=home, t5_tokens=T5_TOKENS if home.t5 else 0)


def _measurable(codec: PerCoV2, args: argparse.Namespace) -> bool:
    """A painter of the published size wants a GPU."""
    return args.painter not in BASES or codec.device.type != "cpu"


def points(codec: PerCoV2, args: argparse.Namespace) -> Iterator[BenchRow]:
    """Every combination of the command's lists (by default steps and guidance of the preset
    `balanced`), with only the product measured."""
    modules: Painter | Repainter = codec.painter
    name, t5, named = (
        codec.name,
        "-",
        {mode: codec.presets[mode]["balanced"] for mode in args.modes},
    )
    if args.painter != OWN_PAINTER:
        name, named = f"{name} + {args.painter}", dict.fromkeys(named, REPAINT_PRESETS["balanced"])
        modules = codec.painters(args.painter) if _measurable(codec, args) else modules
    if isinstance(modules.text, SD3TextEncoder):
        t5 = "yes" if len(modules.text.models) > 2 else "no"
    row = partial(
        BenchRow,
        model=name,
        weights="random" if args.random_weights or TINY.name in name else "trained",
        kind=codec.device.type,
        device=device_name(codec.device),
        dtype=str(modules.flow.transformer.dtype).removeprefix("torch."),
        t5=t5,
        matmul_tflops=matmul_flops(codec.device, modules.flow.transformer.dtype) / 1e12,
        note=args.note,
    )
    for size, mode, effort, batch in product(args.size, args.modes, args.effort, args.batch):
        preset = named[mode]
        ways = product(args.steps or [preset.steps], args.guidance or [preset.guidance])
        for steps, guidance in ways:
            what = {"mode": mode, "effort": effort, "size": size, "batch": batch}
            yield row(**what, steps=steps, guidance=guidance)


def measure(
    codec: PerCoV2,
    point: BenchRow,
    image: Image.Image,
    *,
    repeats: int,
    painter: str = OWN_PAINTER,
) -> BenchRow:
    """The point with everything measured: boxes of one picture, then the loop of a batch.
    Seconds are medians of `repeats`, after a first time that warms up."""
    if codec.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(codec.device)
    with suppress(OSError):  # where it works, the peak of resident memory counts from now on
        Path("/proc/self/clear_refs").write_text("5")
    picture = ImageOps.fit(image, point.sides)
    encode = partial(codec.encode, picture, point.mode, effort=point.effort)
    paint = partial(codec.decode, steps=int(point.steps), guidance=point.guidance, painter=painter)
    boxes_of, runs = _boxes(codec, painter), []
    for _ in range(1 + repeats):
        stream, encoding = _timed(codec, "encode", encode, boxes_of)
        data = stream.to_bytes()
        _, decoding = _timed(codec, "decode", partial(paint, Stream.from_bytes(data)), boxes_of)
        runs.append(encoding | decoding)
    boxes = {box: statistics.median(run[box] for run in runs[1:]) for box in runs[0]}
    run = sampling(codec, point, stream, painter)
    loop_s = statistics.median(_seconds(run, codec.device, repeats))
    return replace(
        point,
        encode_s=boxes.pop("encode"),
        decode_s=boxes.pop("decode"),
        loop_s=loop_s,
        loop_tflops=counted_flops(run) / loop_s / 1e12,
        copies=count_copies(run, codec.device),
        peak_gib=_peak_bytes(codec.device) / 2**30,
        size_bytes=len(data),
        boxes="; ".join(f"{box}={seconds:.4f}" for box, seconds in boxes.items()),
    )


def rows(codec: PerCoV2, image: Image.Image, args: argparse.Namespace) -> Iterator[BenchRow]:
    """Each point when it is measured, then classic codecs at the same sizes: at the quality that
    people run them at, and at the best within the bytes of each of our files, or their lowest. What
    is not here is logged."""
    ours, cpu = [], torch.device("cpu")
    for point in points(codec, args):
        if _measurable(codec, args):
            point = measure(codec, point, image, repeats=args.repeats, painter=args.painter)
        else:
            point = replace(point, note=f"{NOT_MEASURED}: needs a GPU")
        ours.append(point)
        yield point
    sizes = dict.fromkeys(row.size for row in ours)
    alone = args.no_rivals or args.painter != OWN_PAINTER
    for (rival, usual), size in product(() if alone else USUAL, sizes):
        mine = [row for row in ours if row.size == size]
        picture = ImageOps.fit(image, mine[0].sides)
        try:
            fits = (largest_within(rival, picture, size_bytes=row.size_bytes) for row in mine)
            nearest = [fit.quality if fit else rival.qualities[0] for fit in fits]
            for quality in dict.fromkeys((usual, *nearest)):
                data = rival.encode(picture, quality)
                calls = partial(rival.encode, picture, quality), partial(rival.decode, data)
                seconds = [statistics.median(_seconds(call, cpu, args.repeats)) for call in calls]
                yield BenchRow(
                    model=CLASSIC[rival.name],
                    kind=cpu.type,
                    device=device_name(cpu),
                    mode=f"quality {quality}",
                    size=size,
                    encode_s=seconds[0],
                    decode_s=seconds[1],
                    size_bytes=len(data),
                    note=f"{rival.describe()}; {mine[0].note}".rstrip("; "),
                )
        except PerCoError as error:
            logging.getLogger(__name__).warning("%s at %s left out: %s", rival.name, size, error)


def _timed(
    codec: PerCoV2, verb: str, call: Callable[[], Any], boxes: list[Box]
) -> tuple[Any, dict[str, float]]:
    """What a call returns, its seconds, and those of each box in it; of a generator, the time until
    each of its steps. A box inside another belongs to the outer one."""
    spent: dict[str, float] = defaultdict(float)
    busy = False

    def timed(label: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        nonlocal busy
        if busy:
            return function(*args, **kwargs)
        busy, began = True, _clock(codec.device)
        result = function(*args, **kwargs)
        spent[label] += _clock(codec.device) - began
        busy = False
        if not isinstance(result, Generator):
            return result
        end = object()  # not None, which is what a generator says of an unfinished part
        return iter(partial(timed, label, next, result, end), end)

    with ExitStack() as stack:
        for label, owner, name in boxes:
            box = partial(timed, label, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, box))
        began = _clock(codec.device)
        result = call()
        total = {verb: _clock(codec.device) - began}
        return result, total | {f"{verb} {label}": seconds for label, seconds in spent.items()}


def _boxes(codec: PerCoV2, painter: str) -> list[Box]:
    """Label, owner and name of every call that is a box of the figure."""
    boxes = [
        ("captioner", codec, "describe"),
        ("autoencoder", codec.vae, "_encode"),
        ("search", searching, "search_tokens"),
        ("caption coding", packing, "write_caption"),
        ("caption coding", packing, "read_caption"),
        ("hyper-decoder", codec.painter.decoder, "forward"),
        ("text encoder", codec.painter.text, "encode"),
        ("flow", painting, "sample"),
        ("autoencoder", codec.vae, "_decode"),
    ]
    for level in codec.levels.values():
        boxes.append(("hyper-encoder", level.encoder, "forward"))
        boxes += [("quantiser", level.quantizer, call) for call in ("tokens", "lookup")]
        boxes += [("token coding", level.prior, call) for call in ("compress", "decompress")]
    if painter != OWN_PAINTER:
        second = codec.painters(painter)
        calls = [("text encoder", second.text, "encode"), ("flow", repaint, "sample")]
        calls += [("autoencoder", second.vae, call) for call in ("_encode", "_decode")]
        boxes += [(f"painter's {box}", owner, call) for box, owner, call in calls]
    return boxes


def sampling(
    codec: PerCoV2, point: BenchRow, stream: Stream, painter: str = OWN_PAINTER
) -> Callable[[], None]:
    """The sampling loop of a batch as a call without arguments: what `decode` runs, repeated."""
    owner = painting if painter == OWN_PAINTER else repaint
    with patch.object(owner, "sample", wraps=sample) as called:
        codec.decode(stream, steps=int(point.steps), guidance=point.guidance, painter=painter)
    (flow, one, null), how = called.call_args
    many = partial(torch.repeat_interleave, repeats=point.batch, dim=0)
    given = Conditions(many(one.start), many(one.features), TextEmbedding(*map(many, one.text)))
    how |= {"noise": many(how["noise"])}

    @torch.inference_mode()
    def run() -> None:
        for _ in sample(flow, given, null, **how):
            pass

    return run


def counted_flops(run: Callable[[], object]) -> int:
    """Floating-point operations while `run` runs, two for each multiply and add."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        run()
    return int(counter.get_total_flops())


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with what PyTorch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    isa = [torch.backends.cpu.get_cpu_capability(), f"{'' if bf16 else 'no '}bfloat16"]
    isa += [f"{key}={os.environ[key]}" for key in ("ONEDNN_MAX_CPU_ISA",) if key in os.environ]
    cores, count = os.cpu_count(), torch.get_num_threads()
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return ", ".join([name, *isa, f"{free} of {cores} cores", f"{count} thread{'s'[: count - 1]}"])


def _field(path: str, name: str) -> str:
    """What Linux says of `name` in one of its files; empty elsewhere."""
    text = Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else ""


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product on this device: the fastest of a few."""
    n = _SIDES[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(_seconds(partial(torch.mm, a, b), device, _PRODUCTS))


def count_copies(run: Callable[[], object], device: torch.device) -> str:
    """Copies between the CPU's memory and the GPU's while `run` runs, or "no device"."""
    if device.type != "cuda":
        return "no device"
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        run()
        torch.cuda.synchronize(device)
    # Copies within the GPU do not count.
    return str(sum(e.name.lower().startswith(_COPIES) for e in trace.events() or ()))


def _seconds(run: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """What each run takes, after a first one that warms up."""
    seconds = []
    for _ in range(1 + repeats):
        began = _clock(device)
        run()
        seconds.append(_clock(device) - began)
    return seconds[1:]


def _clock(device: torch.device) -> float:
    """Seconds, read when the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_bytes(device: torch.device) -> float:
    """Most memory in use at this point: on the GPU, or by a process of Linux; nan elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * float(_field("/proc/self/status", "VmHWM").removesuffix(" kB") or "nan")
