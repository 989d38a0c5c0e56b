"""The tab that shows what a file leaves open: other seeds, where they disagree, fewer tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percov2_core.codec import PerCoV2
from percov2_core.ui import border, results, text
from percov2_core.ui.device import DEVICE, Turns, paint
from percov2_core.ui.results import Run
from percov2_core.ui.text import bytes_in_words, empty, plain_html, png_uri, scale_bar

SEEDS = 4
_STOPS = np.array([[20, 12, 80], [150, 30, 120], [240, 100, 60], [252, 230, 120]], dtype=np.float64)
_LEAST_LEVELS = 2.0  # differences below it are not blown up to look like something


class InventedTab:
    """Layout and callbacks; made inside its `gr.Tab`.

    Attributes:
        shown: What `offer` fills.
    """

    def __init__(self, codec: PerCoV2, turns: Turns, run: gr.State) -> None:
        self.codec = codec
        self.turns = turns
        gr.Markdown(text.VARIATIONS_NOTE)
        with gr.Row():
            vary = gr.Button(
                "Paint it four times", variant="primary", elem_id="pc-vary", scale=0, min_width=240
            )
        grid = plain_html(empty(text.EMPTY_VARIATIONS), elem_id="pc-variations")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=280):
                tokens = gr.Slider(
                    0,
                    1,
                    0,
                    step=1,
                    label="Tokens sent",
                    info=text.RESEND_INFO,
                    interactive=False,
                    elem_id="pc-resend",
                )
            with gr.Column(scale=8, min_width=280):
                resent = plain_html(empty(text.EMPTY_RESENT), elem_id="pc-resent")
        vary.click(self.vary, run, grid, **DEVICE)
        # Not `release`: the keyboard never releases a slider.
        tokens.input(self.resend, [run, tokens], resent, trigger_mode="always_last", **DEVICE)
        self.shown = [grid, tokens, resent]

    def offer(self, run: Run | None) -> tuple[Any, Any, Any]:
        """Forget what was shown of another file; the slider is there for files that it suits."""
        if run is None:
            return empty(text.EMPTY_VARIATIONS), gr.skip(), empty(text.EMPTY_RESENT)
        most = run.stream.tokens_sent if can_be_shorter(run) else 0
        slider = gr.Slider(maximum=max(1, most), value=most, interactive=most > 0)
        reason = text.EMPTY_RESENT if most else _why_not(run)
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
        if run is None or not can_be_shorter(run):
            yield empty(text.EMPTY_RESENT if run is None else _why_not(run))
            return
        yield gr.skip()
        with self.turns.take(request.session_hash or "") as turn:
            left = min(border.count(tokens), run.stream.tokens_sent)
            part = self.codec.truncate(run.stream, tokens=left)
            size = bytes_in_words(sum(part.sizes))
            tag = f"{part.tokens_sent} of {sum(part.tokens_total)} tokens, {size}"
            for frame in paint(self.codec, self.codec.read(part), run.look, turn):
                yield (
                    gr.skip()
                    if frame.picture is None
                    else results.compare(
                        run.decoded,
                        frame.picture,
                        tag=tag,
                        caption=run.contents.caption,
                        left="All its tokens",
                    )
                )


def can_be_shorter(run: Run) -> bool:
    """True if fewer of the file's tokens make a file too."""
    return run.stream.tokens_sent > 0


def _why_not(run: Run) -> str:
    return text.NO_TOKENS


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
    tiles = [_tile(picture, f"Seed {seed}") for seed, picture in enumerate(pictures, 1)]
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
