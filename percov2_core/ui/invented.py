"""The tab that shows what a file leaves open: other seeds, where they disagree, fewer tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percov2_core.codec import PerCoV2
from percov2_core.ui import border, text
from percov2_core.ui.device import DEVICE, Turns, paint
from percov2_core.ui.results import Run
from percov2_core.ui.text import bytes_in_words, empty, piece, plain_html

SEEDS = 4
_STOPS = np.array([[20, 12, 80], [150, 30, 120], [240, 100, 60], [252, 230, 120]], dtype=np.float64)
_LEAST_LEVELS = 2.0  # differences below it are not blown up to look like something


class InventedTab:
    """Layout and callbacks; made inside its `gr.Tab`."""

    def __init__(self, codec: PerCoV2, turns: Turns, run: gr.State) -> None:
        self.codec, self.turns = codec, turns
        gr.Markdown(text.VARIATIONS_NOTE)
        with gr.Row():
            vary = gr.Button(
                "Paint it four times", variant="primary", elem_id="pc-vary", scale=0, min_width=240
            )
        grid = plain_html(empty(text.EMPTY_VARIATIONS), elem_id="pc-variations")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=280):
                said: dict[str, Any] = {"label": "Tokens sent", "info": text.RESEND_INFO}
                tokens = gr.Slider(0, 1, 0, step=1, interactive=False, elem_id="pc-resend", **said)
            with gr.Column(scale=8, min_width=280):
                resent = plain_html(empty(text.EMPTY_RESENT), elem_id="pc-resent")
        vary.click(self.vary, run, grid, **DEVICE)
        # Not `release`: the keyboard never releases a slider.
        tokens.input(self.resend, [run, tokens], resent, trigger_mode="always_last", **DEVICE)
        self.shown = [grid, tokens, resent]  # what `offer` fills

    def offer(self, run: Run | None) -> tuple[Any, Any, Any]:
        """Forget what was shown of another file; the slider is there for files that it suits."""
        if run is None:
            return empty(text.EMPTY_VARIATIONS), gr.skip(), empty(text.EMPTY_RESENT)
        most = run.stream.tokens_sent
        slider = gr.Slider(maximum=max(1, most), value=most, interactive=most > 0)
        reason = text.EMPTY_RESENT if most else text.NO_TOKENS
        return empty(text.READY_VARIATIONS), slider, empty(reason)

    def vary(self, run: Run | None, request: gr.Request) -> Iterator[Any]:
        """The same file with four seeds."""
        if run is None:
            raise gr.Error(text.EMPTY_VARIATIONS, print_exception=False)
        pictures: list[Image.Image] = []
        yield variations_grid(pictures)
        with self.turns.take(request.session_hash or "") as turn:
            for seed in range(1, SEEDS + 1):
                look = run.look._replace(seed=seed)
                for frame in paint(self.codec, run.contents, look, turn):
                    if frame.picture:
                        pictures.append(frame.picture)
                    yield variations_grid(pictures) if frame.picture else gr.skip()

    def resend(self, run: Run | None, tokens: float, request: gr.Request) -> Iterator[Any]:
        """The first tokens of the same file."""
        if run is None or not run.stream.tokens_sent:
            yield empty(text.EMPTY_RESENT if run is None else text.NO_TOKENS)
            return
        yield gr.skip()
        with self.turns.take(request.session_hash or "") as turn:
            left = min(border.count(tokens), run.stream.tokens_sent)
            part = self.codec.truncate(run.stream, tokens=left)
            size = bytes_in_words(sum(part.sizes))
            tag = f"{part.tokens_sent} of {sum(part.tokens_total)} tokens, {size}"
            for frame in paint(self.codec, self.codec.read(part), run.look, turn):
                sides = {"original": run.decoded, "decoded": frame.picture, "tag": tag}
                said = {"caption": run.contents.caption, "left": "All its tokens"}
                yield piece("compare", **sides, **said) if frame.picture else gr.skip()


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
    at = values / brightest(values) * (len(_STOPS) - 1)
    colours = [np.interp(at, range(len(_STOPS)), channel) for channel in _STOPS.T]
    return Image.fromarray(np.rint(np.stack(colours, axis=-1)).astype(np.uint8))


def variations_grid(pictures: Sequence[Image.Image]) -> str:
    """The pictures so far, of seed 1 and those after it; once all are there, the map as well."""
    tiles = {f"Seed {seed}": picture for seed, picture in enumerate(pictures, 1)}
    if len(pictures) < SEEDS:
        return piece("variations", tiles=tiles, missing=SEEDS + 1 - len(pictures))
    spread = disagreement(pictures)
    tiles["Where they disagree"] = heat(spread)
    return piece("variations", tiles=tiles, missing=0, spread=spread, most=brightest(spread))
