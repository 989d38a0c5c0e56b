"""What a file leaves open: the same file with other seeds, and with fewer of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from percov2_core.codec import PerCoV2
from percov2_core.config import MODES
from percov2_core.ui import compare, invented, text
from percov2_core.ui.handlers import shown_to_user
from percov2_core.ui.html import bytes_in_words, empty
from percov2_core.ui.runs import Run


class Offer(NamedTuple):
    """Outputs of a new run: what can be asked about its file."""

    grid: str
    tokens: Any
    resent: str


class Variations:
    """Holds the loaded codec."""

    def __init__(self, codec: PerCoV2) -> None:
        self.codec = codec

    def offer(self, run: Run | None) -> Offer:
        """Forget what was shown of another file; the slider is there for files that it suits."""
        if run is None:
            return Offer(empty(text.EMPTY_VARIATIONS), gr.skip(), empty(text.EMPTY_RESENT))
        most = run.stream.tokens_sent if can_be_shorter(run) else 0
        reason = text.EMPTY_RESENT if most else _why_not(run)
        slider = gr.Slider(maximum=max(1, most), value=most, interactive=most > 0)
        return Offer(empty(text.READY_VARIATIONS), slider, empty(reason))

    def vary(self, run: Run | None) -> Iterator[str]:
        """The same file with four seeds."""
        if run is None:
            raise gr.Error(text.EMPTY_VARIATIONS, print_exception=False)
        pictures: list[Image.Image] = []
        yield invented.variations_grid(pictures, first_seed=1)
        for seed in range(1, invented.SEEDS + 1):
            with shown_to_user():
                picture = self.codec.decode(
                    run.stream, steps=run.look.steps, guidance=run.look.guidance, seed=seed
                )
            pictures.append(picture)
            yield invented.variations_grid(pictures, first_seed=1)

    def resend(self, run: Run | None, tokens: float) -> str:
        """The first tokens of the same file."""
        if run is None or not can_be_shorter(run):
            return empty(text.EMPTY_RESENT if run is None else _why_not(run))
        with shown_to_user():
            part = self.codec.truncate(run.stream, tokens=min(int(tokens), run.stream.tokens_sent))
            decoded = self.codec.decode(part, steps=run.look.steps, guidance=run.look.guidance)
        size = bytes_in_words(sum(part.sizes))
        tag = f"{part.tokens_sent} of {part.tokens_total} tokens, {size}"
        return compare.compare(
            run.decoded, decoded, tag=tag, caption=run.caption, left=text.ALL_TOKENS
        )


def can_be_shorter(run: Run) -> bool:
    """True if fewer of the file's tokens make a file too."""
    hybrid = MODES["hybrid"].rate
    return MODES[run.stream.mode].rate == hybrid and run.stream.tokens_sent > 0


def _why_not(run: Run) -> str:
    return text.NO_TOKENS if run.stream.mode == "hybrid" else text.NOT_HYBRID
