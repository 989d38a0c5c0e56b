"""Train the masked image model of a rate on its token grids and their captions.

The averaged model that comes out is turned into its integer twin (`entropy.exporter`).
S grids in a file, h x w tokens in each, B grids in a batch, W words of a caption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from percov2_core.entropy.exporter import export
from percov2_core.entropy.masked_model import (
    UNKNOWN_WORD,
    MaskedImageModel,
    MaskedModelConfig,
    pad_words,
    split_words,
    word_ids,
)
from percov2_core.entropy.schedule import MAX_TILE, Grid, stages
from percov2_core.errors import ConfigError
from percov2_core.hyper.networks import HyperEncoder, VectorQuantizer
from percov2_core.training.cache import Cache
from percov2_core.training.checkpoint import fill, load_average
from percov2_core.training.loop import LoopConfig, StepLoss, processes, run
from percov2_core.training.rate import check_pair, model_over_base, open_vae
from percov2_core.training.samples import EncodedPhotos, GridPlan
from percov2_core.weights.files import ENTROPY_FILE, load_part, read_about, write_about

if TYPE_CHECKING:
    from percov2_core.training.recipes import RunOptions

_WIDTHS = {"width": 160, "heads": 5, "query_layers": 3}
SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "extreme": {**_WIDTHS, "content_layers": 1, "hidden": 320},
        "ultra-low": {**_WIDTHS, "content_layers": 2, "dropout": 0.1},
    }
)
_GRIDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "extreme": {"sides": (384, 512), "counts": (3000, 1000)},
        "ultra-low": {"sides": (384, 512), "counts": (1500, 2500)},
    }
)
WORDS_FILE = "words.txt"
_CROP_SHARE = 0.7  # of the batches: cut from the grids at a random place and size
_CAPTION_DROP = 0.1  # of the grids are shown without a caption
_WORD_DROP = 0.03  # of the words of captions are made unknown
_AT_ONCE = 8  # held-out grids
LEAST_GRIDS = 4
_STAGE_NAMES = ("qlds", "quincunx", "var", "checkerboard", "chance")
_STAGE_SHARES = (0.5, 0.12, 0.12, 0.06, 0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedTuning:
    """What the steps see of the grids."""

    batch_tokens: int = 6144  # in one step; grids per batch follow from their size
    min_crop: int = 8  # shortest side of a cut, in tokens
    held_out: int = 32  # last grids of each file, validated on only; at most a quarter of them


class TokenSet(NamedTuple):
    """The grids of one file."""

    tokens: NDArray[np.uint8]  # (S, h, w)
    captions: list[str]  # S of them


class GridBatch(NamedTuple):
    tokens: Tensor  # (B, h, w) int64
    words: Tensor  # (B, W) int64
    stage_map: Tensor  # (h, w) int64


def train_masked(options: RunOptions, name: str) -> None:
    """The entropy model of one rate, on the tokens that its hyper-encoder gives.

    Raises:
        ConfigError: if there are several processes: the model is too small for more than one; if
            there is nothing to resume from, or the sizes differ from those of `--init`.
    """
    state = processes(options.device)
    if state.num_processes > 1:
        raise ConfigError(f"stage masked-{name} runs in 1 process, got {state.num_processes}")
    source: Cache | EncodedPhotos
    if options.model:
        model, source = model_over_base(options), Cache(options.needs("cache"))
        check_pair(model, source)
        modules, target, minutes = model / name, model / name, 60.0
    else:
        modules, target, minutes = options.needs("parts"), options.out, 12.0
        plan = options.settings(GridPlan, "plan", **_GRIDS[name])
        vae = open_vae(options.needs("vae")).to(state.device)
        source = EncodedPhotos(options.photos(), plan, vae)
    sets = token_sets(
        source,
        options.out / "tokens",
        encoder=load_part(HyperEncoder, modules / "hyper_encoder", state.device),
        quantizer=load_part(VectorQuantizer, modules / "quantizer", state.device),
    )
    loop = options.loop(
        minutes=minutes,
        lr=2e-3,
        floor=0.01,
        warmup_steps=60,
        weight_decay=0.05,
        ema=0.995,
        evaluate_every_s=120.0,
    )
    trained = fit(
        sets,
        options.out,
        config=options.settings(MaskedModelConfig, "model", **SIZES[name]),
        tuning=options.settings(MaskedTuning, "tuning"),
        loop=loop,
        init=options.init,
        resume=options.resume,
    )
    export(trained).save(target / ENTROPY_FILE)
    if options.model:
        write_about(read_about(model), model)


def fit(
    sets: Sequence[TokenSet],
    out: Path,
    *,
    config: MaskedModelConfig,
    tuning: MaskedTuning,
    loop: LoopConfig,
    init: Path | None = None,
    resume: bool = False,
) -> MaskedImageModel:
    """Train on these grids; return the averaged model, on the CPU.

    Args:
        out: Receives what `loop.run` writes, and the words that the model knows.
        config: An empty vocabulary is filled from `init`, or else from the captions.
        init: Folder of an earlier run to start from, of the same sizes.
        resume: Go on from the checkpoint in `out`.
    """
    if not config.vocabulary:
        captions = [caption for s in sets for caption in s.captions]
        known = (init / WORDS_FILE).read_text().split() if init else collect_vocabulary(captions)
        config = replace(config, vocabulary=tuple(known))
    torch.manual_seed(loop.seed)
    system = MaskedSystem(MaskedImageModel(config))
    if init and not resume:
        fill(system, load_average(init))
    out.mkdir(parents=True, exist_ok=True)
    (out / WORDS_FILE).write_text("\n".join(config.vocabulary))
    batches = BatchMaker(sets, config, tuning, seed=loop.seed)
    run(
        system,
        batches.draw,
        out,
        config=loop,
        resume=resume,
        evaluate=lambda module, step: held_out_bits(system.model, batches.held_out),
        groups=_groups(system, loop.weight_decay),
    )
    return system.model.cpu().eval().requires_grad_(False)


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
            parts = [
                model.bits(*(t.to(device) for t in (*chunk, stage_map))).flatten()
                for chunk in zip(*(torch.split(t, _AT_ONCE) for t in (tokens, words)), strict=True)
            ]
            found[f"held_out_{i}"] = round(float(torch.cat(parts).mean()), 4)
    return found


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, gains and the like do not."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.inference_mode()
def token_sets(
    source: Cache | EncodedPhotos, folder: Path, *, encoder: nn.Module, quantizer: VectorQuantizer
) -> list[TokenSet]:
    """The grids of each side, kept in `folder` as one .npz per side for the next time.

    Grids that are larger than the entropy model's tile are cut as the codec cuts them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(encoder.parameters()).device
    found = []
    for side in source.sides:
        path = folder / f"tokens-{side}.npz"
        if not path.exists():
            grids: list[NDArray[np.uint8]] = []
            captions: list[str] = []
            for samples in tqdm(source.every(side), desc=path.stem, disable=None):
                assert samples.latent is not None
                tokens = quantizer.tokens(encoder(samples.latent.to(device))).to(torch.uint8).cpu()
                for grid, caption in zip(tokens, samples.captions, strict=True):
                    cut = list(_tiles(grid.numpy()))
                    grids += cut
                    captions += [caption] * len(cut)
            np.savez_compressed(path, tokens=np.stack(grids), captions=np.array(captions))
        with np.load(path) as arrays:
            found.append(TokenSet(arrays["tokens"], arrays["captions"].tolist()))
    return found


def _tiles(grid: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Equal parts of at most `MAX_TILE` a side; what does not fill one is left out."""
    h, w = (min(MAX_TILE, n) for n in grid.shape)
    for y in range(0, grid.shape[0] - h + 1, h):
        for x in range(0, grid.shape[1] - w + 1, w):
            yield grid[y : y + h, x : x + w]


def collect_vocabulary(
    captions: Sequence[str], *, least: int = 3, most: int = 2000
) -> tuple[str, ...]:
    """The commonest words that occur at least `least` times, most frequent first."""
    counts = Counter(word for caption in captions for word in split_words(caption))
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
        self,
        sets: Sequence[TokenSet],
        config: MaskedModelConfig,
        tuning: MaskedTuning,
        *,
        seed: int = 0,
    ) -> None:
        self.tuning, self.seed = tuning, seed
        ends = [_end_of_training(s, tuning.held_out) for s in sets]
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
        rng = np.random.default_rng([self.seed, step])
        which = int(rng.choice(len(self.sets), p=self.shares))
        tokens = self.sets[which].tokens
        full = (tokens.shape[1], tokens.shape[2])
        grid = self._cut_size(full, rng)
        count = max(1, self.tuning.batch_tokens // (grid[0] * grid[1]))
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
        kept = grid[0] * grid[1] / (full[0] * full[1]) * (1 - _CAPTION_DROP)
        words = [
            self._blur(self.words[which][i], rng) if rng.random() < kept else [] for i in chosen
        ]
        return GridBatch(_tensor(cut), pad_words(words), _tensor(random_stages(grid, rng)))

    def _blur(self, words: list[int], rng: np.random.Generator) -> list[int]:
        """Replace some words by the unknown word, which captions of training hardly hold."""
        hidden = rng.random(len(words)) < _WORD_DROP
        return [UNKNOWN_WORD if drop else word for word, drop in zip(words, hidden, strict=True)]

    def _cut_size(self, full: Grid, rng: np.random.Generator) -> Grid:
        if rng.random() >= _CROP_SHARE:
            return full
        least = [min(self.tuning.min_crop, side) for side in full]
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
