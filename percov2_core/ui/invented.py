"""What a file leaves open: the same file painted with several seeds, and where they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percov2_core.ui.html import png_uri

SEEDS = 4
_STOPS = np.array([[20, 12, 80], [150, 30, 120], [240, 100, 60], [252, 230, 120]], dtype=np.float64)
_FULL_LEVELS = 40.0  # standard deviation that is painted brightest


def disagreement(pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
    """(H, W) standard deviation over pictures of one size, mean of the channels, in levels."""
    stack = np.stack([np.asarray(picture, dtype=np.float64) for picture in pictures])
    spread: NDArray[np.float64] = stack.std(axis=0).mean(axis=-1)
    return spread


def heat(values: NDArray[np.float64]) -> Image.Image:
    """(H, W) levels -> RGB: dark blue where all agree, yellow where they differ most."""
    at = np.clip(values / _FULL_LEVELS, 0, 1) * (len(_STOPS) - 1)
    low = np.minimum(at.astype(int), len(_STOPS) - 2)
    share = (at - low)[..., None]
    colours = _STOPS[low] * (1 - share) + _STOPS[low + 1] * share
    return Image.fromarray(np.rint(colours).astype(np.uint8))


def variations_grid(pictures: Sequence[Image.Image], *, first_seed: int) -> str:
    """The pictures so far; once all are there, the map as well."""
    tiles = [_tile(p, f"Seed {first_seed + i}") for i, p in enumerate(pictures)]
    tiles += ['<div class="pc-tile pc-wait"></div>'] * (SEEDS - len(pictures))
    if len(pictures) < SEEDS:
        return f'<div class="pc-tiles">{"".join(tiles)}<div class="pc-tile pc-wait"></div></div>'
    spread = disagreement(pictures)
    tiles.append(_tile(heat(spread), "Where they disagree"))
    return (
        f'<div class="pc-tiles">{"".join(tiles)}</div><p class="pc-note">On average the four '
        f"differ by {spread.mean():.1f} of 255 levels, at most by {spread.max():.0f}. "
        "Yellow is invented, dark blue is what the file decides.</p>"
    )


def _tile(picture: Image.Image, title: str) -> str:
    return (
        f'<figure class="pc-tile"><img src="{png_uri(picture)}" alt="{escape(title)}">'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )
