"""The sampling loop alone, for a batch: seconds, operations, copies to and fro."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from percov2_core.codec import PerCoV2
from percov2_core.config import MODES, RATES
from percov2_core.evaluation.bench.flops import transformer_flops
from percov2_core.evaluation.bench.machine import clock, count_copies, forget_peak, peak_bytes
from percov2_core.flow.sampler import draw_noise, sample, sigmas
from percov2_core.flow.transformer import Conditions, FlowModel, guidance_features

CAPTION = "a lighthouse by the sea under a blue sky"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What is measured.

    Attributes:
        mode: Key into `config.MODES`.
        size_px: Side of the square picture.
        batch: Pictures painted at once.
        steps, guidance: Of the flow.
    """

    mode: str
    size_px: int
    batch: int
    steps: int
    guidance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopTiming:
    """What the loop took.

    Attributes:
        seconds: Median over the repetitions, of the whole loop.
        flops: Operations in it, see `flops`.
        copies: Between the CPU's memory and the GPU's; None where there is no GPU.
        peak_bytes: Most memory in use, see `machine.peak_bytes`.
    """

    seconds: float
    flops: int
    copies: int | None
    peak_bytes: int

    @property
    def tflops(self) -> float:
        """10^12 operations per second that the loop reached."""
        return self.flops / self.seconds / 1e12


def time_loop(codec: PerCoV2, point: Point, *, repeats: int) -> LoopTiming:
    """Time `repeats` runs after one that warms up and is counted."""
    run, flow = sampling(codec, point)
    forget_peak(codec.device)
    flops = counted_flops(flow, run)
    seconds = []
    for _ in range(repeats):
        began = clock(codec.device)
        run()
        seconds.append(clock(codec.device) - began)
    return LoopTiming(
        seconds=statistics.median(seconds),
        flops=flops,
        copies=count_copies(run, codec.device),
        peak_bytes=peak_bytes(codec.device),
    )


@torch.inference_mode()
def sampling(codec: PerCoV2, point: Point) -> tuple[Callable[[], Tensor], FlowModel]:
    """The loop as a call without arguments, everything that it needs in place; and its network."""
    rate = MODES[point.mode].rate
    modules, config = codec.rates[rate], RATES[rate]
    generator = torch.Generator().manual_seed(0)
    grid = (point.batch, *config.grid(point.size_px, point.size_px))
    tokens = torch.randint(config.codebook_size, grid, generator=generator).to(codec.device)
    guidance = torch.full((point.batch,), point.guidance, device=codec.device)
    told = guidance_features(guidance, modules.decoder.guidance_width)
    start, features = modules.decoder(modules.quantizer.lookup(tokens), told)
    conditions = Conditions(start, features, modules.text.encode([CAPTION] * point.batch))
    null = modules.text.encode([""])
    noise = draw_noise(tuple(start.shape), 0, start.device)

    @torch.inference_mode()
    def run() -> Tensor:
        times, guidance = sigmas(point.steps, codec.shift), point.guidance
        for latent in sample(
            modules.flow, conditions, null, times=times, guidance=guidance, noise=noise
        ):
            last = latent
        return last

    return run, modules.flow


def counted_flops(flow: FlowModel, run: Callable[[], object]) -> int:
    """Operations of the transformer while `run` runs: every call, by the shapes it was given."""
    network, total = flow.transformer, 0

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal total
        batch, _, height, width = kwargs["hidden_states"].shape
        text = kwargs["encoder_hidden_states"].shape[1]
        total += transformer_flops(
            network.config, height=height, width=width, text_tokens=text, batch=batch
        )

    handle = network.register_forward_pre_hook(count, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return total
