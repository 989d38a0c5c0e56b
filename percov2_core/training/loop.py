"""The training loop that every stage shares: precision, EMA, clipping, checkpoints, scores.

A stage brings a module whose `forward(batch, progress)` returns a loss and named numbers.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from percov2_core.errors import ConfigError

CHECKPOINT = "checkpoint.pt"


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
        lr: Peak learning rate of AdamW; cosine to a twentieth of it, 100 steps of warm-up.
        ema: Decay of the weight average that is saved and evaluated.
        save_every_s: Seconds between checkpoints.
        evaluate_every_s: Seconds between evaluations.
    """

    minutes: float = 10.0
    steps: int | None = None
    lr: float = 6e-4
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


class Ema:
    """Exponential moving average of the parameters and buffers of a module."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            shadow = self.shadow[name]
            if shadow.is_floating_point():
                shadow.lerp_(value.detach().to(shadow.dtype), 1 - decay)
            else:
                shadow.copy_(value)


def learning_rate(progress: float, step: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then cosine from `peak` to `peak` / 20."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * cosine)


def _prefetch(make: Callable[[int], Any], start: int, depth: int = 3) -> Iterator[Any]:
    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(make, start + i) for i in range(depth)]
        step = start + depth
        while True:
            pending.append(pool.submit(make, step))
            step += 1
            yield pending.pop(0).result()


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


def run(
    system: nn.Module,
    make_batch: Callable[[int], Any],
    out: Path,
    *,
    config: LoopConfig,
    resume: bool = False,
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
) -> nn.Module:
    """Train `system` and leave the averaged weights in it.

    `make_batch(step)` is called on another thread and must depend on `step` alone, so that a
    resumed run sees the batches that an unbroken one would have seen. `out` receives
    `checkpoint.pt`, `losses.csv` and `scores.csv`.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=cpu, mixed_precision="bf16")
    trainable = [p for p in system.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    wrapped, optimizer = accelerator.prepare(system, optimizer)
    module: nn.Module = accelerator.unwrap_model(wrapped)
    ema = Ema(module, config.ema)
    step, elapsed = 0, 0.0
    if resume:
        step, elapsed = _load(out / CHECKPOINT, module, optimizer, ema)
    saved = evaluated = begun = time.monotonic()
    before = elapsed

    def save() -> None:
        if accelerator.is_main_process:
            _save(out / CHECKPOINT, module, optimizer, ema, step, elapsed)

    bar = tqdm(total=config.steps, initial=step, desc=out.name, disable=None)
    for batch in _prefetch(make_batch, step):
        progress = step / config.steps if config.steps else elapsed / (60 * config.minutes)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, step, config.lr)
        torch.manual_seed(config.seed * 1_000_003 + step)
        result = wrapped(batch, progress)
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(result.loss)
        norm = accelerator.clip_grad_norm_(trainable, config.clip)
        optimizer.step()
        ema.update(module, step)
        now = time.monotonic()
        step, elapsed = step + 1, before + now - begun
        bar.update()
        if step % 20 == 0 or step == config.steps:
            logs = {"loss": result.loss.item(), "grad_norm": float(norm or 0.0), **result.logs}
            _append(out / "losses.csv", {"step": step, "seconds": round(elapsed, 1), **logs})
            bar.set_postfix({k: f"{v:.4f}" for k, v in list(logs.items())[:4]})
        if now - saved > config.save_every_s:
            save()
            saved = time.monotonic()
        if evaluate and now - evaluated > config.evaluate_every_s:
            _score(module, ema, out, step, elapsed, evaluate)
            evaluated = time.monotonic()
    save()
    if evaluate and accelerator.is_main_process:
        _score(module, ema, out, step, elapsed, evaluate)
    module.load_state_dict(ema.shadow, strict=True)
    return module


def _score(
    module: nn.Module,
    ema: Ema,
    out: Path,
    step: int,
    elapsed: float,
    evaluate: Callable[[nn.Module, int], dict[str, float]],
) -> None:
    """Evaluate with the averaged weights, then put the raw ones back."""
    raw = {k: v.detach().clone() for k, v in module.state_dict().items()}
    module.load_state_dict(ema.shadow, strict=True)
    module.eval()
    device = next(module.parameters()).device.type
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16):
        scores = evaluate(module, step)
    module.train()
    module.load_state_dict(raw, strict=True)
    _append(out / "scores.csv", {"step": step, "seconds": round(elapsed, 1), **scores})


def _save(
    path: Path, module: nn.Module, optimizer: Any, ema: Ema, step: int, elapsed: float
) -> None:
    state = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.shadow,
        "step": step,
        "elapsed": elapsed,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _load(path: Path, module: nn.Module, optimizer: Any, ema: Ema) -> tuple[int, float]:
    if not path.is_file():
        raise ConfigError(f"resume: no checkpoint at {str(path)!r}; start without --resume")
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"], strict=True)
    optimizer.load_state_dict(state["optimizer"])
    device = next(module.parameters()).device
    ema.shadow = {k: v.to(device) for k, v in state["ema"].items()}
    return int(state["step"]), float(state["elapsed"])
