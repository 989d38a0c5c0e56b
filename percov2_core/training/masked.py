"""Train the masked image model on token grids and their captions.

The averaged model that comes out is what `entropy.exporter` turns into the integer twin.
"""

from __future__ import annotations

import copy
import csv
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from math import cos, pi
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from percov2_core.entropy.masked_model import MaskedImageModel, MaskedModelConfig
from percov2_core.errors import WeightsError
from percov2_core.training.token_batches import (
    BatchMaker,
    MaskedTraining,
    collect_vocabulary,
    load_grids,
)

__all__ = ["MaskedModelConfig", "MaskedTraining", "load_model", "save_model", "train_masked"]

log = logging.getLogger(__name__)

CHECKPOINT_NAME = "last.pt"
MODEL_NAME = "masked.safetensors"
LOSSES_NAME = "losses.csv"


def train_masked(
    files: Sequence[Path],
    out_dir: Path,
    *,
    config: MaskedModelConfig,
    settings: MaskedTraining,
    device: str = "cpu",
    resume: bool = True,
) -> MaskedImageModel:
    """Train until the time is used up; write losses, checkpoint and the averaged model.

    Args:
        files: What `load_grids` reads. An empty vocabulary in `config` is filled from them.
        out_dir: Gets `losses.csv`, `last.pt` and `masked.safetensors`.
        resume: Go on from `last.pt` if it is there.

    Returns:
        The averaged model, in evaluation mode, on the CPU.
    """
    sets = [load_grids(path) for path in files]
    if not config.vocabulary:
        vocabulary = collect_vocabulary([caption for s in sets for caption in s.captions])
        config = MaskedModelConfig(**{**asdict(config), "vocabulary": vocabulary})
    out_dir.mkdir(parents=True, exist_ok=True)
    loop = _Loop(config, BatchMaker(sets, config, settings), settings, device)
    if resume and (out_dir / CHECKPOINT_NAME).exists():
        loop.load(out_dir / CHECKPOINT_NAME)
    loop.run(out_dir)
    average = loop.average.cpu().eval()
    save_model(average, out_dir / MODEL_NAME)
    return average


class _Loop:
    """Everything that a checkpoint holds."""

    def __init__(
        self, config: MaskedModelConfig, batches: BatchMaker, settings: MaskedTraining, device: str
    ) -> None:
        self.batches, self.settings, self.device = batches, settings, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = MaskedImageModel(config).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
        )
        self.step, self.seconds = 0, 0.0

    def run(self, out_dir: Path) -> None:
        """Train to the end of the budget."""
        budget, pause = 60 * self.settings.minutes, 60 * self.settings.validate_minutes
        due, mean = self.seconds + pause, 0.0
        while self.seconds < budget:
            began = time.perf_counter()
            bits = self.take_step()
            self.seconds += time.perf_counter() - began
            mean = bits if not mean else 0.98 * mean + 0.02 * bits
            if self.seconds >= min(due, budget):
                due = self.seconds + pause
                self._report(out_dir / LOSSES_NAME, mean)
                self.save(out_dir / CHECKPOINT_NAME)

    def take_step(self) -> float:
        """One update; returns the mean bits per token of its batch."""
        share = self.seconds / (60 * self.settings.minutes)
        rate = min(1.0, (self.step + 1) / self.settings.warmup_steps) * 0.5 * (1 + cos(pi * share))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * max(rate, 0.01)
        batch = self.batches.draw(self.step)
        self.model.train()
        with torch.autocast(self.device, dtype=torch.bfloat16):
            bits = self.model.bits(*(t.to(self.device) for t in batch)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        bits.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._follow()
        return float(bits.detach())

    @torch.no_grad()
    def _follow(self) -> None:
        keep = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        for old, new in pairs:
            old.lerp_(new, 1 - keep)

    @torch.no_grad()
    def validate(self) -> list[float]:
        """Mean bits per token of the averaged model on the grids held out of each file, `qlds`."""
        found = []
        for tokens, words, stage_map in self.batches.held_out:
            parts = [
                self.average.bits(
                    t.to(self.device), w.to(self.device), stage_map.to(self.device)
                ).mean()
                for t, w in zip(torch.split(tokens, 8), torch.split(words, 8), strict=True)
            ]
            found.append(float(torch.stack(parts).mean()))
        return found

    def _report(self, path: Path, mean: float) -> None:
        held_out = self.validate()
        row = [
            self.step,
            f"{self.seconds / 60:.2f}",
            f"{mean:.4f}",
            *(f"{b:.4f}" for b in held_out),
        ]
        log.info("step %s, %s min, training bits %s, held-out bits %s", *row[:3], row[3:])
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                names = [f"held_out_{i}" for i in range(len(held_out))]
                writer.writerow(["step", "minutes", "training_bits", *names])
            writer.writerow(row)

    def save(self, path: Path) -> None:
        """Write a checkpoint; a broken write leaves the old one."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "random": torch.get_rng_state(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        torch.set_rng_state(state["random"].cpu())


def save_model(model: MaskedImageModel, path: Path) -> None:
    """Write weights and config to one safetensors file."""
    weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    save_file(weights, path, metadata={"config": json.dumps(asdict(model.config))})


def load_model(path: Path) -> MaskedImageModel:
    """Read what `save_model` wrote.

    Raises:
        WeightsError: if the file is absent or does not fit.
    """
    if not path.exists():
        raise WeightsError(f"masked model {path.name} is missing")
    with safe_open(path, framework="pt") as file:
        settings = json.loads(file.metadata()["config"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    settings["vocabulary"] = tuple(settings["vocabulary"])
    model = MaskedImageModel(MaskedModelConfig(**settings))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise WeightsError(f"masked model {path.name} does not fit its config: {error}") from error
    return model.eval()
