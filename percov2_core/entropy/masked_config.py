"""Sizes, ranges, words and neighbourhoods that the masked image model and its twin share.

h x w token grid, N = h * w tokens, R = 25 tokens in a 5 x 5 neighbourhood. Parents are the tokens
of the coarser level: each stands above `ratio` x `ratio` tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from percov2_core.entropy.schedule import MAX_TILE, Grid
from percov2_core.errors import ConfigError

REACH = 2  # the neighbourhood is (2 * REACH + 1) squared
NEIGHBOURS = (2 * REACH + 1) ** 2
WORD_REACH = 2  # a word is read together with this many words on either side
PAD_WORD, UNKNOWN_WORD, FIRST_WORD = 0, 1, 2

# Activations stay inside these ranges, so that the twin can prove its bounds.
QUERY_CLIP, KEY_CLIP, VALUE_CLIP, HIDDEN_CLIP = 2.0, 8.0, 8.0, 8.0
SUM_OFFSET = 0.5  # added to the sum of attention scores: nothing to look at gives zero
NORM_FLOOR = 2.0**-10

_WORD = re.compile(rb"[a-z0-9]+|,")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedModelConfig:
    """Sizes of one masked image model."""

    codebook_size: int = 256  # K
    width: int = 192  # D
    heads: int = 6  # A, must divide D
    content_layers: int = 2  # over the known tokens
    query_layers: int = 3  # over the tokens to be predicted
    hidden: int = 384  # channels inside the feed-forward part of a layer
    code_width: int = 48  # channels of a token or word embedding before it is mixed
    vocabulary: tuple[str, ...] = ()  # words with a row of their own, in lower case
    max_words: int = 40  # of a caption that are looked at
    dropout: float = 0.0  # share of branch outputs dropped in training
    ratio: int = 0  # tokens below one parent, along a side; 0: there is no coarser level

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"width must be a multiple of heads {self.heads}, got {self.width}")

    @property
    def mask_id(self) -> int:
        """Row of the code table for a neighbour that is not known yet."""
        return self.codebook_size

    @property
    def outside_id(self) -> int:
        """Row of the code table for a neighbour beyond the edge of the grid."""
        return self.codebook_size + 1


def split_words(caption: str) -> list[str]:
    """Words and commas of a caption, ASCII letters in lower case, other characters left out."""
    return [word.decode() for word in _WORD.findall(caption.encode("utf-8", "replace").lower())]


def word_ids(caption: str, config: MaskedModelConfig) -> list[int]:
    """Rows of the word table for a caption, at most `max_words`."""
    index = _word_index(config.vocabulary)
    return [index.get(word, UNKNOWN_WORD) for word in split_words(caption)[: config.max_words]]


@lru_cache(maxsize=8)
def _word_index(vocabulary: tuple[str, ...]) -> dict[str, int]:
    return {word: FIRST_WORD + i for i, word in enumerate(vocabulary)}


@lru_cache(maxsize=32)
def neighbour_indices(grid: Grid) -> NDArray[np.int64]:
    """(N, R) flat index of each neighbour, N where it lies outside of the grid."""
    h, w = grid
    steps = np.arange(-REACH, REACH + 1)
    rows = (np.arange(h)[:, None] + steps)[:, None, :, None]
    columns = (np.arange(w)[:, None] + steps)[None, :, None, :]
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    return np.where(inside, rows * w + columns, h * w).reshape(h * w, NEIGHBOURS)


@lru_cache(maxsize=32)
def parent_indices(grid: Grid, ratio: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) flat index of each token's parent, (N,) the token's place below it."""
    y, x = (axis.ravel() for axis in np.indices(grid))
    columns = -(-grid[1] // ratio)
    return y // ratio * columns + x // ratio, y % ratio * ratio + x % ratio


def place_indices(grid: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,), (N,): each position's row and column as 1/32 parts of the grid."""
    y, x = (axis.ravel() for axis in np.indices(grid))
    parts = [(2 * axis + 1) * MAX_TILE // (2 * n) for axis, n in zip((y, x), grid, strict=True)]
    return parts[0], parts[1]
