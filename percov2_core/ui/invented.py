"""The tab that shows what a file leaves open: other seeds, and where they disagree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percov2_core.ui import text
from percov2_core.ui.device import DEVICE, Turns, paint
from percov2_core.ui.difference import brightest, heat
from percov2_core.ui.results import Run
from percov2_core.ui.text import empty, piece, plain_html

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2
    from percov2_core.contents import Contents

SEEDS = 4


class InventedTab:
    """Layout and callbacks; made inside its `gr.Tab`."""

    def __init__(self, codec: PerCoV2, turns: Turns, run: gr.State) -> None:
        self.codec, self.turns = codec, turns
        gr.Markdown(text.VARIATIONS_NOTE)
        with gr.Row():
            vary = gr.Button(
                "Paint it four times", variant="primary", elem_id="pc-vary", scale=0, min_width=240
            )
        self.shown = plain_html(empty(text.EMPTY_VARIATIONS), elem_id="pc-variations")
        vary.click(self.vary, run, self.shown, **DEVICE)

    def offer(self, run: Run | None) -> str:
        """Forget what was shown of another file."""
        return empty(text.READY_VARIATIONS if run else text.EMPTY_VARIATIONS)

    def vary(self, run: Run | None, request: gr.Request) -> Iterator[Any]:
        """The same file with four seeds."""
        if run is None:
            raise gr.Error(text.EMPTY_VARIATIONS, print_exception=False)
        pictures: list[Image.Image] = []
        yield variations_grid(pictures)
        with self.turns.take(request.session_hash or "") as turn:
            for seed in range(1, SEEDS + 1):
                contents = seeded(self.codec, run.contents, seed)
                for frame in paint(self.codec, contents, run.look._replace(seed=seed), turn):
                    if frame.picture:
                        pictures.append(frame.picture)
                    yield variations_grid(pictures) if frame.picture else gr.skip()


def seeded(codec: PerCoV2, contents: Contents, seed: int) -> Contents:
    """The same file with another seed, which draws the coarse tokens that it does not hold."""
    from percov2_core.contents import Tokens  # brings the entropy models' libraries

    stream, coarse = contents.stream, contents.coarse
    if coarse is None or coarse.sent.all():
        return contents
    tokens = Tokens((stream.width, stream.height), contents.caption, coarse.tokens, None)
    count, schedule = stream.tokens_sent, stream.schedule
    return codec.read(codec.write(tokens, count=count, schedule=schedule, seed=seed))


def disagreement(pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
    """(H, W) standard deviation over pictures of one size, mean of the channels, in levels."""
    stack = np.stack([np.asarray(picture, dtype=np.float64) for picture in pictures])
    return np.asarray(stack.std(axis=0).mean(axis=-1))


def variations_grid(pictures: Sequence[Image.Image]) -> str:
    """The pictures so far, of seed 1 and those after it; once all are there, the map as well."""
    tiles = {f"Seed {seed}": picture for seed, picture in enumerate(pictures, 1)}
    if len(pictures) < SEEDS:
        return piece("variations", tiles=tiles, missing=SEEDS + 1 - len(pictures))
    spread = disagreement(pictures)
    tiles["Where they disagree"] = heat(spread, most=(most := brightest(spread)))
    return piece("variations", tiles=tiles, missing=0, spread=spread, most=most)
