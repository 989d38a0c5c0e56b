"""Train the masked image model on token grids and their captions.

The averaged model that comes out is what `entropy.exporter` turns into the integer twin.
S grids in a file, h x w tokens in each, B grids in a batch, W words of a caption.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from percov2_core.entropy.masked_model import (
    UNKNOWN_WORD,
    MaskedImageModel,
    MaskedModelConfig,
    pad_words,
    split_words,
    word_ids,
)
from percov2_core.entropy.schedule import MAX_TILE, Grid, stages
from percov2_core.errors import ConfigError, WeightsError
from percov2_core.training.loop import LoopConfig, StepLoss, run

_WIDTHS = {"width": 160, "heads": 5, "query_layers": 3}
EMBEDDED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "extreme": {**_WIDTHS, "content_layers": 1, "hidden": 320},
        "ultra-low": {**_WIDTHS, "content_layers": 2, "dropout": 0.1},
    }
)
MODEL_NAME = "masked.safetensors"
_FLOOR = 0.01  # share of the learning rate that is left at the end
_HELD_OUT_AT_ONCE = 8  # grids
LEAST_GRIDS = 4
_STAGE_NAMES = ("qlds", "quincunx", "var", "checkerboard", "chance")
_STAGE_SHARES = (0.5, 0.12, 0.12, 0.06, 0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedTraining:
    """How long and how to train.

    Attributes:
        minutes: Wall-clock budget over all sittings; the learning rate falls with it.
        steps: Length in steps instead (repeatable runs), or None.
        batch_tokens: Tokens in one step; grids per batch follow from their size.
        learning_rate: Peak of AdamW.
        weight_decay: Of AdamW, on matrices only.
        warmup_steps: Steps until the peak.
        ema: Share of the old average kept in one step.
        crop_share: Share of batches cut from the grids at a random place and size.
        min_crop: Shortest side of a cut, in tokens.
        caption_drop: Share of grids shown without a caption.
        word_drop: Share of caption words made unknown.
        held_out: Last grids of each file, used for validation only; at most a quarter of them.
        validate_minutes: Time between validations and checkpoints.
        seed: Of the order of everything.
    """

    minutes: float
    steps: int | None = None
    batch_tokens: int = 6144
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 60
    ema: float = 0.995
    crop_share: float = 0.7
    min_crop: int = 8
    caption_drop: float = 0.1
    word_drop: float = 0.03
    held_out: int = 32
    validate_minutes: float = 2.0
    seed: int = 0


class TokenSet(NamedTuple):
    """The grids of one file."""

    tokens: NDArray[np.uint8]  # (S, h, w)
    captions: list[str]  # S of them


class GridBatch(NamedTuple):
    tokens: Tensor  # (B, h, w) int64
    words: Tensor  # (B, W) int64
    stage_map: Tensor  # (h, w) int64


def train_masked(
    files: Sequence[Path],
    out_dir: Path,
    *,
    config: MaskedModelConfig,
    settings: MaskedTraining,
    device: str = "cpu",
    init: Path | None = None,
    resume: bool = False,
) -> MaskedImageModel:
    """Train to the end of the budget; write and return the averaged model, on the CPU.

    Args:
        files: What `load_grids` reads. An empty vocabulary in `config` is filled from them.
        out_dir: Receives what `loop.run` writes and `masked.safetensors`.
        init: Folder of an earlier run to start from, of the same sizes; it gives the vocabulary.
        resume: Go on from the checkpoint in `out_dir`.

    Raises:
        ConfigError: if there is nothing to resume from, or the sizes differ from those of `init`.
        WeightsError: if `init` holds no model.
    """
    sets = [load_grids(path) for path in files]
    start = load_model(init / MODEL_NAME) if init else None
    if not config.vocabulary:
        words = [caption for s in sets for caption in s.captions]
        vocabulary = start.config.vocabulary if start else collect_vocabulary(words)
        config = replace(config, vocabulary=vocabulary)
    system = MaskedSystem(_fresh(config, settings.seed, start))
    batches = BatchMaker(sets, config, settings)
    run(
        system,
        batches.draw,
        out_dir,
        config=_loop_config(settings, device),
        resume=resume,
        evaluate=lambda module, step: held_out_bits(system.model, batches.held_out),
        groups=lambda module: _groups(module, settings.weight_decay),
    )
    model = system.model.cpu().eval().requires_grad_(False)
    save_model(model, out_dir / MODEL_NAME)
    return model


class MaskedSystem(nn.Module):
    """The model and its loss: mean bits per token."""

    def __init__(self, model: MaskedImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: GridBatch, progress: float) -> StepLoss:
        device = self.model.codes.weight.device
        bits = self.model.bits(*(t.to(device) for t in batch)).mean()
        return StepLoss(bits, {})


def held_out_bits(model: MaskedImageModel, held_out: Sequence[GridBatch]) -> dict[str, float]:
    """Mean bits per token on the grids held out of each file, in the order `qlds`."""
    device = model.codes.weight.device
    found = {}
    # Precisely, as the integer twin will compute.
    with torch.autocast(device.type, enabled=False):
        for i, (tokens, words, stage_map) in enumerate(held_out):
            chunks = zip(*(torch.split(t, _HELD_OUT_AT_ONCE) for t in (tokens, words)), strict=True)
            parts = [
                model.bits(t.to(device), w.to(device), stage_map.to(device)).flatten()
                for t, w in chunks
            ]
            found[f"held_out_{i}"] = round(float(torch.cat(parts).mean()), 4)
    return found


def _fresh(
    config: MaskedModelConfig, seed: int, start: MaskedImageModel | None
) -> MaskedImageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MaskedImageModel(config)
    if start is not None:
        if replace(start.config, dropout=config.dropout) != config:
            raise ConfigError(f"init: the earlier run has {start.config}, this one {config}")
        model.load_state_dict(start.state_dict(), strict=True)
    return model


def _loop_config(settings: MaskedTraining, device: str) -> LoopConfig:
    pause = 60 * settings.validate_minutes
    return LoopConfig(
        minutes=settings.minutes,
        steps=settings.steps,
        lr=settings.learning_rate,
        floor=_FLOOR,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        ema=settings.ema,
        seed=settings.seed,
        device=device,
        save_every_s=pause,
        evaluate_every_s=pause,
    )


def _groups(module: nn.Module, weight_decay: float) -> Iterable[dict[str, Any]]:
    """Matrices decay; biases, gains and the like do not."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


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
    name = str(rng.choice(_STAGE_NAMES, p=_STAGE_SHARES))
    if name != "chance":
        return stages(name, grid)
    n = grid[0] * grid[1]
    count = int(rng.integers(2, 17))
    ends = np.ceil(n * (np.arange(1, count + 1) / count) ** rng.uniform(1.0, 3.0))
    position = rng.permutation(n)
    found: NDArray[np.int64] = np.searchsorted(ends, position, side="right").reshape(grid)
    return found


class BatchMaker:
    """Draws batches; step i of a seed is the same in every sitting."""

    def __init__(
        self, sets: Sequence[TokenSet], config: MaskedModelConfig, settings: MaskedTraining
    ) -> None:
        self.settings = settings
        ends = [_end_of_training(s, settings.held_out) for s in sets]
        self.sets = [
            TokenSet(s.tokens[:end], s.captions) for s, end in zip(sets, ends, strict=True)
        ]
        self.words = [[word_ids(caption, config) for caption in s.captions] for s in sets]
        sizes = np.array([s.tokens.size for s in self.sets], dtype=np.float64)
        self.shares = sizes / sizes.sum()
        held = [(s.tokens[end:], w[end:]) for s, w, end in zip(sets, self.words, ends, strict=True)]
        self.held_out = [
            GridBatch(_tensor(t), pad_words(w), _tensor(stages("qlds", (t.shape[1], t.shape[2]))))
            for t, w in held
        ]

    def draw(self, step: int) -> GridBatch:
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
        words = [
            self._blur(self.words[which][i], rng) if rng.random() < kept else [] for i in chosen
        ]
        return GridBatch(_tensor(cut), pad_words(words), _tensor(random_stages(grid, rng)))

    def _blur(self, words: list[int], rng: np.random.Generator) -> list[int]:
        """Replace some words by the unknown word, which captions of training hardly hold."""
        hidden = rng.random(len(words)) < self.settings.word_drop
        return [UNKNOWN_WORD if drop else word for word, drop in zip(words, hidden, strict=True)]

    def _cut_size(self, full: Grid, rng: np.random.Generator) -> Grid:
        if rng.random() >= self.settings.crop_share:
            return full
        least = [min(self.settings.min_crop, side) for side in full]
        most = [max(low, side * 3 // 4) for low, side in zip(least, full, strict=True)]
        sides = [int(rng.integers(low, high + 1)) for low, high in zip(least, most, strict=True)]
        return sides[0], sides[1]


def _end_of_training(found: TokenSet, held_out: int) -> int:
    """The first grid of those held out: as many as asked for, but never more than a quarter."""
    count = len(found.tokens)
    if count < LEAST_GRIDS:
        raise ConfigError(f"tokens: a file needs at least {LEAST_GRIDS} grids, got {count}")
    return count - max(1, min(held_out, count // LEAST_GRIDS))


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
