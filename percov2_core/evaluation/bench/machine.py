"""What this machine can do: its name, its fastest matrix product, memory, copies to and fro."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_PRODUCTS = 10  # in one timing
_TIMINGS = 4  # the fastest of them counts
_SIDES = {"cuda": 8192, "cpu": 2048}
# What a CUDA trace calls a copy between the CPU's memory and the GPU's.
_COPIES = ("memcpy htod", "memcpy dtoh")


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{_cpu_name()}, {count} thread{'s' if count > 1 else ''}"


def matmul_peak(device: torch.device, *, side: int | None = None) -> float:
    """FLOP/s of a square bf16 matrix product on this device: the fastest of a few timings.

    Args:
        side: Rows and columns; by default large enough for the device to be busy.
    """
    n = side or _SIDES[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(1 + _TIMINGS):
        began = clock(device)
        for _ in range(_PRODUCTS):
            torch.mm(a, b)
        seconds.append(clock(device) - began)
    return 2 * n**3 * _PRODUCTS / min(seconds[1:])


def clock(device: torch.device) -> float:
    """Seconds, read when the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def forget_peak(device: torch.device) -> None:
    """Begin to measure `peak_bytes` anew; on a CPU it stays the highest of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory in use: on the GPU, or resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def count_copies(run: Callable[[], object], device: torch.device) -> int | None:
    """Copies between the CPU's memory and the GPU's while `run` runs; None without a GPU."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        run()
        torch.cuda.synchronize(device)
    return copies_among(event.name for event in trace.events() or ())


def copies_among(names: Iterable[str]) -> int:
    """How many of a trace's events are such copies; copies within the GPU do not count."""
    return sum(name.lower().startswith(_COPIES) for name in names)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
