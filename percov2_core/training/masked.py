"""Train the masked image model of a level on its token grids and their captions.

The averaged model that comes out is turned into its integer twin (`entropy.exporter`).
S grids in a file, h x w tokens in each, B grids in a batch, W words of a caption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from percov2_core.config import COARSE, FINE, LEVELS, PARENT_RATIO
from percov2_core.entropy import masked_config as mc
from percov2_core.entropy import masked_model as mm
from percov2_core.entropy.exact import ExactModel
from percov2_core.entropy.exporter import export, restore
from percov2_core.entropy.schedule import MAX_TILE, Grid, stages
from percov2_core.errors import ConfigError
from percov2_core.hyper.networks import HyperEncoder, VectorQuantizer
from percov2_core.training.cache import Cache
from percov2_core.training.checkpoint import fill, load_average
from percov2_core.training.loop import LoopConfig, StepLoss, processes, run
from percov2_core.training.model import open_vae, over_base
from percov2_core.training.samples import EncodedPhotos, GridPlan
from percov2_core.training.shown import random_prefix
from percov2_core.weights.files import ENTROPY_FILE, read_about, write_about
from percov2_core.weights.networks import load_part

if TYPE_CHECKING:
    from percov2_core.training.recipes import RunOptions

_WIDTHS = {"width": 160, "heads": 5, "query_layers": 3}
_SIZES: dict[str, dict[str, Any]] = {
    FINE.name: {**_WIDTHS, "content_layers": 1, "hidden": 320, "ratio": PARENT_RATIO},
    COARSE.name: {**_WIDTHS, "content_layers": 2, "dropout": 0.1},
}
_SIDES, _COUNTS = (384, 512), {FINE.name: (5000, 1500), COARSE.name: (1500, 2500)}  # of the crops
WORDS_FILE = "words.txt"
_CROP_SHARE = 0.7  # of the batches: cut from the grids at a random place and size
_CAPTION_DROP = 0.1  # of the grids are shown without a caption
_PARENTS_DROP = 0.3  # of the batches are shown without the coarser level
_WORD_DROP = 0.03  # of the words of captions are made unknown
_AT_ONCE = 8  # held-out grids
_LEAST_GRIDS = 4  # in a file
_MOST_WORDS = 2000  # in a vocabulary
_PACE = {"lr": 2e-3, "floor": 0.01, "warmup_steps": 60, "weight_decay": 0.05, "ema": 0.995}
_tensor = partial(torch.tensor, dtype=torch.int64)
_STAGE_NAMES = ("qlds", "quincunx", "var", "checkerboard", "chance", "prefix")
_STAGE_SHARES = (0.42, 0.08, 0.08, 0.04, 0.1, 0.28)


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
    parents: NDArray[np.uint8] | None  # (S, hp, wp), the tokens of the coarser level


class GridBatch(NamedTuple):
    tokens: Tensor  # (B, h, w) int64
    words: Tensor  # (B, W) int64
    stage_map: Tensor  # (h, w) int64
    parents: Tensor | None  # (B, hp, wp) int64

    def split(self, count: int) -> Iterator[GridBatch]:
        """At most `count` grids at a time."""
        for start in range(0, len(self.tokens), count):
            some = slice(start, start + count)
            parents = None if self.parents is None else self.parents[some]
            yield GridBatch(self.tokens[some], self.words[some], self.stage_map, parents)


def train_masked(options: RunOptions, name: str) -> None:
    """The entropy model of one level, on the tokens that the hyper-encoders give.
    ConfigError if there are several processes (the model is too small for more than one), nothing
    to resume from, or other sizes than those of `--init`."""
    state = processes(options.device)
    if state.num_processes > 1:
        raise ConfigError(f"stage masked-{name} runs in 1 process, got {state.num_processes}")
    source: Cache | EncodedPhotos
    if options.model:
        folder, source = over_base(options)
        target, minutes = folder / name, 60.0
    else:
        folder, target, minutes = options.needs("parts"), options.out, 12.0
        plan = options.settings(GridPlan, "plan", sides=_SIDES, counts=_COUNTS[name])
        vae = open_vae(options.needs("vae")).to(state.device)
        source = EncodedPhotos(options.photos(), plan, vae)
    levels = {
        level: Tokenizer(
            load_part(HyperEncoder, folder / level / "hyper_encoder", state.device),
            load_part(VectorQuantizer, folder / level / "quantizer", state.device),
        )
        for level in ((COARSE.name,) if name == COARSE.name else LEVELS)
    }
    trained = fit(
        token_sets(source, options.out / "tokens", levels=levels),
        options.out,
        config=options.settings(mc.MaskedModelConfig, "model", **_SIZES[name]),
        tuning=options.settings(MaskedTuning, "tuning"),
        loop=options.loop(minutes=minutes, evaluate_every_s=120.0, **_PACE),
        init=options.init,
        resume=options.resume,
    )
    export(trained).save(target / ENTROPY_FILE)
    if options.model:
        write_about(read_about(folder), folder)


def fit(
    sets: Sequence[TokenSet],
    out: Path,
    *,
    config: mc.MaskedModelConfig,
    tuning: MaskedTuning,
    loop: LoopConfig,
    init: Path | None = None,
    resume: bool = False,
) -> mm.MaskedImageModel:
    """Train on these grids; return the averaged model, on the CPU.
    `out` receives what `loop.run` writes, and the words that the model knows. An empty vocabulary
    of `config` is filled from `init`, or else from the captions. `init` is the folder of an earlier
    run to start from, of the same sizes, or of a rate's parts."""
    twin = ExactModel.load(init / ENTROPY_FILE) if init and (init / ENTROPY_FILE).exists() else None
    if not config.vocabulary:
        captions = [caption for s in sets for caption in s.captions]
        known = twin.config.vocabulary if twin else collect_vocabulary(captions)
        if init and not twin:
            known = tuple((init / WORDS_FILE).read_text().split())
        config = replace(config, vocabulary=known)
    torch.manual_seed(loop.seed)
    system = MaskedSystem(restore(twin, config) if twin else mm.MaskedImageModel(config))
    if init and not twin and not resume:
        fill(system, load_average(init))
    out.mkdir(parents=True, exist_ok=True)
    (out / WORDS_FILE).write_text("\n".join(config.vocabulary))
    batches = BatchMaker(sets, config, tuning, seed=loop.seed)
    matrices = [p for p in system.parameters() if p.ndim > 1]
    others = [p for p in system.parameters() if p.ndim <= 1]  # biases, gains and the like
    run(
        system,
        batches.draw,
        out,
        config=loop,
        resume=resume,
        evaluate=lambda module, step: held_out_bits(system.model, batches.held_out),
        groups=[{"params": matrices}, {"params": others, "weight_decay": 0.0}],
    )
    return system.model.cpu().eval().requires_grad_(False)


class MaskedSystem(nn.Module):
    """The model and its loss: mean bits per token."""

    def __init__(self, model: mm.MaskedImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: GridBatch, progress: float) -> StepLoss:
        device = self.model.codes.weight.device
        return StepLoss(self.model.bits(*send_to_device(batch, device)).mean(), {})


def held_out_bits(model: mm.MaskedImageModel, held_out: Sequence[GridBatch]) -> dict[str, float]:
    """Mean bits per token on the grids held out of each file, in the order `qlds`."""
    device = model.codes.weight.device
    found = {}
    # Precisely, as the integer twin will compute.
    with torch.autocast(device.type, enabled=False):
        for i, batch in enumerate(held_out):
            kinds = {"": batch}
            if batch.parents is not None:
                kinds["_alone"] = batch._replace(parents=None)
            for kind, seen in kinds.items():
                parts = (send_to_device(part, device) for part in seen.split(_AT_ONCE))
                bits = torch.cat([model.bits(*part).flatten() for part in parts])
                found[f"held_out_{i}{kind}"] = round(float(bits.mean()), 4)
    return found


class Tokenizer(NamedTuple):
    """What makes the tokens of a level."""

    encoder: HyperEncoder
    quantizer: VectorQuantizer


@torch.inference_mode()
def token_sets(
    source: Cache | EncodedPhotos, folder: Path, *, levels: Mapping[str, Tokenizer]
) -> list[TokenSet]:
    """The grids of the finest of these levels, those of a coarser one as their parents.
    Kept in `folder` as one .npz per side of the crops for the next time. Grids that are larger than
    the entropy model's tile are cut as the codec cuts them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for side in source.sides:
        path = folder / f"tokens-{side}.npz"
        if not path.exists():
            grids: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in levels}
            captions: list[str] = []
            for samples in tqdm(source.every(side), desc=path.stem, disable=None):
                assert samples.latent is not None
                for name, (encoder, quantizer) in levels.items():
                    latent = samples.latent.to(quantizer.codebook.device)
                    tokens = quantizer.tokens(encoder(latent)).to(torch.uint8).cpu().numpy()
                    tile = MAX_TILE * FINE.token_stride // LEVELS[name].token_stride
                    tile = MAX_TILE if len(levels) == 1 else tile
                    grids[name].append(_tiles(tokens, tile))
                count = len(grids[name][-1]) // len(samples)
                captions += [caption for caption in samples.captions for _ in range(count)]
            # The finest level comes last.
            stacked = map(np.concatenate, reversed(grids.values()))
            arrays = dict(zip(("tokens", "parents"), stacked, strict=False))
            np.savez_compressed(path, captions=np.array(captions), **arrays)  # type: ignore[arg-type]
        with np.load(path) as arrays:
            parents = arrays.get("parents")
            found.append(TokenSet(arrays["tokens"], arrays["captions"].tolist(), parents))
    return found


def _tiles(grids: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """(B, H, W) -> (B * n, h, w): equal parts, at most `most` a side; the rest is left out."""
    h, w = (min(most, side) for side in grids.shape[1:])
    rows, columns = grids.shape[1] // h, grids.shape[2] // w
    parts = grids[:, : rows * h, : columns * w].reshape(-1, rows, h, columns, w)
    return parts.swapaxes(2, 3).reshape(-1, h, w)


def collect_vocabulary(captions: Sequence[str], *, least: int = 3) -> tuple[str, ...]:
    """The commonest words that occur at least `least` times, most frequent first."""
    words = sorted(word for caption in captions for word in mc.split_words(caption))
    ranked = Counter(words).most_common(_MOST_WORDS)
    return tuple(word for word, count in ranked if count >= least)


def random_stages(grid: Grid, rng: np.random.Generator) -> NDArray[np.int64]:
    """A stage map for one training batch: mostly `qlds`, else another schedule or chance."""
    name = str(rng.choice(_STAGE_NAMES, p=_STAGE_SHARES))
    if name == "prefix":
        return random_prefix(grid, rng).astype(np.int64)
    if name != "chance":
        return stages(name, grid)
    n, count = grid[0] * grid[1], int(rng.integers(2, 17))
    ends = np.ceil(n * (np.arange(1, count + 1) / count) ** rng.uniform(1.0, 3.0))
    found: NDArray[np.int64] = np.searchsorted(ends, rng.permutation(n), side="right")
    return found.reshape(grid)


class BatchMaker:
    """Draws batches; step i of a seed is the same in every sitting."""

    def __init__(
        self,
        sets: Sequence[TokenSet],
        config: mc.MaskedModelConfig,
        tuning: MaskedTuning,
        *,
        seed: int = 0,
    ) -> None:
        self.tuning, self.seed, self.ratio = tuning, seed, max(1, config.ratio)
        if (least := min(len(s.tokens) for s in sets)) < _LEAST_GRIDS:
            raise ConfigError(f"tokens: a file needs at least {_LEAST_GRIDS} grids, got {least}")
        self.sets, self.held_out = list[TokenSet](), list[GridBatch]()
        self.words = [[mc.word_ids(caption, config) for caption in s.captions] for s in sets]
        for (tokens, captions, parents), words in zip(sets, self.words, strict=True):
            # As many are held out as asked for, but never more than a quarter.
            end = len(tokens) - max(1, min(tuning.held_out, len(tokens) // _LEAST_GRIDS))
            self.sets.append(TokenSet(tokens[:end], captions, parents))
            last, told = _tensor(tokens[end:]), mm.pad_words(words[end:])
            stage_map = _tensor(stages("qlds", (tokens.shape[1], tokens.shape[2])))
            above = None if parents is None else _tensor(parents[end:])
            self.held_out.append(GridBatch(last, told, stage_map, above))
        sizes = np.array([s.tokens.size for s in self.sets], dtype=np.float64)
        self.shares = sizes / sizes.sum()

    def draw(self, step: int) -> GridBatch:
        """The batch of a step."""
        rng, ratio = np.random.default_rng([self.seed, step]), self.ratio
        which = int(rng.choice(len(self.sets), p=self.shares))
        (tokens, _, parents), known = self.sets[which], self.words[which]
        grid = full = (tokens.shape[1], tokens.shape[2])
        if rng.random() < _CROP_SHARE:
            ranges = [(min(self.tuning.min_crop, side), side * 3 // 4) for side in full]
            h, w = (int(rng.integers(low, max(low, high) + 1)) for low, high in ranges)
            grid = (h, w)
        count = max(1, self.tuning.batch_tokens // (grid[0] * grid[1]))
        chosen = rng.integers(0, len(tokens), count)
        moves = [(side - part) // ratio + 1 for side, part in zip(full, grid, strict=True)]
        rows, columns = (ratio * rng.integers(0, most, count) for most in moves)
        places = list(zip(chosen, rows, columns, strict=True))
        cut = np.stack([tokens[i, y : y + grid[0], x : x + grid[1]] for i, y, x in places])
        above = None
        if parents is not None and rng.random() >= _PARENTS_DROP:
            h, w = (-(-side // ratio) for side in grid)
            corners = [(i, y // ratio, x // ratio) for i, y, x in places]
            above = _tensor(np.stack([parents[i, y : y + h, x : x + w] for i, y, x in corners]))
        # The caption tells of the whole picture: the less of it is left, the less it fits.
        kept = grid[0] * grid[1] / (full[0] * full[1]) * (1 - _CAPTION_DROP)
        words = [self._blur(known[i], rng) if rng.random() < kept else [] for i in chosen]
        stage_map = _tensor(random_stages(grid, rng))
        return GridBatch(_tensor(cut), mm.pad_words(words), stage_map, above)

    def _blur(self, words: list[int], rng: np.random.Generator) -> list[int]:
        """Replace some words by the unknown word, which captions of training hardly hold."""
        return [mc.UNKNOWN_WORD if rng.random() < _WORD_DROP else word for word in words]
