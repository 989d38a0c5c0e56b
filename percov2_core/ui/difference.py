"""Where pictures differ, as heat maps with their scale. H x W pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import gradio as gr
import numpy as np
from PIL import Image

from percov2_core.ui import border, text
from percov2_core.ui.results import Entry, Run
from percov2_core.ui.text import piece

if TYPE_CHECKING:
    from percov2_core.evaluation import maps

# Lightness grows evenly along them; page.css has the same, for legends and tokens.
STOPS = ((20, 12, 80), (152, 32, 122), (244, 112, 62), (252, 230, 120))
# A picture asks for its difference, which comes inside a hidden piece of the page.
STAGE_JS = "percov.differs(element, (detail) => trigger('differ', detail))"
MAPS_JS = "percov.answered(element)"
_SHADES = 256
_LEAST_LEVELS = 2.0  # differences below it are not blown up to look like something
_LEAST_DISTANCE = 0.02


@dataclass(frozen=True)
class HeatMap:
    """A map to look at; `most` says what is painted yellow."""

    picture: Image.Image
    about: str
    most: str


def brightest(values: maps.Map, *, least: float = _LEAST_LEVELS) -> float:
    """What `heat` paints yellow: what one pixel in two hundred exceeds."""
    return max(least, float(np.quantile(values, 0.995)))


def heat(values: maps.Map, *, most: float) -> Image.Image:
    """(H, W) -> a picture of 256 colours: dark blue for 0, yellow for `most` and more."""
    at = np.linspace(0, len(STOPS) - 1, _SHADES)
    channels = [np.interp(at, range(len(STOPS)), channel) for channel in zip(*STOPS, strict=True)]
    shades = np.clip(values / most, 0, 1) * (_SHADES - 1)
    picture = Image.fromarray(np.rint(shades).astype(np.uint8)).convert("L")
    picture.putpalette(np.rint(np.stack(channels, axis=-1)).astype(np.uint8).tobytes())
    return picture


def differences(original: Image.Image, other: Image.Image) -> dict[str, HeatMap]:
    """What compare.js shows of each kind, by the class of its frame."""
    from percov2_core.evaluation import maps  # loads torch

    error, feature = maps.absolute_error(original, other), maps.picorank(original, other)
    levels, distance = brightest(error), brightest(feature, least=_LEAST_DISTANCE)
    return {
        "pc-error": HeatMap(
            heat(error, most=levels),
            f"Absolute error, {error.mean():.1f} of 255 levels on average",
            f"{levels:.0f} of 255 or more",
        ),
        "pc-feature": HeatMap(
            heat(feature, most=distance),
            f"Distance that PicoRank sees, {feature.mean():.2f} on average",
            f"{distance:.2g} or more",
        ),
    }


def differ(event: gr.EventData, done: list[Run], entries: list[Entry]) -> str:
    """The difference of a run, or of a classic codec's picture beside it, was asked for."""
    run, place = border.told(event, "run"), border.told(event, "place")
    one = next((one for one in done if one.key == run), None)
    if one is None or one.original is None:
        raise gr.Error(text.RUN_FORGOTTEN, print_exception=False)
    others = {"0": one.decoded}
    if entries and entries[0].picture is one.decoded:
        others |= {str(i): entry.picture for i, entry in enumerate(entries)}
    if place not in others:
        raise gr.Error(text.RUN_FORGOTTEN, print_exception=False)
    found = differences(one.original, others[place])
    return piece("difference", run=run, place=place, maps=found)


def differ_from_file(event: gr.EventData, run: Run | None) -> str:
    """The same for the picture of a file that was opened beside its original."""
    return differ(event, [run] if run else [], [])
