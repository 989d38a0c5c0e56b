"""Run the integer twin over one tile, stage by stage, with kept keys and values.

Letters: N tokens, n of them in a stage, M entries of memory, W words, K codebook size, D width,
A heads, d = D / A, R tokens in a neighbourhood. The rules of `exact` hold for every line here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from math import sqrt

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from percov2_core.entropy import exact
from percov2_core.entropy import masked_model as mm
from percov2_core.entropy.exact import ExactLayer, ExactModel, Product
from percov2_core.entropy.schedule import MAX_TILE, Grid, Ints

TOTAL = 1 << 16  # what the frequencies of one token add up to
_SCORES_AT_ONCE = 1 << 17  # of one block, per thread: the next step finds them in the cache

_SIDE = 2 * MAX_TILE - 1  # rows of the bias tables are all offsets in two dimensions, row by row
_CENTRE = (MAX_TILE - 1) * _SIDE + MAX_TILE - 1  # the column of no offset at all


class Session:
    """One tile while its stages become known. Each position is computed once. Use: `frequencies` of
    a stage, then `reveal` its tokens, then the next stage. Who knows the tokens beforehand may take
    several stages at once: `foresee`."""

    def __init__(
        self, model: ExactModel, grid: Grid, words: Sequence[int], above: Tensor | None = None
    ) -> None:
        """Open a tile; `above` its (N,) positions stand (N, D) integers, see `read_parents`."""
        self.model, n, device = model, grid[0] * grid[1], model.device
        self._carrier = torch.float32 if _float32_is_exact(device) else torch.float64
        self._neighbours, self._offset, place = _layout(model, grid)
        self._place = place if above is None else place + above
        self._known = torch.full((n + 1,), model.config.mask_id, device=device)
        self._known[n] = model.config.outside_id
        self._words = len(words)
        # (M,) offsets of what is in the memories; words have none.
        self._looked_at = torch.zeros(len(words), dtype=torch.int32, device=device)
        # (layers, 2, A, W + N, D / A) keys and values, as far as they are known
        config, most = model.config, len(words) + n
        size = (2, config.heads, most, config.width // config.heads)
        self._content, self._queries = (
            torch.empty((len(layers), *size), device=device, dtype=self._carrier)
            for layers in (model.content, model.queries)
        )
        with _plain(device):
            phrase = _normalise(self._read_words(words))
            for i, layer in enumerate(model.content):
                self._remember(self._content[i : i + 1], layer.memory, phrase, at=0)
            self._remember(self._queries, model.query_memory, phrase, at=0)

    def frequencies(self, positions: NDArray[np.int64]) -> NDArray[np.uint32]:
        """(n,) flat positions -> (n, K) frequencies >= 1, each row summing to 2**16."""
        at = self._index(positions)
        with _plain(self.model.device):
            ids = self._known[self._neighbours[at]]
            return self._ask(at, ids, self._biases("queries", at))

    def reveal(self, positions: NDArray[np.int64], tokens: NDArray[np.integer]) -> None:
        """Make a whole stage known: (n,) flat positions and (n,) tokens in [0, K)."""
        if not len(positions):
            return
        at, filled = self._index(positions), len(self._looked_at)
        self._known[at] = self._index(tokens)
        self._looked_at = torch.cat([self._looked_at, self._offset[at]])
        with _plain(self.model.device):
            ids = self._known[self._neighbours[at]]
            self._tell(at, ids, self._biases("content", at), filled=filled)

    def foresee(
        self, stages: Sequence[NDArray[np.int64]], tokens: NDArray[np.integer]
    ) -> list[NDArray[np.uint32]]:
        """`frequencies` and `reveal` of several stages, each (n,) flat positions, in one pass;
        `tokens` in [0, K) are those of all these stages one after another."""
        sizes, filled = [len(stage) for stage in stages], len(self._looked_at)
        at = self._index(np.concatenate(stages))
        when = self._index(np.repeat(np.arange(len(sizes)), sizes))
        self._known[at] = self._index(tokens)
        self._looked_at = torch.cat([self._looked_at, self._offset[at]])
        around = torch.full_like(self._known, -1)  # (N + 1,) in which of these stages
        around[at] = when
        around = around[self._neighbours[at]]
        with _plain(self.model.device):
            ids, bias = self._hide("content", at, around, when, before=when + 1)
            self._tell(at, ids, bias, filled=filled)
            ids, bias = self._hide("queries", at, around, when, before=when)
            found = self._ask(at, ids, bias)
        return np.split(found, np.cumsum(sizes)[:-1])

    def _read_words(self, words: Sequence[int]) -> Tensor:
        """W word ids -> (W, D) residual integers."""
        ids = torch.tensor(list(words), dtype=torch.int64, device=self.model.device)
        if not len(ids):
            return torch.zeros(0, self.model.config.width, device=self.model.device)
        padded = F.pad(ids, (mm.WORD_REACH, mm.WORD_REACH), value=mm.PAD_WORD)
        windows = padded.unfold(0, 2 * mm.WORD_REACH + 1, 1)
        place = self.model.table("word_places")[: len(ids)]
        return _residual(self.model.mix_words(windows).add_(place))

    def _hide(
        self, tower: str, at: Tensor, around: Tensor, when: Tensor, *, before: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of (n,) positions in the stages `when`, hide from each what is not `before` its own ->
        (n, R) codes around them, whose stages are `around`, and (A, n, M) biases."""
        ids = self._known[self._neighbours[at]]
        ids = ids.masked_fill(around >= before[:, None], self.model.config.mask_id)
        bias = self._biases(tower, at)
        late = when[None, :] >= before[:, None]
        bias[:, :, -len(at) :].masked_fill_(late, -torch.inf)  # a score that is cut off to 0
        return ids, bias

    def _biases(self, tower: str, at: Tensor) -> Tensor:
        """(A, n, M) score biases towards the words and all positions known so far."""
        table = self.model.biases[tower]
        index = self._offset[at][:, None] - self._looked_at + _CENTRE
        index[:, : self._words] = table.shape[1] - 1
        return table.index_select(1, index.flatten()).reshape(len(table), *index.shape)

    def _ask(self, at: Tensor, ids: Tensor, bias: Tensor) -> NDArray[np.uint32]:
        """Frequencies for (n,) positions with (n, R) codes around them."""
        y = self._start(at, ids)
        for layer, memory in zip(self.model.queries, self._queries, strict=True):
            y = self._update(layer, y, _normalise(y), memory, bias)
        logits = self.model.out(_normalise(y), carrier=self._carrier)
        found = _to_frequencies(logits, self.model.table("exponential"))
        return found.cpu().numpy().astype(np.uint32)

    def _tell(self, at: Tensor, ids: Tensor, bias: Tensor, *, filled: int) -> None:
        """Put (n,) positions with (n, R) codes around them into the memories."""
        x = self._start(at, ids)
        for i, layer in enumerate(self.model.content):
            memory = self._content[i : i + 1]
            normed = _normalise(x)
            self._remember(memory, layer.memory, normed, at=filled)
            x = self._update(layer, x, normed, memory[0], bias)
        self._remember(self._queries, self.model.query_memory, _normalise(x), at=filled)

    def _start(self, at: Tensor, ids: Tensor) -> Tensor:
        """(n,) positions with (n, R) codes around them -> (n, D) residual integers."""
        return _residual(self.model.mix_codes(ids).add_(self._place[at]))

    def _remember(self, memory: Tensor, product: Product, x: Tensor, *, at: int) -> None:
        """Append keys and values of (m, D) normed integers for as many layers as `product` has."""
        layers, parts, heads, _, size = memory.shape
        made = product(x, carrier=self._carrier).reshape(len(x), layers, parts, heads, size)
        space = memory[:, :, :, at : at + len(x)].copy_(made.permute(1, 2, 3, 0, 4))
        space[:, 0].clamp_(-exact.KEY_LIMIT, exact.KEY_LIMIT)
        space[:, 1].clamp_(-exact.VALUE_LIMIT, exact.VALUE_LIMIT)

    def _update(
        self, layer: ExactLayer, x: Tensor, normed: Tensor, memory: Tensor, bias: Tensor
    ) -> Tensor:
        """One layer for (n, D) residual integers, given with their normed ones."""
        carrier = self._carrier
        q = layer.query(normed, carrier=carrier).clamp_(-exact.QUERY_LIMIT, exact.QUERY_LIMIT)
        heads, size = memory.shape[1], memory.shape[3]
        q = q.to(carrier).reshape(len(q), heads, size).transpose(0, 1)
        keys, values = memory[:, :, : bias.shape[-1]]
        mixed = _attend(q, keys, values, bias).transpose(0, 1).flatten(1)  # (n, D)
        mixed = mixed.mul_(layer.mixed_scale).add_(0.5).floor_()
        x = _residual(layer.out(mixed, carrier=carrier).add_(x))
        hidden = layer.up(_normalise(x), carrier=carrier).clamp_(0.0, layer.hidden_limit)
        return _residual(layer.down(hidden, carrier=carrier).add_(x))

    def _index(self, numbers: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(np.array(numbers, dtype=np.int64)).to(self.model.device)


def read_parents(model: ExactModel, parents: Ints | None, grid: Grid) -> Tensor | None:
    """What the tokens of a whole grid see of the coarser level, (hp, wp) in [0, K) or None if it is
    not known -> (h * w, D) residual integers, or None for a model without a coarser level."""
    if model.mix_parents is None:
        return None
    ratio, device = model.config.ratio, model.device
    shape = (-(-grid[0] // ratio), -(-grid[1] // ratio))
    if parents is None:
        parents = np.full(shape, model.config.mask_id, dtype=np.int64)
    ids = torch.from_numpy(np.append(parents.ravel(), model.config.outside_id)).to(device)
    index = torch.from_numpy(mm.neighbour_indices(shape)).to(device)
    above, place = (torch.from_numpy(i).to(device) for i in mm.parent_indices(grid, ratio))
    with _plain(device):
        mixed = model.mix_parents(ids[index])  # (hp * wp, D)
        return _residual(mixed[above] + model.table("below")[place])


@lru_cache(maxsize=4)
def _layout(model: ExactModel, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """What the shape of a tile decides: (N, R) int64 positions of the neighbours, N outside of the
    tile; (N,) int32 offsets, whose differences are columns of the bias tables; (N, D) residual
    integers of the places."""
    rows, columns = (torch.from_numpy(i).to(model.device) for i in mm.place_indices(grid))
    y, x = (torch.from_numpy(axis.ravel()) for axis in np.indices(grid))
    neighbours = torch.from_numpy(mm.neighbour_indices(grid)).to(model.device)
    offset = (y * _SIDE + x).to(model.device, torch.int32)
    return neighbours, offset, model.table("rows")[rows] + model.table("columns")[columns]


def _attend(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """(A, n, d), (A, M, d) twice, (A, n, M) -> (A, n, d) float32, sums of weights x values."""
    scores = _SCORES_AT_ONCE * torch.get_num_threads()
    count = max(1, scores // (bias.shape[0] * max(1, bias.shape[2])))
    made = []
    for i in range(0, q.shape[1], count):
        weights = _weights(q[:, i : i + count], keys, bias[:, i : i + count])
        made.append((weights @ values).float())
    return made[0] if len(made) == 1 else torch.cat(made, dim=1)


def _weights(q: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """(A, n, d), (A, M, d), (A, n, M) -> (A, n, M) weights that add up to at most 16000."""
    score = torch.baddbmm(bias.to(q.dtype), q, keys.transpose(1, 2)).clamp_(min=0.0)
    offset = mm.SUM_OFFSET * 2**exact.SCORE_BITS
    total = score.sum(-1, keepdim=True, dtype=torch.float64).add_(offset)
    return score.mul_(_divide(exact.WEIGHT_TOTAL, total).float()).floor_()


def _normalise(x: Tensor) -> Tensor:
    """(n, D) residual integers -> integers of root mean square 2**9."""
    wide, width = x.double(), x.shape[-1]
    floor = width * (mm.NORM_FLOOR * 2**exact.RESIDUAL_BITS) ** 2
    length = wide.square().sum(-1, keepdim=True).add_(floor).sqrt_()
    return wide.mul_(_divide(2**exact.NORM_BITS * sqrt(width), length)).add_(0.5).floor_().float()


def _divide(number: float, by: Tensor) -> Tensor:
    """Divide tensor by tensor: a plain number on either side may become a reciprocal."""
    return torch.full_like(by, number).div_(by)


def _residual(x: Tensor) -> Tensor:
    """Clip a new tensor in place."""
    return x.clamp_(-exact.RESIDUAL_LIMIT, exact.RESIDUAL_LIMIT)


def _to_frequencies(logits: Tensor, exponential: Tensor) -> Tensor:
    """(n, K) integers in units of 2**-6 bits -> (n, K) int64 that sum to 2**16."""
    logits = logits.clamp(-exact.LOGIT_LIMIT, exact.LOGIT_LIMIT).to(torch.int64)
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
    # To leave autocast costs as much as a product.
    on = torch.is_autocast_enabled(device.type)
    off = torch.autocast(device.type, enabled=False) if on else nullcontext()
    with torch.inference_mode(), off:
        yield


def _float32_is_exact(device: torch.device) -> bool:
    """Whether float32 products are computed in float32, by the setting and by a trial."""
    if torch.get_float32_matmul_precision() != "highest":
        return False
    x = torch.full((64, 64), 255.0, device=device)
    x[:, 0] = 2049.0  # 12 bits: more than TF32 or bfloat16 keep
    with _plain(device):
        return bool(((x @ x.T) == 2049.0**2 + 63 * 255.0**2).all())
