"""Colour terms in plain English and the sRGB value that each stands for.

The values are cluster centres of mean colours of patches of photographs, started from
hand-named prototypes and pulled towards them so that every name keeps its meaning.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

TERMS = MappingProxyType(
    {
        "black": (18, 16, 14),
        "very dark grey": (36, 39, 42),
        "dark grey": (78, 80, 78),
        "grey": (115, 111, 104),
        "light grey": (140, 140, 139),
        "pale grey": (181, 179, 174),
        "white": (231, 234, 235),
        "very dark taupe": (46, 38, 31),
        "dark taupe": (81, 69, 60),
        "taupe": (105, 95, 82),
        "light taupe": (138, 127, 113),
        "pale taupe": (162, 155, 145),
        "cream": (215, 207, 193),
        "very dark brown": (56, 31, 21),
        "dark brown": (97, 72, 46),
        "brown": (123, 97, 68),
        "light brown": (143, 119, 93),
        "dark rust": (89, 50, 32),
        "rust": (141, 80, 69),
        "peach": (175, 147, 123),
        "vivid brown": (131, 82, 35),
        "tan": (161, 124, 79),
        "light tan": (199, 160, 106),
        "pale tan": (201, 181, 151),
        "orange": (183, 102, 40),
        "bright orange": (221, 131, 34),
        "dark red": (114, 31, 34),
        "red": (161, 52, 48),
        "vivid red": (207, 48, 46),
        "dark pink": (118, 79, 86),
        "pink": (184, 107, 110),
        "light pink": (205, 162, 171),
        "magenta": (182, 41, 110),
        "gold": (164, 133, 43),
        "yellow": (208, 179, 35),
        "light yellow": (218, 206, 116),
        "very dark olive": (62, 54, 35),
        "dark olive": (81, 83, 55),
        "olive": (109, 108, 54),
        "light olive": (147, 143, 93),
        "very dark green": (30, 41, 20),
        "dark green": (57, 81, 34),
        "green": (95, 112, 73),
        "light green": (117, 142, 90),
        "pale green": (165, 180, 129),
        "vivid green": (90, 124, 34),
        "bright green": (128, 172, 51),
        "dark teal": (27, 69, 70),
        "teal": (29, 116, 122),
        "light teal": (94, 161, 157),
        "dark slate": (58, 59, 56),
        "slate": (94, 99, 101),
        "light slate": (117, 123, 126),
        "pale slate": (151, 164, 173),
        "dark muted blue": (52, 63, 83),
        "muted blue": (78, 100, 121),
        "light muted blue": (114, 136, 157),
        "pale muted blue": (195, 203, 210),
        "very dark blue": (16, 27, 53),
        "dark blue": (32, 68, 119),
        "blue": (74, 114, 163),
        "light blue": (115, 159, 203),
        "pale blue": (156, 194, 223),
        "vivid blue": (27, 59, 174),
        "bright blue": (46, 138, 208),
        "dark purple": (58, 32, 75),
        "purple": (120, 74, 137),
        "light purple": (163, 126, 176),
    }
)
TERM_NAMES = tuple(TERMS)


def opponent(rgb: NDArray[np.int64]) -> NDArray[np.int64]:
    """Map (..., 3) RGB linearly to eight times (luma, blue - luma, red - luma).

    Squared distances there weigh hue about twice as much as squared distances in RGB do:
    a wrong hue word is a worse mistake than a wrong lightness word. Being linear and in
    integers it also maps sums of colours, exactly.
    """
    luma = rgb @ np.array([2, 5, 1])
    return np.stack([luma, 8 * rgb[..., 2] - luma, 8 * rgb[..., 0] - luma], axis=-1)


TERM_CENTRES = opponent(np.array(list(TERMS.values()), dtype=np.int64))  # (T, 3)


def nearest_term(total: NDArray[np.int64], count: int) -> int:
    """Index of the term closest to the mean of `count` colours that sum to (3,) `total`."""
    return int(np.argmin(term_costs(total, count)))


def term_costs(total: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Squared error of each term for `count` colours, less what no term can change.

    Args:
        total: (3,) sum of the colours in the space of `opponent`.
        count: How many colours were summed.

    Returns:
        (T,) sum |colour - term|^2 - sum |colour|^2, negative or not.
    """
    squares = (TERM_CENTRES * TERM_CENTRES).sum(axis=1)
    costs: NDArray[np.int64] = count * squares - 2 * (TERM_CENTRES @ total)
    return costs
