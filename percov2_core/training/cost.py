"""What a run costs: counted before it starts, measured on its first steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from percov2_core.training.checkpoint import kept
from percov2_core.training.loop import LoopConfig

MEASURED_STEPS = 20
_FLOAT_BYTES = 4
_COPIES = 3  # of each trained number beside itself: gradient and the two averages of AdamW


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What is known before the first step.

    Attributes:
        samples: Samples that the run will have drawn on all processes; None if it runs for a time.
        per_step: Samples of one step, on all processes.
        trained, frozen: Parameters that change, and that do not.
        state_bytes: Memory of weights, gradients, AdamW and the average, on each process.
        shards: Processes that share it (FSDP), or 1.
    """

    samples: int | None
    per_step: int
    trained: int
    frozen: int
    state_bytes: int
    shards: int = 1

    def describe(self) -> str:
        """Lines for people."""
        length = "for a time" if self.samples is None else f"{self.samples:,} samples"
        memory = self.state_bytes / self.shards / 2**30
        return (
            f"cost: {length}, {self.per_step} in a step; {self.trained / 1e6:.1f} M parameters "
            f"trained, {self.frozen / 1e6:.1f} M frozen\n"
            f"cost: {memory:.2f} GiB a process for weights, gradients, AdamW and average "
            f"(counted; activations come on top, see after {MEASURED_STEPS} steps)"
        )


def count_cost(
    system: nn.Module, config: LoopConfig, *, batch: int, processes: int = 1, sharded: bool = False
) -> Cost:
    """Count before the run; exact but for activations, which are measured."""
    parameters = list(system.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    own = sum(p.numel() * p.element_size() for p in parameters)
    average = sum(v.numel() * v.element_size() for v in kept(system).values())
    return Cost(
        samples=None if config.steps is None else config.steps * batch * processes,
        per_step=batch * processes,
        trained=trained,
        frozen=sum(p.numel() for p in parameters) - trained,
        state_bytes=own + average + _COPIES * _FLOAT_BYTES * trained,
        shards=processes if sharded else 1,
    )


def measuring(
    cost: Cost, config: LoopConfig, report: Callable[[str], None]
) -> Callable[[int, float], None]:
    """A callback for `loop.run` that reports speed, memory and the whole length, once."""

    def on_step(steps: int, seconds: float) -> None:
        # The first step warms up: it is left out where there are others.
        if steps == 1:
            start.append(seconds)
        if steps == MEASURED_STEPS:
            report(measured(cost, config, steps - 1, seconds - start[0]))

    start: list[float] = []
    return on_step


def measured(cost: Cost, config: LoopConfig, steps: int, seconds: float) -> str:
    """What so many steps in so many seconds say about the run."""
    speed = steps / seconds
    text = f"cost: {speed:.3g} steps/s, {speed * cost.per_step:.3g} samples/s (measured)"
    if config.steps is not None:
        text += f"; {config.steps} steps take {config.steps / speed / 3600:.2f} h"
    if torch.cuda.is_available():
        text += f"; peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB (measured)"
    return text
