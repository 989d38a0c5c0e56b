"""A picture told in one sentence of plain English, without weights, in integers.

The sentence is regular, so that a language model codes it cheaply:

    [span] sky|top, [span] middle, [span] ground, [colour] [place], [word] texture, uniform|varied

A span is one colour, or two or three from left to right joined by "beside". The colour at a
place and the last word are said only where they tell something. Every decision compares
integers: the same pixels give the same sentence on every machine.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percov2_core.caption.colours import (
    TERM_CENTRES,
    TERM_NAMES,
    nearest_term,
    opponent,
    term_costs,
)

GRID = 12  # cells along each side of the colour grid: divisible by 3 bands and by 2 and 3 spans
DETAIL = 96  # pixels along each side of the grey picture that texture is measured on
BANDS = 3
PLACES = (
    ("upper left", "upper centre", "upper right"),
    ("left", "centre", "right"),
    ("lower left", "lower centre", "lower right"),
)
TEXTURES = ("smooth", "soft", "fine", "rough")
EVENNESS = ("uniform", "", "varied")  # how well the spans tell the picture

# Squared error per cell (of 48 in a band) that one more colour in a span must save.
_SPLIT_GAIN = 48 * 12_000
_ACCENT_CELLS = 4
_ACCENT_DISTANCE = 180_000
_TEXTURE_STEPS = (650, 1000, 1500)
_EVENNESS_STEPS = (60_000, 150_000)
_SKY_LUMA = 8 * 120
_SKY_ROUGHNESS = 700


class Description(NamedTuple):
    """What a sentence says."""

    spans: tuple[tuple[int, ...], ...]  # 3 bands from the top, 1-3 indices into TERM_NAMES each
    sky: bool
    accent: tuple[int, int, int] | None  # term, row and column of the place
    texture: int  # index into TEXTURES
    evenness: int  # index into EVENNESS


def describe(image: Image.Image) -> str:
    """Tell what an RGB picture of any size looks like."""
    return sentence(look(image))


def look(image: Image.Image) -> Description:
    """Take the decisions that `sentence` puts into words."""
    small = image.resize((GRID, GRID), Image.Resampling.BOX)
    grey = image.resize((DETAIL, DETAIL), Image.Resampling.BOX).convert("L")
    cells = opponent(np.asarray(small, dtype=np.int64))  # (12, 12, 3)
    detail = np.asarray(grey, dtype=np.int64)  # (96, 96)
    spans = tuple(_span(band) for band in np.split(cells, BANDS))
    error = ((cells - _painted(spans)) ** 2).sum(axis=-1)  # (12, 12)
    top = cells[: GRID // BANDS]
    is_light = int(top[..., 0].mean()) > _SKY_LUMA
    return Description(
        spans=spans,
        sky=is_light and _roughness(detail[: DETAIL // BANDS]) < _SKY_ROUGHNESS,
        accent=_accent(cells, error),
        texture=_step(_roughness(detail), _TEXTURE_STEPS),
        evenness=_step(int(error.sum()) // GRID**2, _EVENNESS_STEPS),
    )


def sentence(what: Description) -> str:
    """Put a description into words."""
    top, middle, ground = (" beside ".join(TERM_NAMES[t] for t in span) for span in what.spans)
    parts = [f"{top} {'sky' if what.sky else 'top'}", f"{middle} middle", f"{ground} ground"]
    if what.accent is not None:
        term, row, column = what.accent
        parts.append(f"{TERM_NAMES[term]} {PLACES[row][column]}")
    parts.append(f"{TEXTURES[what.texture]} texture")
    if EVENNESS[what.evenness]:
        parts.append(EVENNESS[what.evenness])
    return ", ".join(parts)


def words(text: str) -> list[str]:
    """Split a caption into lower-case words, with each comma as a word of its own."""
    return re.findall(r",|[^\s,]+", text.lower())


def _vocabulary() -> tuple[str, ...]:
    nouns = "sky top middle ground beside texture ,"
    places = [place for row in PLACES for place in row]
    return tuple(sorted(set(words(" ".join([nouns, *TERM_NAMES, *places, *TEXTURES, *EVENNESS])))))


VOCABULARY = _vocabulary()


def _span(band: NDArray[np.int64]) -> tuple[int, ...]:
    """Choose one, two or three colours for (4, 12, 3) cells by error plus a price per colour."""
    best: tuple[int, ...] = ()
    best_cost = 0
    for count in (1, 2, 3):
        terms, cost = [], count * _SPLIT_GAIN
        for part in np.split(band, count, axis=1):
            size = part.shape[0] * part.shape[1]
            costs = term_costs(part.sum(axis=(0, 1)), size)
            terms.append(int(costs.argmin()))
            cost += int(costs.min())
        if not best or cost < best_cost:
            best, best_cost = tuple(terms), cost
    return best if len(set(best)) > 1 else best[:1]


def _painted(spans: tuple[tuple[int, ...], ...]) -> NDArray[np.int64]:
    """(12, 12, 3) cells as the spans tell them."""
    rows = [np.repeat(TERM_CENTRES[list(span)], GRID // len(span), axis=0) for span in spans]
    return np.repeat(np.stack(rows), GRID // BANDS, axis=0)


def _accent(cells: NDArray[np.int64], error: NDArray[np.int64]) -> tuple[int, int, int] | None:
    """Find the place that holds most colour which the spans do not tell."""
    chroma = (cells[..., 1:] ** 2).sum(axis=-1)
    told = (error > _ACCENT_DISTANCE) & (chroma > _ACCENT_DISTANCE)  # (12, 12)
    weight = np.where(told, error, 0).reshape(3, 4, 3, 4).sum(axis=(1, 3))
    row, column = divmod(int(weight.argmax()), 3)
    box = np.s_[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
    count = int(told[box].sum())
    if count < _ACCENT_CELLS:
        return None
    return nearest_term(cells[box][told[box]].sum(axis=0), count), row, column


def _roughness(grey: NDArray[np.int64]) -> int:
    """Hundred times the mean step between neighbouring pixels of a grey picture."""
    across = np.abs(np.diff(grey, axis=1))
    down = np.abs(np.diff(grey, axis=0))
    return int(100 * (across.sum() + down.sum())) // (across.size + down.size)


def _step(value: int, steps: tuple[int, ...]) -> int:
    return sum(value >= step for step in steps)
