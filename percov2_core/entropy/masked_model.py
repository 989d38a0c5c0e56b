"""The masked image model in floating point: trained here, run as its integer twin (`exact`).

Letters: B batch, h x w token grid, N = h * w tokens, W words of the caption, K codebook size,
D width, A attention heads, R = 25 tokens in a 5 x 5 neighbourhood. Parents are the tokens of the
coarser level, a hp x wp grid: each stands above `ratio` x `ratio` tokens.

    tokens known --> content tower: sees words and the stages up to its own
                          |  keys and values
    token wanted --> query tower: sees words and the stages before its own --> logits

Both towers start from the 5 x 5 neighbourhood of the position, in which what is not known yet
is replaced by a mask entry, and from that of its parent. One pass gives the logits of all stages
at once (M2T, Mentzer et al. 2023), and with kept keys and values a decoder computes each position
once.

Only operations that the twin can repeat in integers are used: ReLU attention divided by its sum
instead of softmax, RMS norm, ReLU, and activations clipped to known ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import log

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from percov2_core.entropy import masked_config as mc
from percov2_core.entropy.schedule import MAX_TILE, Grid

HIDDEN_SCORE = -1e4


def pad_words(rows: Sequence[Sequence[int]]) -> Tensor:
    """Lists of word ids -> (B, W) int64, filled up with `PAD_WORD`."""
    made = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(made, batch_first=True, padding_value=mc.PAD_WORD)


@lru_cache(maxsize=4)  # 4 MB each
def relative_indices(grid: Grid) -> NDArray[np.int32]:
    """(N, N) row of the bias table for a looking position and a looked-at position."""
    y, x = (axis.ravel() for axis in np.indices(grid))
    side = 2 * MAX_TILE - 1
    dy, dx = (axis[:, None] - axis[None, :] + MAX_TILE - 1 for axis in (y, x))
    return np.asarray(dy * side + dx, dtype=np.int32)


class RMSNorm(nn.Module):
    """Divide by the root mean square over the channels, then scale each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return F.rms_norm(x.float(), self.gain.shape, self.gain, mc.NORM_FLOOR**2)


# Added to attention scores; very negative where nothing may be seen.
Biases = tuple[Tensor, Tensor]  # (B, A, 1, W) of words, (1, A, N, N) of tokens


class Layer(nn.Module):
    """Attention from positions to a memory, then a feed-forward part."""

    def __init__(self, config: mc.MaskedModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.scale = (width // config.heads) ** -0.5
        self.norm = RMSNorm(width)
        self.memory_norm = RMSNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.hidden_norm = RMSNorm(width)
        self.up = nn.Linear(width, config.hidden)
        self.down = nn.Linear(config.hidden, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, phrase: Tensor, memory: Tensor, bias: Biases) -> Tensor:
        """(B, N, D) positions look at (B, W, D) words and (B, N, D) positions -> (B, N, D)."""
        q = self._heads(self.query(self.norm(x)) * self.scale, clip=mc.QUERY_CLIP)
        mixed, total = torch.zeros_like(q), torch.full_like(q[..., :1], mc.SUM_OFFSET).float()
        for seen, offset in zip((phrase, memory), bias, strict=True):
            normed = self.memory_norm(seen)
            k = self._heads(self.key(normed), mc.KEY_CLIP)
            v = self._heads(self.value(normed), mc.VALUE_CLIP)
            score = (q @ k.transpose(-1, -2)).add_(offset.to(q.dtype)).relu_()  # (B, A, N, W or N)
            mixed, total = mixed + score @ v, total + score.sum(-1, keepdim=True).float()
        x = x + self.drop(self.out((mixed / total).transpose(1, 2).flatten(2)))
        hidden = torch.relu(self.up(self.hidden_norm(x))).clamp(max=mc.HIDDEN_CLIP)
        updated: Tensor = x + self.drop(self.down(hidden))
        return updated

    def _heads(self, x: Tensor, clip: float) -> Tensor:
        """(B, N, D) -> (B, A, N, D / A), clipped."""
        split = x.reshape(*x.shape[:2], self.heads, x.shape[2] // self.heads)
        return split.transpose(1, 2).clamp(-clip, clip)


class Tower(nn.Module):
    """Layers that share one table of relative position biases."""

    def __init__(self, config: mc.MaskedModelConfig, *, layers: int) -> None:
        super().__init__()
        # (A, 63 * 63): at first heads differ in how fast they fade with distance.
        axis = torch.arange(2 * MAX_TILE - 1) - (MAX_TILE - 1)
        distance = torch.sqrt((axis[:, None] ** 2 + axis[None, :] ** 2).float()).flatten()
        reach = 2.0 ** torch.linspace(1, 5, config.heads)
        self.bias = nn.Parameter(1.0 - distance[None, :] / reach[:, None])
        self.word_bias = nn.Parameter(torch.zeros(config.heads))
        self.layers = nn.ModuleList(Layer(config) for _ in range(layers))

    def biases(self, words: Tensor, grid: Grid, *, visible: Tensor) -> Biases:
        """(B, W) word ids and (N, N) bool visibility -> score biases."""
        index = torch.from_numpy(relative_indices(grid)).to(words.device, torch.int64)
        to_tokens = self.bias[:, index].masked_fill(~visible, HIDDEN_SCORE)
        to_words = self.word_bias[:, None].expand(len(words), -1, words.shape[1])
        to_words = to_words.masked_fill((words == mc.PAD_WORD)[:, None], HIDDEN_SCORE)
        return to_words[:, :, None], to_tokens[None]


class MaskedImageModel(nn.Module):
    """Predict the tokens of each stage from the stages before it and from the caption."""

    def __init__(self, config: mc.MaskedModelConfig) -> None:
        super().__init__()
        self.config = config
        width, code = config.width, config.code_width
        self.codes = nn.Embedding(config.codebook_size + 2, code)
        self.mix_codes = nn.Linear(mc.NEIGHBOURS * code, width)
        self.rows = nn.Embedding(MAX_TILE, width)
        self.columns = nn.Embedding(MAX_TILE, width)
        if config.ratio:
            self.parents = nn.Embedding(config.codebook_size + 2, code)
            self.mix_parents = nn.Linear(mc.NEIGHBOURS * code, width)
            self.below = nn.Embedding(config.ratio**2, width)
            nn.init.normal_(self.below.weight, std=0.3)
        self.words = nn.Embedding(mc.FIRST_WORD + len(config.vocabulary), code)
        self.mix_words = nn.Linear((2 * mc.WORD_REACH + 1) * code, width)
        self.word_places = nn.Embedding(config.max_words, width)
        self.content = Tower(config, layers=config.content_layers)
        self.queries = Tower(config, layers=config.query_layers)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(width, config.codebook_size)
        for table in (self.rows, self.columns, self.word_places):
            nn.init.normal_(table.weight, std=0.3)

    def forward(
        self, tokens: Tensor, words: Tensor, stage_map: Tensor, parents: Tensor | None = None
    ) -> Tensor:
        """(B, h, w, K) float logits of all tokens, each from the stages before its own.
        All int64: `tokens` (B, h, w) in [0, K); `words` (B, W) ids, filled up with `PAD_WORD`;
        `stage_map` (h, w), the stage of every token; `parents` (B, hp, wp) in [0, K], K where it is
        not known, None if none is."""
        grid = (tokens.shape[1], tokens.shape[2])
        stage, flat = stage_map.flatten(), tokens.flatten(1)
        phrase = self.read_words(words)  # (B, W, D)
        above = self.read_parents(parents, grid)  # (B or 1, N, D)
        seen = stage[None, :] <= stage[:, None]  # (N, N), looking position first
        x = self._start(flat, stage, grid, upto_own=True) + above
        bias = self.content.biases(words, grid, visible=seen)
        for layer in self.content.layers:
            x = layer(x, phrase, x, bias)
        y = self._start(flat, stage, grid, upto_own=False) + above
        bias = self.queries.biases(words, grid, visible=stage[None, :] < stage[:, None])
        for layer in self.queries.layers:
            y = layer(y, phrase, x, bias)
        logits: Tensor = self.out(self.norm(y))
        return logits.reshape(*tokens.shape, self.config.codebook_size)

    def bits(
        self, tokens: Tensor, words: Tensor, stage_map: Tensor, parents: Tensor | None = None
    ) -> Tensor:
        """(B, h, w) bits that each token would take; arguments as in `forward`."""
        logits = self(tokens, words, stage_map, parents).float()
        return F.cross_entropy(logits.movedim(-1, 1), tokens, reduction="none") / log(2)

    def read_words(self, words: Tensor) -> Tensor:
        """(B, W) word ids -> (B, W, D), each word together with its neighbours."""
        # One more at the end, so that captions without any word have a window to cut off.
        padded = F.pad(words, (mc.WORD_REACH, mc.WORD_REACH + 1), value=mc.PAD_WORD)
        windows = padded.unfold(1, 2 * mc.WORD_REACH + 1, 1)[:, : words.shape[1]]
        place = self.word_places.weight[: words.shape[1]]
        phrase: Tensor = self.mix_words(self.words(windows).flatten(2)) + place
        return phrase

    def read_parents(self, parents: Tensor | None, grid: Grid) -> Tensor | float:
        """(B, hp, wp) parents of the tokens of a grid -> (B, N, D), each with its neighbours."""
        if not self.config.ratio:
            return 0.0
        device, ratio = self.below.weight.device, self.config.ratio
        above, place = (torch.from_numpy(i).to(device) for i in mc.parent_indices(grid, ratio))
        shape = tuple(-(-side // ratio) for side in grid)
        if parents is None:
            parents = torch.full((1, *shape), self.config.mask_id, device=device)
        index = torch.from_numpy(mc.neighbour_indices(shape)).to(device)
        ids = F.pad(parents.flatten(1), (0, 1), value=self.config.outside_id)[:, index]
        mixed: Tensor = self.mix_parents(self.parents(ids).flatten(2))  # (B, hp wp, D)
        placed: Tensor = mixed[:, above] + self.below(place)
        return placed

    def _start(self, flat: Tensor, stage: Tensor, grid: Grid, *, upto_own: bool) -> Tensor:
        """(B, N) tokens -> (B, N, D) from the known part of each neighbourhood."""
        index = torch.from_numpy(mc.neighbour_indices(grid)).to(flat.device)
        inside, index = index < len(stage), index.clamp(max=len(stage) - 1)
        own = stage[:, None] + int(upto_own)
        ids = flat[:, index].masked_fill(stage[index] >= own, self.config.mask_id)
        ids = ids.masked_fill(~inside, self.config.outside_id)  # (B, N, R)
        rows, columns = (torch.from_numpy(i).to(flat.device) for i in mc.place_indices(grid))
        mixed: Tensor = self.mix_codes(self.codes(ids).flatten(2))
        placed: Tensor = mixed + self.rows(rows) + self.columns(columns)
        return placed
