"""Train the masked image model on token grids and their captions.

S grids in a file, h x w tokens in each, B grids in a batch.
"""

from __future__ import annotations

import copy
import csv
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from percov2_core.entropy.masked_model import (
    MaskedImageModel,
    MaskedModelConfig,
    pad_words,
    split_words,
    word_ids,
)
from percov2_core.entropy.schedule import MAX_TILE, Grid, stages
from percov2_core.errors import ConfigError, WeightsError

log = logging.getLogger(__name__)

CHECKPOINT_NAME = "last.pt"
MODEL_NAME = "masked.safetensors"
LOSSES_NAME = "losses.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedTraining:
    """How long and how to train.

    Attributes:
        minutes: Wall-clock budget over all sittings; the learning rate falls to zero with it.
        batch_tokens: Tokens in one step; grids per batch follow from their size.
        learning_rate: Peak of AdamW.
        weight_decay: Of AdamW, on matrices only.
        warmup_steps: Steps until the peak.
        ema: Share of the old average kept in one step.
        crop_share: Share of batches cut from the grids at a random place and size.
        min_crop: Shortest side of a cut, in tokens.
        caption_drop: Share of grids shown without a caption.
        held_out: Last grids of each file, used for validation only.
        validate_minutes: Time between validations and checkpoints.
        seed: Of the order of everything.
    """

    minutes: float
    batch_tokens: int = 8192
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 60
    ema: float = 0.995
    crop_share: float = 0.7
    min_crop: int = 8
    caption_drop: float = 0.1
    held_out: int = 32
    validate_minutes: float = 2.0
    seed: int = 0


class TokenSet(NamedTuple):
    """The grids of one file."""

    tokens: NDArray[np.uint8]  # (S, h, w)
    captions: list[str]  # S of them


class Batch(NamedTuple):
    tokens: Tensor  # (B, h, w) int64
    words: Tensor  # (B, W) int64
    stage_map: Tensor  # (h, w) int64


def load_grids(path: Path) -> TokenSet:
    """Read an .npz with "tokens" (S, h, w) uint8 and "captions" (S,) text.

    Raises:
        ConfigError: if an array is missing or has another shape.
    """
    with np.load(path, allow_pickle=False) as arrays:
        if missing := {"tokens", "captions"} - set(arrays.files):
            raise ConfigError(f"{path.name} has no array {sorted(missing)[0]!r}")
        tokens, captions = arrays["tokens"], [str(text) for text in arrays["captions"]]
    if tokens.ndim != 3 or len(captions) != len(tokens) or max(tokens.shape[1:]) > MAX_TILE:
        raise ConfigError(
            f"{path.name}: tokens must be (S, h, w) with sides up to {MAX_TILE} and one caption "
            f"each, got {tokens.shape} and {len(captions)} captions"
        )
    return TokenSet(tokens, captions)


def collect_vocabulary(
    captions: Sequence[str], *, least: int = 3, most: int = 2000
) -> tuple[str, ...]:
    """The commonest words that occur at least `least` times, most frequent first."""
    counts: dict[str, int] = {}
    for caption in captions:
        for word in split_words(caption):
            counts[word] = counts.get(word, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(word for word, count in ranked[:most] if count >= least)


def random_stages(grid: Grid, rng: np.random.Generator) -> NDArray[np.int64]:
    """A stage map for one training batch: mostly `qlds`, else another schedule or chance."""
    name = str(rng.choice(["qlds", "quincunx", "var", "checkerboard", "chance"], p=_STAGE_SHARES))
    if name != "chance":
        return stages(name, grid)
    n = grid[0] * grid[1]
    count = int(rng.integers(2, 17))
    ends = np.ceil(n * (np.arange(1, count + 1) / count) ** rng.uniform(1.0, 3.0))
    position = rng.permutation(n)
    found: NDArray[np.int64] = np.searchsorted(ends, position, side="right").reshape(grid)
    return found


_STAGE_SHARES = (0.5, 0.12, 0.12, 0.06, 0.2)


class BatchMaker:
    """Draws batches; step i of a seed is the same in every sitting."""

    def __init__(
        self, sets: Sequence[TokenSet], config: MaskedModelConfig, settings: MaskedTraining
    ) -> None:
        self.settings = settings
        self.sets = [TokenSet(s.tokens[: -settings.held_out], s.captions) for s in sets]
        self.words = [[word_ids(caption, config) for caption in s.captions] for s in sets]
        sizes = np.array([s.tokens.size for s in self.sets], dtype=np.float64)
        self.shares = sizes / sizes.sum()
        held = [
            (s.tokens[-settings.held_out :], w[-settings.held_out :])
            for s, w in zip(sets, self.words, strict=True)
        ]
        self.held_out = [
            Batch(_tensor(t), pad_words(w), _tensor(stages("qlds", (t.shape[1], t.shape[2]))))
            for t, w in held
        ]

    def draw(self, step: int) -> Batch:
        """The batch of a step."""
        rng = np.random.default_rng([self.settings.seed, step])
        which = int(rng.choice(len(self.sets), p=self.shares))
        tokens = self.sets[which].tokens
        full = (tokens.shape[1], tokens.shape[2])
        grid = self._cut_size(full, rng)
        count = max(1, self.settings.batch_tokens // (grid[0] * grid[1]))
        chosen = rng.integers(0, len(tokens), count)
        rows = rng.integers(0, full[0] - grid[0] + 1, count)
        columns = rng.integers(0, full[1] - grid[1] + 1, count)
        cut = np.stack(
            [
                tokens[i, y : y + grid[0], x : x + grid[1]]
                for i, y, x in zip(chosen, rows, columns, strict=True)
            ]
        )
        # The caption tells of the whole picture: the less of it is left, the less it fits.
        kept = grid[0] * grid[1] / (full[0] * full[1]) * (1 - self.settings.caption_drop)
        words = [self.words[which][i] if rng.random() < kept else [] for i in chosen]
        return Batch(_tensor(cut), pad_words(words), _tensor(random_stages(grid, rng)))

    def _cut_size(self, full: Grid, rng: np.random.Generator) -> Grid:
        if rng.random() >= self.settings.crop_share:
            return full
        least = [min(self.settings.min_crop, side) for side in full]
        most = [max(low, side * 3 // 4) for low, side in zip(least, full, strict=True)]
        sides = [int(rng.integers(low, high + 1)) for low, high in zip(least, most, strict=True)]
        return sides[0], sides[1]


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


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
