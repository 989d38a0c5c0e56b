"""Measure a model at a point: where the time goes, box by box, and how well its large loop runs."""

from __future__ import annotations

import argparse
import platform
import re
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image, ImageOps
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from percov2_core import codec as figure
from percov2_core.bitstream import Stream
from percov2_core.caption import packing
from percov2_core.codec import PerCoV2
from percov2_core.config import COARSE, FINE, check_choice
from percov2_core.evaluation.bench_table import NO_DEVICE, BenchRow
from percov2_core.flow.sampler import draw_noise, sample, sigmas
from percov2_core.flow.transformer import Conditions, guidance_features
from percov2_core.hyper.networks import Codes
from percov2_core.weights import load_codec
from percov2_core.weights.base import SD3TextEncoder
from percov2_core.weights.fresh import random_codec
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import BASES, T5_TOKENS, TINY

CAPTION = "a lighthouse by the sea under a blue sky"
_PRODUCTS = 10  # matrix products in one timing
_TIMINGS = 4  # the fastest of them counts
_SIDES = {"cuda": 8192, "cpu": 2048}  # large enough for the device to be busy
# What a CUDA trace calls a copy between the CPU's memory and the GPU's.
_COPIES = ("memcpy htod", "memcpy dtoh")
# The counter of torch knows every attention kernel but the CPU's.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)  # type: ignore[no-untyped-call]
    )
}


def open_codec(name: str, *, random: bool, t5: bool, device: str | None) -> PerCoV2:
    """Load a model, or build one of a published size on random weights; WeightsError if that cannot
    be, ConfigError if no size of it is known for random weights."""
    home = Residency.from_environment(device=device)
    if not random and name != TINY.name:
        return load_codec(name, residency=home if t5 else replace(home, t5=False))
    known = {**BASES, TINY.name: TINY}
    check_choice("--random-weights: model", name, known)
    return random_codec(known[name], residency=home, t5_tokens=T5_TOKENS if t5 else 0)


def points(codec: PerCoV2, args: argparse.Namespace) -> Iterator[BenchRow]:
    """Every combination of the command's lists (by default steps and guidance of the preset
    `balanced`), with only the product measured."""
    modules, t5 = codec.painter, "-"
    if isinstance(modules.text, SD3TextEncoder):
        t5 = "yes" if modules.text.t5_tokens else "no"
    row = partial(
        BenchRow,
        model=codec.name,
        weights="random" if args.random_weights or args.model == TINY.name else "trained",
        kind=codec.device.type,
        device=device_name(codec.device),
        dtype=str(modules.flow.transformer.dtype).removeprefix("torch."),
        t5=t5,
        matmul_tflops=matmul_flops(codec.device) / 1e12,
        note=args.note,
    )
    for size, mode, effort, batch in product(args.size, args.modes, args.effort, args.batch):
        preset = codec.presets[mode]["balanced"]
        ways = product(args.steps or [preset.steps], args.guidance or [preset.guidance])
        for steps, guidance in ways:
            what = {"mode": mode, "effort": effort, "size_px": size, "batch": batch}
            yield row(**what, steps=steps, guidance=guidance)


def measure(codec: PerCoV2, point: BenchRow, image: Image.Image, *, repeats: int) -> BenchRow:
    """The point with everything measured: boxes of one picture, then the loop of a batch.
    Seconds are medians of `repeats`, after a first time that warms up."""
    if codec.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(codec.device)
    square = ImageOps.fit(image, (point.size_px, point.size_px))
    encode = partial(codec.encode, square, point.mode, effort=point.effort)
    paint = partial(codec.decode, steps=point.steps, guidance=point.guidance)
    runs = []
    for _ in range(1 + repeats):
        stream, encode_s, encoding = _timed(codec, encode)
        data = stream.to_bytes()
        _, decode_s, decoding = _timed(codec, partial(paint, Stream.from_bytes(data)))
        seconds = {"encode": encode_s, "decode": decode_s}
        seconds |= {f"encode {box}": s for box, s in encoding.items()}
        runs.append(seconds | {f"decode {box}": s for box, s in decoding.items()})
    boxes = {box: statistics.median(run[box] for run in runs[1:]) for box in runs[0]}
    encode_s, decode_s = boxes.pop("encode"), boxes.pop("decode")
    run = sampling(codec, point)
    flops = counted_flops(run)
    loop_s = statistics.median(_seconds(run, codec.device, repeats))
    return replace(
        point,
        encode_s=encode_s,
        decode_s=decode_s,
        loop_s=loop_s,
        loop_tflops=flops / loop_s / 1e12,
        copies=count_copies(run, codec.device),
        peak_gib=_peak_bytes(codec.device) / 2**30,
        size_bytes=len(data),
        boxes="; ".join(f"{box}={seconds:.4f}" for box, seconds in boxes.items()),
    )


def _timed(codec: PerCoV2, call: Callable[[], Any]) -> tuple[Any, float, dict[str, float]]:
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
        return iter(partial(timed, label, next, result, None), None)

    with ExitStack() as stack:
        for label, owner, name in _boxes(codec):
            box = partial(timed, label, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, box))
        began = _clock(codec.device)
        result = call()
        return result, _clock(codec.device) - began, spent


def _boxes(codec: PerCoV2) -> list[tuple[str, Any, str]]:
    """Label, owner and name of every call that is a box of the figure."""
    boxes = [
        ("captioner", codec, "describe"),
        ("autoencoder", codec.vae, "encode"),
        ("search", figure, "search_tokens"),
        ("caption coding", packing, "write_caption"),
        ("caption coding", packing, "read_caption"),
        ("hyper-decoder", codec.painter.decoder, "forward"),
        ("text encoder", codec.painter.text, "encode"),
        ("flow", figure, "sample"),
        ("autoencoder", codec.vae, "decode"),
    ]
    for level in codec.levels.values():
        boxes += [
            ("hyper-encoder", level.encoder, "forward"),
            ("quantiser", level.quantizer, "tokens"),
            ("quantiser", level.quantizer, "lookup"),
            ("token coding", level.prior, "compress"),
            ("token coding", level.prior, "decompress"),
        ]
    return boxes


@torch.inference_mode()
def sampling(codec: PerCoV2, point: BenchRow) -> Callable[[], None]:
    """The sampling loop of a batch as a call without arguments, all that it needs in place."""
    modules, generator = codec.painter, torch.Generator().manual_seed(0)
    looked_up = []
    for level in (FINE, COARSE):
        grid = (point.batch, *level.grid(point.size_px, point.size_px))
        tokens = torch.randint(level.codebook_size, grid, generator=generator).to(codec.device)
        looked_up.append(codec.levels[level.name].quantizer.lookup(tokens))
    fine, coarse = looked_up
    scale = torch.full((point.batch,), point.guidance, device=codec.device)
    told = guidance_features(scale, modules.decoder.guidance_width)
    start, features = modules.decoder(Codes(fine, torch.ones_like(fine[:, :1]), coarse), told)
    conditions = Conditions(start, features, modules.text.encode([CAPTION] * point.batch))
    null = modules.text.encode([""])
    noise = draw_noise(tuple(start.shape), 0, start.device)
    times = sigmas(point.steps, codec.shift)
    flow: dict[str, Any] = {"times": times, "guidance": point.guidance, "noise": noise}

    @torch.inference_mode()
    def run() -> None:
        for _ in sample(modules.flow, conditions, null, **flow):
            pass

    return run


def counted_flops(run: Callable[[], object]) -> int:
    """Floating-point operations while `run` runs, two for each multiply and add."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        run()
    return int(counter.get_total_flops())


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count, info = torch.get_num_threads(), Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {count} thread{'s' if count > 1 else ''}"


def matmul_flops(device: torch.device) -> float:
    """FLOP/s of a square bf16 matrix product on this device: the fastest of a few timings."""
    n = _SIDES[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        for _ in range(_PRODUCTS):
            torch.mm(a, b)

    return 2 * n**3 * _PRODUCTS / min(_seconds(multiply, device, _TIMINGS))


def count_copies(run: Callable[[], object], device: torch.device) -> str:
    """Copies between the CPU's memory and the GPU's while `run` runs, or "no device"."""
    if device.type != "cuda":
        return NO_DEVICE
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


def _peak_bytes(device: torch.device) -> int:
    """Most memory in use: on the GPU at this point, or resident in the process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
