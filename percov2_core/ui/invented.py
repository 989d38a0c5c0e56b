"""What a file leaves open: the same file painted with several seeds, and where they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percov2_core.ui import text
from percov2_core.ui.html import png_uri, scale_bar

SEEDS = 4
_STOPS = np.array([[20, 12, 80], [150, 30, 120], [240, 100, 60], [252, 230, 120]], dtype=np.float64)
_LEAST_LEVELS = 2.0  # differences below it are not blown up to look like something


def disagreement(pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
    """(H, W) standard deviation over pictures of one size, mean of the channels, in levels."""
    stack = np.stack([np.asarray(picture, dtype=np.float64) for picture in pictures])
    spread: NDArray[np.float64] = stack.std(axis=0).mean(axis=-1)
    return spread


def brightest(values: NDArray[np.float64]) -> float:
    """Levels that `heat` paints yellow: what one pixel in two hundred exceeds."""
    return max(_LEAST_LEVELS, float(np.quantile(values, 0.995)))


def heat(values: NDArray[np.float64]) -> Image.Image:
    """(H, W) levels -> RGB: dark blue where all agree, yellow where they differ most."""
    at = np.clip(values / brightest(values), 0, 1) * (len(_STOPS) - 1)
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
    said = text.disagreement(float(spread.mean()), float(spread.max()))
    scale = scale_bar("they agree", f"they differ by {brightest(spread):.0f} levels or more")
    return f'<div class="pc-tiles">{"".join(tiles)}</div>{scale}<p class="pc-note">{said}</p>'


def _tile(picture: Image.Image, title: str) -> str:
    return (
        f'<figure class="pc-tile"><img src="{png_uri(picture)}" alt="{escape(title)}">'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )
