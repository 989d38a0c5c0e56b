"""The training loop that every stage shares: precision, EMA, clipping, checkpoints, scores.

A stage brings a module whose `forward(batch, progress)` returns a loss and named numbers. One
process or several under `accelerate launch`: each draws its own batches and its own noise.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm import tqdm

from percov2_core.errors import ConfigError
from percov2_core.training import checkpoint
from percov2_core.training.checkpoint import CHECKPOINT, Ema
from percov2_core.training.data import prefetch

__all__ = [
    "CHECKPOINT",
    "Ema",
    "LoopConfig",
    "StepLoss",
    "learning_rate",
    "on_cpu",
    "processes",
    "run",
]

LOG_EVERY = 20  # steps
LOSSES, SCORES = "losses.csv", "scores.csv"

Batch = Any  # whatever the stage's module takes
Evaluate = Callable[[nn.Module, int], dict[str, float]]
Groups = Callable[[nn.Module], Iterable[dict[str, Any]]]


class StepLoss(NamedTuple):
    """What a stage returns for one batch."""

    loss: Tensor  # () float, what is minimised
    logs: dict[str, float]  # for the CSV


class StageModule(Protocol):
    """A module that knows its loss; `progress` runs from 0 to 1 over the run."""

    def __call__(self, batch: Any, progress: float) -> StepLoss: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How long and how fast.

    Attributes:
        minutes: Wall-clock length of the run over all resumes; ignored if `steps` is set.
        steps: Length in optimiser steps (reproducible runs), or None.
        lr: Peak learning rate of AdamW.
        floor: Share of `lr` that the cosine ends at; 1 keeps the rate constant.
        warmup_steps: Steps of linear growth to `lr`.
        ema: Decay of the weight average that is saved and evaluated.
        save_every_s: Seconds between checkpoints.
        evaluate_every_s: Seconds between evaluations.
    """

    minutes: float = 10.0
    steps: int | None = None
    lr: float = 6e-4
    floor: float = 0.05
    warmup_steps: int = 100
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
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


def learning_rate(progress: float, step: int, config: LoopConfig) -> float:
    """Linear warm-up, then cosine from `lr` to `floor` of it."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.lr * warm * (config.floor + (1 - config.floor) * cosine)


def run(
    system: nn.Module,
    make_batch: Callable[[int], Batch],
    out: Path,
    *,
    config: LoopConfig,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    groups: Groups | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train `system` and leave the averaged weights in it.

    Args:
        make_batch: Called on another thread; what it returns must depend on its number alone, so
            that a resumed run sees the batches that an unbroken one would have seen.
        out: Receives `checkpoint.pt`, `losses.csv` and `scores.csv`.
        evaluate: Named scores of the averaged weights, every `evaluate_every_s` and at the end.
        groups: Parameter groups of AdamW, each with `lr_scale` or `weight_decay` of its own;
            without it, one group of everything that requires a gradient.
        on_step: Told the steps and the seconds of this sitting after each step.

    Raises:
        ConfigError: if there is nothing to resume from.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    trainer = _Trainer(system, out, config, groups)
    if resume:
        trainer.load()
    trainer.train(make_batch, evaluate, on_step)
    checkpoint.fill(trainer.module, trainer.ema.shadow)
    return trainer.module


class _Trainer:
    """A run: the module, what follows it, and how far both have come."""

    def __init__(
        self, system: nn.Module, out: Path, config: LoopConfig, groups: Groups | None
    ) -> None:
        self.out, self.config = out, config
        self.accelerator = Accelerator(cpu=on_cpu(config.device), mixed_precision="bf16")
        optimizer = torch.optim.AdamW(
            groups(system) if groups else [p for p in system.parameters() if p.requires_grad],
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )
        self.wrapped, self.optimizer = self.accelerator.prepare(system, optimizer)
        self.module: nn.Module = self.accelerator.unwrap_model(self.wrapped)
        self.ema = Ema(self.module, config.ema)
        self.step, self.elapsed = 0, 0.0

    @property
    def progress(self) -> float:
        if self.config.steps:
            return self.step / self.config.steps
        return self.elapsed / (60 * self.config.minutes)

    def train(
        self,
        make_batch: Callable[[int], Batch],
        evaluate: Evaluate | None,
        on_step: Callable[[int, float], None] | None,
    ) -> None:
        """Take steps to the end of the run."""
        began, before, first = self._clock(), self.elapsed, self.step
        save = _Timer(self.config.save_every_s, began)
        score = _Timer(self.config.evaluate_every_s, began)
        bar = tqdm(total=self.config.steps, initial=first, desc=self.out.name, disable=None)
        for batch in prefetch(make_batch, self._numbers()):
            if self.progress >= 1:
                break
            result, norm = self.take_step(batch)
            now = self._clock()
            self.elapsed = before + now - began
            bar.update()
            self._log(result, norm, bar)
            if on_step:
                on_step(self.step - first, now - began)
            if save.due(now):
                self.save()
            if evaluate and score.due(now):
                self.score(evaluate)
        self.save()
        if evaluate:
            self.score(evaluate)

    def take_step(self, batch: Batch) -> tuple[StepLoss, float]:
        """One update; the loss of its batch and the length of the gradient."""
        config, rank = self.config, self.accelerator.process_index
        rate = learning_rate(self.progress, self.step, config)
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
        self.ema.update(self.module, self.step)
        self.step += 1
        return result, float(norm or 0.0)

    def save(self) -> None:
        checkpoint.save(
            self.out / CHECKPOINT,
            module=self.module,
            optimizer=self.optimizer,
            average=self.ema.shadow,
            reached=checkpoint.Reached(self.step, self.elapsed),
            write=self.accelerator.is_main_process,
        )

    def load(self) -> None:
        self.step, self.elapsed = checkpoint.load(
            self.out / CHECKPOINT,
            module=self.module,
            optimizer=self.optimizer,
            average=self.ema.shadow,
        )

    def score(self, evaluate: Evaluate) -> None:
        """Evaluate with the averaged weights, then put the raw ones back."""
        raw = {k: v.clone() for k, v in checkpoint.kept(self.module).items()}
        checkpoint.fill(self.module, self.ema.shadow)
        self.module.eval()
        with torch.inference_mode(), self.accelerator.autocast():
            scores = evaluate(self.module, self.step)
        self.module.train()
        checkpoint.fill(self.module, raw)
        self._write(SCORES, scores)

    def _log(self, result: StepLoss, norm: float, bar: Any) -> None:
        if self.step % LOG_EVERY == 0 or self.step == self.config.steps:
            logs = {"loss": result.loss.item(), "grad_norm": norm, **result.logs}
            self._write(LOSSES, logs)
            bar.set_postfix({k: f"{v:.4f}" for k, v in list(logs.items())[:4]})

    def _write(self, name: str, values: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            row = {"step": self.step, "seconds": round(self.elapsed, 1), **values}
            _append(self.out / name, row)

    def _numbers(self) -> Iterator[int]:
        """Numbers of this process's batches."""
        step, count = self.step, self.accelerator.num_processes
        while True:
            yield step * count + self.accelerator.process_index
            step += 1

    def _clock(self) -> float:
        """Seconds; those of the first process in all, so that all stop at the same step."""
        now = time.monotonic()
        if self.accelerator.num_processes == 1:
            return now
        told = torch.tensor(now, dtype=torch.float64, device=self.accelerator.device)
        return float(broadcast(told))


class _Timer:
    """Due once every so many seconds."""

    def __init__(self, seconds: float, now: float) -> None:
        self.seconds, self.last = seconds, now

    def due(self, now: float) -> bool:
        if now - self.last <= self.seconds:
            return False
        self.last = now
        return True


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """One row at the end of a CSV; a column that is new to it is left out."""
    new = not path.exists()
    if new:
        columns = list(row)
    else:
        with path.open(newline="") as f:
            columns = next(csv.reader(f))
    with path.open("a", newline="") as f:
        writer = csv.DictWriter(f, columns, extrasaction="ignore", restval="")
        if new:
            writer.writeheader()
        writer.writerow(row)
