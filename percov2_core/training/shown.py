"""Which part of a file a training step is shown, and what stands for the rest.

In place of a token that was not sent stands the code that the masked image model expects there (the
mean of the codebook by its probabilities), whose length tells how sure it is. B batch, h x w token
grid, hp x wp grid of the coarser level, D code width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from percov2_core.config import PARENT_RATIO
from percov2_core.entropy.masked_config import word_ids
from percov2_core.entropy.masked_model import MaskedImageModel, pad_words
from percov2_core.entropy.schedule import Grid, order
from percov2_core.hyper.networks import Codes, VectorQuantizer

_LEAST, _MOST = 0.02, 0.8  # shares of a grid that a random prefix holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """How often which part of a file is shown: shares of the batches."""

    none: float = 0.25  # without any fine token
    some: float = 0.45  # with a part of the fine tokens; the others see all of them
    no_coarse: float = 0.5  # of these others: do not know the coarse level
    blind: float = 0.15  # nothing stands for a token that was not sent, as in the encoder's search

    def draw(self, grid: Grid, rng: np.random.Generator) -> tuple[NDArray[np.bool_], bool]:
        """(h, w) True where a fine token is not sent; whether the coarse level is."""
        kind = rng.random()
        if kind < self.none:
            return np.ones(grid, dtype=np.bool_), True
        if kind < self.none + self.some:
            return random_prefix(grid, rng), True
        return np.zeros(grid, dtype=np.bool_), bool(rng.random() >= self.no_coarse)


def random_prefix(grid: Grid, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(h, w) False where the token is known, True where all that is left is to be told at once.
    What is known is spread evenly, by chance, or in lumps, as an order by need would take it."""
    n, kind = grid[0] * grid[1], rng.random()
    need: NDArray[np.floating]
    count = int(n * np.exp(rng.uniform(np.log(_LEAST), np.log(_MOST))))
    if kind < 0.4:  # the low-discrepancy order, moved around the grid
        rank = np.empty(n, dtype=np.int64)
        rank[order("qlds", grid)] = np.arange(n)
        moves = [int(rng.integers(side)) for side in grid]
        need = -np.roll(rank.reshape(grid), moves, axis=(0, 1)).astype(np.float64)
    else:
        need = rng.standard_normal(grid)
        if kind < 0.8:
            lumps = rng.standard_normal([-(-side // PARENT_RATIO) for side in grid])
            spread = np.kron(lumps, np.ones((PARENT_RATIO, PARENT_RATIO)))
            need = 0.5 * need + spread[: grid[0], : grid[1]]
    last = np.partition(need.ravel(), n - 1 - count)[n - 1 - count]
    return np.asarray(need <= last)


def shown_codes(
    fine: Tensor, unknown: NDArray[np.bool_], coarse: Tensor, *, expected: Tensor | None
) -> Codes:
    """What a file says that lacks the `unknown` (h, w) ones of the `fine` (B, D, h, w) codes.
    `coarse` (B, D, hp, wp) is zero if that level is left out; `expected` (B, D, h, w) stands for
    what is unknown (None: nothing does)."""
    hidden = torch.from_numpy(unknown).to(fine.device)
    shown = torch.where(hidden, fine.new_zeros(()) if expected is None else expected, fine)
    sent = (~hidden)[None, None].expand(len(fine), 1, -1, -1).to(fine.dtype)
    return Codes(shown, sent, coarse)


@torch.no_grad()
def expected_codes(
    prior: MaskedImageModel,
    quantizer: VectorQuantizer,
    tokens: Tensor,
    parents: Tensor | None,
    unknown: NDArray[np.bool_],
    captions: list[str],
) -> tuple[Tensor, Tensor]:
    """(B, D, h, w) mean codes of the unknown ones of (B, h, w) tokens under (B, hp, wp) parents,
    and (B, h, w, K) bits that each code would take there."""
    words = pad_words([word_ids(text, prior.config) for text in captions]).to(tokens.device)
    stage = torch.from_numpy(unknown).to(tokens.device, torch.int64)
    log_p = prior(tokens, words, stage, parents).float().log_softmax(-1)
    expected: Tensor = log_p.exp() @ quantizer.codebook.float()  # (B, h, w, D)
    return expected.movedim(-1, 1), log_p / -math.log(2)
