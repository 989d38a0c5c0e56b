"""The training loop that every stage shares: precision, average, clipping, checkpoints, scores.

A stage brings a module whose `forward(batch, progress)` returns a loss and named numbers. One
process or several under `accelerate launch`: each draws its own batches and its own noise.
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm import tqdm

from percov2_core.errors import ConfigError
from percov2_core.training.checkpoint import Average, Checkpoints

LOG_EVERY = 20  # steps
MEASURED_STEPS = 20
_COPIES_BYTES = 4 * 4  # of a trained number in float32: gradient, two averages of AdamW, our own
_AHEAD, _READERS = 3, 4  # batches made before they are needed, threads that make them

Batch = Any  # whatever the stage's module takes
Evaluate = Callable[[Any, int], dict[str, float]]  # of the module, at this step
Groups = list[dict[str, Any]]


class StepLoss(NamedTuple):
    """What a stage returns for one batch."""

    loss: Tensor  # () float, what is minimised
    logs: dict[str, float]  # for the CSV


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How long and how fast."""

    minutes: float = 10.0  # wall-clock length over all resumes; ignored if `steps` is set
    steps: int | None = None  # length in optimiser steps (reproducible runs)
    lr: float = 6e-4  # peak learning rate of AdamW
    floor: float = 0.05  # share of `lr` that the cosine ends at; 1 keeps the rate constant
    warmup_steps: int = 100  # of linear growth to `lr`
    weight_decay: float = 0.01
    ema: float = 0.999  # decay of the weight average that is saved and evaluated
    clip: float = 1.0  # longest gradient
    seed: int = 0
    device: str | None = None
    save_every_s: float = 120.0
    evaluate_every_s: float = 420.0

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes <= 0:
            raise ConfigError(f"minutes must be above 0, got {self.minutes}")


def on_cpu(device: str | None) -> bool:
    """Whether a run stays on the CPU: asked for, or there is no GPU."""
    return device == "cpu" or not torch.cuda.is_available()


def processes(device: str | None) -> PartialState:
    """Which process of how many this is, under `accelerate launch` or alone."""
    return PartialState(cpu=on_cpu(device))


def sharded() -> bool:
    """Whether `accelerate launch` was told to cut the weights up (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def run(
    system: nn.Module,
    make_batch: Callable[[int], Batch],
    out: Path,
    *,
    config: LoopConfig,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    groups: Groups | None = None,
) -> None:
    """Train `system` and leave the averaged weights in it. ConfigError if there is nothing to
    resume from.
    `make_batch` is called on other threads; what it returns must depend on its number alone, so
    that a resumed run sees the batches of an unbroken one. `out` receives the last checkpoint,
    `losses.csv` and `scores.csv`; `evaluate` gives named scores of the averaged weights, every
    `evaluate_every_s` and at the end. Each of `groups` may have an `lr_scale` or `weight_decay` of
    its own; by default they are one, of everything that requires a gradient."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    trainer = _Trainer(system, out, config, groups)
    if resume:
        trainer.step, trainer.elapsed = trainer.checkpoints.load()
    trainer.train(make_batch, evaluate)
    trainer.average.move_in()


def memory_bytes(system: nn.Module, processes: int = 1) -> int:
    """Weights, gradients, AdamW and average on each process; activations come on top."""
    parameters = list(system.parameters())
    own = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return (own + _COPIES_BYTES * trained) // (processes if sharded() else 1)


class _Trainer:
    """A run: the module, what follows it, and how far both have come."""

    def __init__(
        self, system: nn.Module, out: Path, config: LoopConfig, groups: Groups | None
    ) -> None:
        self.out, self.config = out, config
        cpu = on_cpu(config.device)
        bf16 = not cpu or sharded() or torch.cpu._is_avx512_bf16_supported()
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="bf16" if bf16 else "no")
        trained = [p for p in system.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            groups or trained, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )
        self.wrapped, self.optimizer = self.accelerator.prepare(system, optimizer)
        self.module: nn.Module = self.accelerator.unwrap_model(self.wrapped)
        self.average = Average(self.module, config.ema)
        self.checkpoints = Checkpoints(out, self.accelerator, self.average)
        self.step, self.elapsed = 0, 0.0

    @property
    def progress(self) -> float:
        if self.config.steps:
            return self.step / self.config.steps
        return self.elapsed / (60 * self.config.minutes)

    def train(self, make_batch: Callable[[int], Batch], evaluate: Evaluate | None) -> None:
        memory = memory_bytes(self.module, self.accelerator.num_processes) / 2**30
        trained = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        self.accelerator.print(
            f"cost: {trained / 1e6:.1f} M parameters trained; {memory:.2f} GiB a process for "
            "weights, gradients, AdamW and average (counted; activations come on top)"
        )
        began, before, first = self._clock(), self.elapsed, self.step
        warm = saved = scored = began
        bar = tqdm(total=self.config.steps, initial=first, desc=self.out.name, disable=None)
        for batch in prefetch(make_batch, self._numbers()):
            if self.progress >= 1:
                break
            result, norm = self.take_step(batch)
            now = self._clock()
            self.elapsed = before + now - began
            bar.update()
            self._log(result, norm, bar)
            warm = now if self.step == first + 1 else warm  # the first step is slower than others
            if self.step == first + MEASURED_STEPS:
                self._tell_speed((MEASURED_STEPS - 1) / (now - warm))
            if now - saved > self.config.save_every_s:
                self.checkpoints.save(self.step, self.elapsed)
                saved = now
            if evaluate and now - scored > self.config.evaluate_every_s:
                self.score(evaluate)
                scored = now
        self.checkpoints.save(self.step, self.elapsed)
        if evaluate:
            self.score(evaluate)

    def take_step(self, batch: Batch) -> tuple[StepLoss, float]:
        """One update; the loss of its batch and the length of the gradient."""
        config, rank = self.config, self.accelerator.process_index
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        rate = config.lr * warm * (config.floor + (1 - config.floor) * cosine)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        torch.manual_seed(config.seed * 1_000_003 + self.step + rank * 1_000_000_007)
        with self.accelerator.autocast():
            result: StepLoss = self.wrapped(batch, self.progress)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(result.loss)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self.accelerator.clip_grad_norm_(trained, config.clip)
        self.optimizer.step()
        self.average.update()
        self.step += 1
        return result, float(norm or 0.0)

    def score(self, evaluate: Evaluate) -> None:
        """Evaluate with the averaged weights, then put the raw ones back."""
        with self.average.in_place():
            self.module.eval()
            with torch.inference_mode(), self.accelerator.autocast():
                scores = evaluate(self.module, self.step)
            self.module.train()
        self._write("scores.csv", scores)

    def _log(self, result: StepLoss, norm: float, bar: Any) -> None:
        if self.step % LOG_EVERY == 0 or self.step == self.config.steps:
            logs = {"loss": result.loss.item(), "grad_norm": norm, **result.logs}
            self._write("losses.csv", logs)
            bar.set_postfix({k: f"{v:.4f}" for k, v in list(logs.items())[:4]})

    def _write(self, name: str, values: Mapping[str, float]) -> None:
        """One row at the end of a CSV; a column that is new to it is left out."""
        if not self.accelerator.is_main_process:
            return
        row = {"step": self.step, "seconds": round(self.elapsed, 1), **values}
        with (self.out / name).open("a+", newline="") as file:
            file.seek(0)
            head = next(csv.reader(file), None)
            writer = csv.DictWriter(file, head or list(row), extrasaction="ignore")
            if head is None:
                writer.writeheader()
            writer.writerow(row)

    def _tell_speed(self, steps_a_second: float) -> None:
        text = f"cost: {steps_a_second:.3g} steps/s (measured)"
        if self.config.steps:
            text += f"; {self.config.steps} take {self.config.steps / steps_a_second / 3600:.2f} h"
        if torch.cuda.is_available():
            text += f"; peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
        self.accelerator.print(text)

    def _numbers(self) -> Iterator[int]:
        every = self.accelerator.num_processes
        return count(self.step * every + self.accelerator.process_index, every)

    def _clock(self) -> float:
        """Seconds; those of the first process in all, so that all stop at the same step."""
        now = time.monotonic()
        if self.accelerator.num_processes == 1:
            return now
        told = torch.tensor(now, dtype=torch.float64, device=self.accelerator.device)
        return float(broadcast(told))


def prefetch(make: Callable[[int], Batch], numbers: Iterator[int]) -> Iterator[Batch]:
    """`make` of each number in order, made ahead on other threads."""
    with ThreadPoolExecutor(_READERS) as pool:
        pending = [pool.submit(make, next(numbers)) for _ in range(_AHEAD)]
        while True:
            pending.append(pool.submit(make, next(numbers)))
            yield pending.pop(0).result()
