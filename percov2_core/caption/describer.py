"""A picture told in one sentence of plain English, without weights, in integers.

The sentence is regular, so that a language model codes it cheaply:

    [span] sky|top, [span] middle, [span] ground, [colour] [place], [word] texture, uniform|varied

A span is one colour, or two or three from left to right joined by "beside". The colour at a
place and the last word are said only where they tell something. Every decision compares
integers: the same pixels give the same sentence on every machine.
"""

from __future__ import annotations

import re
from bisect import bisect
from operator import itemgetter
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# The values are cluster centres of mean colours of patches of photographs, started from
# hand-named prototypes and pulled towards them so that every name keeps its meaning.
# One hue a line, from dark to light: its shades and their sRGB values.
_HUES = """
black 12100e
very dark grey 24272a, dark grey 4e504e, grey 736f68, light grey 8c8c8b, pale grey b5b3ae
white e7eaeb
very dark taupe 2e261f, dark taupe 51453c, taupe 695f52, light taupe 8a7f71, pale taupe a29b91
cream d7cfc1
very dark brown 381f15, dark brown 61482e, brown 7b6144, light brown 8f775d
dark rust 593220, rust 8d5045
peach af937b
vivid brown 835223
tan a17c4f, light tan c7a06a, pale tan c9b597
orange b76628, bright orange dd8322
dark red 721f22, red a13430, vivid red cf302e
dark pink 764f56, pink b86b6e, light pink cda2ab
magenta b6296e
gold a4852b
yellow d0b323, light yellow dace74
very dark olive 3e3623, dark olive 515337, olive 6d6c36, light olive 938f5d
very dark green 1e2914, dark green 395122, green 5f7049, light green 758e5a, pale green a5b481
vivid green 5a7c22, bright green 80ac33
dark teal 1b4546, teal 1d747a, light teal 5ea19d
dark slate 3a3b38, slate 5e6365, light slate 757b7e, pale slate 97a4ad
dark muted blue 343f53, muted blue 4e6479, light muted blue 72889d, pale muted blue c3cbd2
very dark blue 101b35, dark blue 204477, blue 4a72a3, light blue 739fcb, pale blue 9cc2df
vivid blue 1b3bae, bright blue 2e8ad0
dark purple 3a204b, purple 784a89, light purple a37eb0
"""
_ENTRIES = [entry.rsplit(" ", 1) for entry in re.split(r", |\n", _HUES.strip())]
TERMS = MappingProxyType({name: tuple(bytes.fromhex(value)) for name, value in _ENTRIES})
TERM_NAMES = tuple(TERMS)

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


def describe(image: Image.Image) -> str:
    """Tell what an RGB picture of any size looks like."""
    small = image.resize((GRID, GRID), Image.Resampling.BOX)
    grey = image.resize((DETAIL, DETAIL), Image.Resampling.BOX).convert("L")
    cells = opponent(np.asarray(small, dtype=np.int64))  # (12, 12, 3)
    detail = np.asarray(grey, dtype=np.int64)  # (96, 96)
    spans = [_span(band) for band in np.split(cells, BANDS)]
    error = ((cells - _painted(spans)) ** 2).sum(axis=-1)  # (12, 12)
    is_light = int(cells[: GRID // BANDS, :, 0].mean()) > _SKY_LUMA
    is_sky = is_light and _roughness(detail[: DETAIL // BANDS]) < _SKY_ROUGHNESS
    nouns = ("sky" if is_sky else "top", "middle", "ground")
    parts = [
        f"{' beside '.join(TERM_NAMES[term] for term in span)} {noun}"
        for span, noun in zip(spans, nouns, strict=True)
    ]
    parts.append(_accent(cells, error))
    parts.append(f"{TEXTURES[bisect(_TEXTURE_STEPS, _roughness(detail))]} texture")
    parts.append(EVENNESS[bisect(_EVENNESS_STEPS, int(error.sum()) // GRID**2)])
    return ", ".join(part for part in parts if part)


def words(text: str) -> list[str]:
    """Split a caption into lower-case words, with each comma as a word of its own."""
    return re.findall(r",|[^\s,]+", text.lower())


_NOUNS = "sky top middle ground beside texture ,"
_PHRASES = (_NOUNS, *TERM_NAMES, *sum(PLACES, ()), *TEXTURES, *EVENNESS)
VOCABULARY = tuple(sorted(set(words(" ".join(_PHRASES)))))


def opponent(rgb: NDArray[np.int64]) -> NDArray[np.int64]:
    """Map (..., 3) RGB linearly to eight times (luma, blue - luma, red - luma).
    Squared distances there weigh hue about twice as much as squared distances in RGB do: a wrong
    hue word is a worse mistake than a wrong lightness word. Being linear and in integers it also
    maps sums of colours, exactly."""
    luma = rgb @ np.array([2, 5, 1])
    return np.stack([luma, 8 * rgb[..., 2] - luma, 8 * rgb[..., 0] - luma], axis=-1)


_CENTRES = opponent(np.array(list(TERMS.values()), dtype=np.int64))  # (T, 3)


def term_costs(total: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(T,) squared error of each term for `count` colours, less what no term can change.
    `total` is (3,), the sum of the colours in the space of `opponent`."""
    costs: NDArray[np.int64] = count * (_CENTRES**2).sum(axis=1) - 2 * (_CENTRES @ total)
    return costs


def _span(band: NDArray[np.int64]) -> tuple[int, ...]:
    """Choose one, two or three colours for (4, 12, 3) cells by error plus a price per colour."""
    choices = []
    for count in (1, 2, 3):
        parts = np.split(band, count, axis=1)
        costs = [term_costs(part.sum(axis=(0, 1)), part[..., 0].size) for part in parts]
        cost = count * _SPLIT_GAIN + sum(int(one.min()) for one in costs)
        choices.append((cost, tuple(int(one.argmin()) for one in costs)))
    best = min(choices, key=itemgetter(0))[1]  # of equal ones the shortest
    return best if len(set(best)) > 1 else best[:1]


def _painted(spans: list[tuple[int, ...]]) -> NDArray[np.int64]:
    """(12, 12, 3) cells as the spans tell them."""
    rows = [np.repeat(_CENTRES[list(span)], GRID // len(span), axis=0) for span in spans]
    return np.repeat(np.stack(rows), GRID // BANDS, axis=0)


def _accent(cells: NDArray[np.int64], error: NDArray[np.int64]) -> str:
    """The colour at the place that holds most of what the spans do not tell, if it is enough."""
    chroma = (cells[..., 1:] ** 2).sum(axis=-1)
    told = (error > _ACCENT_DISTANCE) & (chroma > _ACCENT_DISTANCE)  # (12, 12)
    weight = np.where(told, error, 0).reshape(3, 4, 3, 4).sum(axis=(1, 3))
    row, column = divmod(int(weight.argmax()), 3)
    box = np.s_[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
    count = int(told[box].sum())
    if count < _ACCENT_CELLS:
        return ""
    costs = term_costs(cells[box][told[box]].sum(axis=0), count)
    return f"{TERM_NAMES[int(costs.argmin())]} {PLACES[row][column]}"


def _roughness(grey: NDArray[np.int64]) -> int:
    """Hundred times the mean step between neighbouring pixels of a grey picture."""
    across, down = (np.abs(np.diff(grey, axis=axis)) for axis in (1, 0))
    return int(100 * (across.sum() + down.sum())) // (across.size + down.size)
