"""Run the integer twin over one tile, stage by stage, with kept keys and values.

Letters: N tokens, n of them in a stage, M entries of memory, W words, K codebook size, D width,
A heads, d = D / A, R tokens in a neighbourhood. The rules of `exact` hold for every line here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from percov2_core.entropy import exact
from percov2_core.entropy import masked_config as mc
from percov2_core.entropy.exact import ExactLayer, ExactModel, Floats, Product
from percov2_core.entropy.schedule import MAX_TILE, Grid, Ints

_SCORES_AT_ONCE = 1 << 18  # of one block: the next step finds them in the cache

_SIDE = 2 * MAX_TILE - 1  # rows of the bias tables are all offsets in two dimensions, row by row
_CENTRE = (MAX_TILE - 1) * _SIDE + MAX_TILE - 1  # the column of no offset at all


class Session:
    """One tile while its stages become known. Each position is computed once. Use: `frequencies` of
    a stage, then `reveal` its tokens, then the next stage. Who knows the tokens beforehand may take
    several stages at once: `foresee`."""

    def __init__(
        self, model: ExactModel, grid: Grid, words: Sequence[int], above: Floats | None = None
    ) -> None:
        """Open a tile; `above` its (N,) positions stand (N, D) integers, see `read_parents`."""
        self.model, config, n = model, model.config, grid[0] * grid[1]
        self._neighbours, self._offset, place = _layout(model, grid)
        self._place = place if above is None else place + above
        self._known = np.full(n + 1, config.mask_id)
        self._known[n] = config.outside_id
        self._words = len(words)
        # (M,) offsets of what is in the memories; words have none.
        self._looked_at = np.zeros(len(words), dtype=np.int64)
        # (layers, 2, W + N, D) keys and values, as far as they are known
        size = (2, len(words) + n, config.width)
        self._content, self._queries = (
            np.empty((len(layers), *size), dtype=model.carrier)
            for layers in (model.content, model.queries)
        )
        phrase = _normalise(self._read_words(words))
        for i, layer in enumerate(model.content):
            self._remember(self._content[i : i + 1], layer.memory, phrase, at=0)
        self._remember(self._queries, model.query_memory, phrase, at=0)

    def frequencies(self, positions: Ints) -> NDArray[np.uint32]:
        """(n,) flat positions -> (n, K) frequencies >= 1, each row summing to 2**16."""
        ids = self._known[self._neighbours[positions]]
        return self._ask(positions, ids, self._biases("queries", positions))

    def reveal(self, positions: Ints, tokens: NDArray[np.integer]) -> None:
        """Make a whole stage known: (n,) flat positions and (n,) tokens in [0, K)."""
        if len(positions):
            filled = self._know(positions, tokens)
            ids = self._known[self._neighbours[positions]]
            self._tell(positions, ids, self._biases("content", positions), filled=filled)

    def foresee(
        self, stages: Sequence[Ints], tokens: NDArray[np.integer]
    ) -> list[NDArray[np.uint32]]:
        """`frequencies` and `reveal` of several stages, each (n,) flat positions, in one pass;
        `tokens` in [0, K) are those of all these stages one after another."""
        at, sizes = np.concatenate(stages), [len(stage) for stage in stages]
        when, filled = np.repeat(np.arange(len(sizes)), sizes), self._know(at, tokens)
        around = np.full_like(self._known, -1)  # (N + 1,) in which of these stages
        around[at] = when
        around = around[self._neighbours[at]]
        ids, bias = self._hide("content", at, around, when, before=when + 1)
        self._tell(at, ids, bias, filled=filled)
        ids, bias = self._hide("queries", at, around, when, before=when)
        return np.split(self._ask(at, ids, bias), np.cumsum(sizes)[:-1])

    def _know(self, at: Ints, tokens: NDArray[np.integer]) -> int:
        """Note the tokens of (n,) positions -> how many entries the memories had before."""
        filled = len(self._looked_at)
        self._known[at] = tokens
        self._looked_at = np.concatenate([self._looked_at, self._offset[at]])
        return filled

    def _read_words(self, words: Sequence[int]) -> Floats:
        """W word ids -> (W, D) residual integers."""
        before, behind = ([mc.PAD_WORD] * count for count in (mc.WORD_REACH, mc.WORD_REACH + 1))
        padded = np.array([*before, *words, *behind])  # one more: a window even without any word
        windows = sliding_window_view(padded, 2 * mc.WORD_REACH + 1)[: len(words)]
        return _residual(self.model.mix_words(windows) + self.model.word_places[: len(words)])

    def _hide(
        self, tower: str, at: Ints, around: Ints, when: Ints, *, before: Ints
    ) -> tuple[Ints, Floats]:
        """Of (n,) positions in the stages `when`, hide from each what is not `before` its own ->
        (n, R) codes around them, whose stages are `around`, and (A, n, M) biases."""
        ids, bias = self._known[self._neighbours[at]], self._biases(tower, at)
        ids[around >= before[:, None]] = self.model.config.mask_id
        late = when[None, :] >= before[:, None]
        hidden = np.where(late, np.float32(-np.inf), np.float32(0))  # a score that is cut off to 0
        bias[:, :, -len(at) :] += hidden
        return ids, bias

    def _biases(self, tower: str, at: Ints) -> Floats:
        """(A, n, M) score biases towards the words and all positions known so far."""
        table = self.model.biases[tower]
        index = (self._offset[at] + _CENTRE)[:, None] - self._looked_at
        index[:, : self._words] = table.shape[1] - 1
        return table.take(index, axis=1, mode="clip")  # which is the fastest

    def _ask(self, at: Ints, ids: Ints, bias: Floats) -> NDArray[np.uint32]:
        """Frequencies for (n,) positions with (n, R) codes around them."""
        y = self._start(at, ids)
        for layer, memory in zip(self.model.queries, self._queries, strict=True):
            y = self._update(layer, y, _normalise(y), memory, bias)
        return _to_frequencies(self.model.out(_normalise(y)), self.model.exponential)

    def _tell(self, at: Ints, ids: Ints, bias: Floats, *, filled: int) -> None:
        """Put (n,) positions with (n, R) codes around them into the memories."""
        x = self._start(at, ids)
        for i, layer in enumerate(self.model.content):
            memory = self._content[i : i + 1]
            normed = _normalise(x)
            self._remember(memory, layer.memory, normed, at=filled)
            x = self._update(layer, x, normed, memory[0], bias)
        self._remember(self._queries, self.model.query_memory, _normalise(x), at=filled)

    def _start(self, at: Ints, ids: Ints) -> Floats:
        """(n,) positions with (n, R) codes around them -> (n, D) residual integers."""
        x = self.model.mix_codes(ids)
        x += self._place[at]
        return _residual(x)

    def _remember(self, memory: Floats, product: Product, x: Floats, *, at: int) -> None:
        """Append keys and values of (m, D) normed integers for as many layers as `product` has."""
        made = product(x).reshape(len(x), len(memory), 2, memory.shape[3])
        for i, limit in enumerate((exact.KEY_LIMIT, exact.VALUE_LIMIT)):
            part = made[:, :, i]
            part.clip(-limit, limit, out=part)
        memory[:, :, at : at + len(x)] = made.transpose(1, 2, 0, 3)

    def _update(
        self, layer: ExactLayer, x: Floats, normed: Floats, memory: Floats, bias: Floats
    ) -> Floats:
        """One layer for (n, D) residual integers, given with their normed ones."""
        q = layer.query(normed)
        q.clip(-exact.QUERY_LIMIT, exact.QUERY_LIMIT, out=q)
        keys, values = memory[:, : bias.shape[2]]
        mixed = _attend(q, keys, values, bias)
        mixed *= layer.mixed_scale
        mixed += 0.5
        y = layer.out(np.floor(mixed, out=mixed))
        y += x
        hidden = layer.up(_normalise(_residual(y)))
        x = layer.down(hidden.clip(0.0, layer.hidden_limit, out=hidden))
        x += y
        return _residual(x)


def read_parents(model: ExactModel, parents: Ints | None, grid: Grid) -> Floats | None:
    """What the tokens of a whole grid see of the coarser level, (hp, wp) in [0, K) or None if it is
    not known -> (h * w, D) residual integers in float32, or None for a model without one."""
    if model.mix_parents is None:
        return None
    ratio = model.config.ratio
    shape = (-(-grid[0] // ratio), -(-grid[1] // ratio))
    if parents is None:
        parents = np.full(shape, model.config.mask_id)
    ids = np.append(parents.ravel(), model.config.outside_id)
    above, place = mc.parent_indices(grid, ratio)
    mixed = model.mix_parents(ids[mc.neighbour_indices(shape)])  # (hp * wp, D)
    return _residual(mixed[above] + model.table("below")[place])


@lru_cache(maxsize=4)
def _layout(model: ExactModel, grid: Grid) -> tuple[Ints, Ints, Floats]:
    """What the shape of a tile decides: (N, R) positions of the neighbours, N outside of the tile;
    (N,) offsets, whose differences are columns of the bias tables; (N, D) residual integers of the
    places."""
    rows, columns = mc.place_indices(grid)
    y, x = (axis.ravel() for axis in np.indices(grid))
    place = model.table("rows")[rows] + model.table("columns")[columns]
    return mc.neighbour_indices(grid), y * _SIDE + x, place


def _attend(q: Floats, keys: Floats, values: Floats, bias: Floats) -> Floats:
    """(n, D), (M, D) twice, (A, n, M) -> (n, D) float32, sums of weights x values."""
    heads, count, most = bias.shape
    mixed, size = np.empty_like(q), q.shape[1] // heads
    # (A, n or M, d) of the same numbers
    out, q, keys, values = (
        x.reshape(len(x), heads, size).transpose(1, 0, 2) for x in (mixed, q, keys, values)
    )
    rows = max(1, _SCORES_AT_ONCE // max(1, most))
    together = max(1, rows // max(1, count))  # heads
    for i, j in itertools.product(range(0, heads, together), range(0, count, rows)):
        some, here = slice(i, i + together), slice(j, j + rows)
        weights = _weights(q[some, here], keys[some], bias[some, here])
        np.matmul(weights, values[some], out=out[some, here])
    return mixed


def _weights(q: Floats, keys: Floats, bias: Floats) -> Floats:
    """(A, n, d), (A, M, d), (A, n, M) -> (A, n, M) weights that add up to at most 16000."""
    score: Floats = np.matmul(q, keys.transpose(0, 2, 1)).astype(np.float32, copy=False)
    score += bias
    score.clip(0.0, np.inf, out=score)
    total = score @ np.ones(score.shape[2])  # in float64
    total += mc.SUM_OFFSET * 2**exact.SCORE_BITS
    score *= (exact.WEIGHT_TOTAL / total).astype(np.float32)[..., None]
    np.floor(score, out=score)
    return score


def _normalise(x: Floats) -> Floats:
    """(n, D) residual integers -> integers of root mean square 2**9."""
    wide, width = x.astype(np.float64), x.shape[1]
    floor = width * (mc.NORM_FLOOR * 2**exact.RESIDUAL_BITS) ** 2
    length = np.sqrt(np.vecdot(wide, wide) + floor)
    wide *= (2**exact.NORM_BITS * sqrt(width) / length)[:, None]
    wide += 0.5
    return np.floor(wide, out=wide).astype(np.float32)


def _residual(x: Floats) -> Floats:
    """Clip a new array in place."""
    return x.clip(-exact.RESIDUAL_LIMIT, exact.RESIDUAL_LIMIT, out=x)


def _to_frequencies(logits: Floats, exponential: Floats) -> NDArray[np.uint32]:
    """(n, K) integers in units of 2**-6 bits -> (n, K) that sum to 2**16."""
    logits.clip(-exact.LOGIT_LIMIT, exact.LOGIT_LIMIT, out=logits)
    below = logits.max(axis=1, keepdims=True) - logits
    mass = exponential.take(below.astype(np.int64), mode="clip")
    share = (exact.TOTAL - mass.shape[1]) * mass
    # Of integers below 2**53: such a quotient never rounds up to the next integer.
    share /= mass.sum(axis=1, keepdims=True)
    freqs: NDArray[np.uint32] = share.astype(np.uint32)
    freqs += 1
    # What rounding left goes to the likeliest token, of equal ones the first.
    rest = exact.TOTAL - freqs.sum(axis=1, dtype=np.uint32)
    freqs[np.arange(len(freqs)), freqs.argmax(axis=1)] += rest
    return freqs
