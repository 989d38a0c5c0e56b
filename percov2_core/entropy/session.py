"""Run the integer twin over one tile, stage by stage, with kept keys and values.

Letters: N tokens, n of them in a stage, M entries of memory, W words, K codebook size, D width,
A heads. The rules of `exact` hold for every line here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from percov2_core.entropy import masked_model as mm
from percov2_core.entropy.exact import (
    KEY_LIMIT,
    LOGIT_LIMIT,
    NORM_BITS,
    QUERY_LIMIT,
    RESIDUAL_BITS,
    RESIDUAL_LIMIT,
    SCORE_BITS,
    VALUE_LIMIT,
    WEIGHT_TOTAL,
    ExactLayer,
    ExactModel,
)
from percov2_core.entropy.schedule import Grid

TOTAL = 1 << 16  # what the frequencies of one token add up to


class Session:
    """One tile while its stages become known. Each position is computed once.

    Use: `frequencies` of a stage, then `reveal` its tokens, then the next stage.
    """

    def __init__(self, model: ExactModel, grid: Grid, words: Sequence[int]) -> None:
        self.model, config = model, model.config
        n, device = grid[0] * grid[1], model.device
        self._carrier = torch.float32 if _float32_is_exact(device) else torch.float64
        self._known = torch.full((n + 1,), config.mask_id, device=device)
        self._known[n] = config.outside_id
        self._neighbours = torch.from_numpy(mm.neighbour_indices(grid)).to(device)
        self._relative = torch.from_numpy(mm.relative_indices(grid)).to(device)
        rows, columns = (torch.from_numpy(i).to(device) for i in mm.place_indices(grid))
        self._place = model.table("rows")[rows] + model.table("columns")[columns]  # (N, D)
        self._codes = model.table("codes")
        self._words = len(words)
        self._looked_at = torch.zeros(0, dtype=torch.int64, device=device)
        towers = {"content": model.content, "queries": model.queries}
        self._bias = {name: model.table(f"{name}.bias") for name in towers}
        self._word_bias = {name: model.table(f"{name}.word_bias") for name in towers}
        size = (config.heads, len(words) + n, config.width // config.heads)
        self._memory = {
            name: [
                (torch.zeros(size, device=device), torch.zeros(size, device=device)) for _ in layers
            ]
            for name, layers in towers.items()
        }
        with _plain(device):
            phrase = _normalise(self._read_words(words))
            for name, layers in towers.items():
                for layer, memory in zip(layers, self._memory[name], strict=True):
                    self._remember(layer, memory, phrase, at=0)

    def frequencies(self, positions: NDArray[np.int64]) -> NDArray[np.uint32]:
        """(n,) flat positions -> (n, K) frequencies >= 1, each row summing to 2**16."""
        at = self._index(positions)
        with _plain(self.model.device):
            y = self._start(at)
            bias = self._biases("queries", at)
            for layer, memory in zip(self.model.queries, self._memory["queries"], strict=True):
                y = self._update(layer, y, memory, bias)
            logits = self.model.out(_normalise(y), carrier=self._carrier)
            found = _to_frequencies(logits, self.model.table("exponential"))
        return found.cpu().numpy().astype(np.uint32)

    def reveal(self, positions: NDArray[np.int64], tokens: NDArray[np.integer]) -> None:
        """Make a whole stage known: (n,) flat positions and (n,) tokens in [0, K)."""
        device = self.model.device
        at = self._index(positions)
        self._known[at] = self._index(tokens)
        filled = self._words + len(self._looked_at)
        self._looked_at = torch.cat([self._looked_at, at])
        with _plain(device):
            x = self._start(at)
            bias = self._biases("content", at)
            for layer, memory in zip(self.model.content, self._memory["content"], strict=True):
                self._remember(layer, memory, _normalise(x), at=filled)
                x = self._update(layer, x, memory, bias)
            x = _normalise(x)
            for layer, memory in zip(self.model.queries, self._memory["queries"], strict=True):
                self._remember(layer, memory, x, at=filled)

    def _read_words(self, words: Sequence[int]) -> Tensor:
        """W word ids -> (W, D) residual integers."""
        ids = torch.tensor(list(words), dtype=torch.int64, device=self.model.device)
        if not len(ids):
            return torch.zeros(0, self.model.config.width, device=self.model.device)
        padded = torch.nn.functional.pad(ids, (mm.WORD_REACH, mm.WORD_REACH), value=mm.PAD_WORD)
        codes = self.model.table("words")[padded.unfold(0, 2 * mm.WORD_REACH + 1, 1)].flatten(1)
        place = self.model.table("word_places")[: len(ids)]
        return _residual(self.model.mix_words(codes, carrier=self._carrier) + place)

    def _start(self, at: Tensor) -> Tensor:
        """(n,) positions -> (n, D) residual integers from what is known around them."""
        codes = self._codes[self._known[self._neighbours[at]]].flatten(1)
        return _residual(self.model.mix_codes(codes, carrier=self._carrier) + self._place[at])

    def _biases(self, tower: str, at: Tensor) -> Tensor:
        """(A, n, M) score biases towards the words and all positions known so far."""
        index = self._relative.index_select(0, at).index_select(1, self._looked_at)
        table = self._bias[tower]
        to_tokens = table.index_select(1, index.flatten()).reshape(len(table), *index.shape)
        to_words = self._word_bias[tower][:, None, None].expand(-1, len(at), self._words)
        return torch.cat([to_words, to_tokens], dim=-1)

    def _remember(
        self, layer: ExactLayer, memory: tuple[Tensor, Tensor], x: Tensor, *, at: int
    ) -> None:
        """Append keys and values of (m, D) normed integers."""
        pairs = ((layer.key, KEY_LIMIT), (layer.value, VALUE_LIMIT))
        for store, (product, limit) in zip(memory, pairs, strict=True):
            made = product(x, carrier=self._carrier).clamp(-limit, limit)
            store[:, at : at + len(x)] = self._heads(made)

    def _update(
        self, layer: ExactLayer, x: Tensor, memory: tuple[Tensor, Tensor], bias: Tensor
    ) -> Tensor:
        """One layer for (n, D) residual integers."""
        carrier, filled = self._carrier, bias.shape[-1]
        q = layer.query(_normalise(x), carrier=carrier).clamp(-QUERY_LIMIT, QUERY_LIMIT)
        k, v = (store[:, :filled].to(carrier) for store in memory)
        score = (self._heads(q).to(carrier) @ k.transpose(1, 2)).float()  # (A, n, M)
        weights = _weights(score.add_(bias))
        mixed = (weights.to(carrier) @ v).float().transpose(0, 1).flatten(1)  # (n, D)
        mixed = torch.floor(mixed * layer.mixed_scale + 0.5)
        x = _residual(x + layer.out(mixed, carrier=carrier))
        hidden = layer.up(_normalise(x), carrier=carrier).clamp(0.0, layer.hidden_limit)
        return _residual(x + layer.down(hidden, carrier=carrier))

    def _index(self, numbers: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(np.array(numbers, dtype=np.int64)).to(self.model.device)

    def _heads(self, x: Tensor) -> Tensor:
        """(n, D) -> (A, n, D / A)."""
        heads = self.model.config.heads
        return x.reshape(len(x), heads, x.shape[1] // heads).transpose(0, 1)


def _normalise(x: Tensor) -> Tensor:
    """(n, D) residual integers -> integers of root mean square 2**9."""
    wide, width = x.double(), x.shape[-1]
    floor = width * (mm.NORM_FLOOR * 2**RESIDUAL_BITS) ** 2
    length = (wide.square().sum(-1, keepdim=True) + floor).sqrt()
    return torch.floor(wide * _divide(2**NORM_BITS * sqrt(width), length) + 0.5).float()


def _divide(number: float, by: Tensor) -> Tensor:
    """Divide tensor by tensor: a plain number on either side may become a reciprocal."""
    return torch.full_like(by, number) / by


def _residual(x: Tensor) -> Tensor:
    return x.clamp(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)


def _weights(score: Tensor) -> Tensor:
    """(A, n, M) integer scores -> integer weights that add up to at most 16000."""
    score = score.clamp_(min=0.0)
    total = score.sum(-1, keepdim=True, dtype=torch.float64) + mm.SUM_OFFSET * 2**SCORE_BITS
    return score.mul_(_divide(WEIGHT_TOTAL, total).float()).floor_()


def _to_frequencies(logits: Tensor, exponential: Tensor) -> Tensor:
    """(n, K) integers in units of 2**-6 bits -> (n, K) int64 that sum to 2**16."""
    logits = logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).to(torch.int64)
    size = logits.shape[1]
    below = logits.amax(1, keepdim=True) - logits
    mass = exponential[below.clamp(max=len(exponential) - 1)]
    spread = (TOTAL - size) * mass
    freqs = 1 + torch.div(spread, mass.sum(1, keepdim=True), rounding_mode="floor")
    # What rounding left goes to the likeliest token, of equal ones the first. The key is unique,
    # because devices differ in which of two equal maxima they report.
    key = freqs * size - torch.arange(size, device=logits.device)
    rest = TOTAL - freqs.sum(1, keepdim=True)
    return freqs.scatter_add(1, key.argmax(1, keepdim=True), rest)


@contextmanager
def _plain(device: torch.device) -> Iterator[None]:
    """No autograd, no autocast."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


def _float32_is_exact(device: torch.device) -> bool:
    """Whether float32 products are computed in float32, by the setting and by a trial."""
    if torch.get_float32_matmul_precision() != "highest":
        return False
    x = torch.full((64, 64), 255.0, device=device)
    x[:, 0] = 2049.0  # 12 bits: more than TF32 or bfloat16 keep
    with _plain(device):
        return bool(((x @ x.T) == 2049.0**2 + 63 * 255.0**2).all())
