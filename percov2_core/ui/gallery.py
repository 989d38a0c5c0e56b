"""Real files of the bundled model: the first thing that a visitor sees, and the presenter's mode.

`?stage=1` fills the screen with one file after the other; `python -m tests.gallery` makes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from percov2_core import image_io
from percov2_core.bitstream import SUFFIX, Stream
from percov2_core.config import OWN_PAINTER, check_choice
from percov2_core.run_settings import USUAL
from percov2_core.ui import border
from percov2_core.ui.device import DEVICE, FREE, Turns
from percov2_core.ui.host import page_address
from percov2_core.ui.results import paint_file
from percov2_core.ui.settings import look_of
from percov2_core.ui.share import qr_svg
from percov2_core.ui.text import data_uri, piece, plain_html

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2

EXAMPLES_DIR = Path(__file__).parents[2] / "assets" / "examples"
GALLERY_DIR = EXAMPLES_DIR.with_name("gallery")
PREVIEW_SUFFIX = ".webp"
_CARDS_JS = "percov.asks(element, () => trigger('open'))"
_STAGE_JS = "percov.stages(element, () => trigger('turn'))"
ASKED_JS = "(_, ...given) => [window.percov.asked, ...given]"


@dataclass(frozen=True)
class Sample:
    """One file, what it looks like, and the picture that it was made of."""

    key: str
    name: str
    stream: Stream
    preview: str  # address of a small picture
    source: Path

    @property
    def size_bytes(self) -> int:
        return sum(self.stream.sizes)

    @property
    def original(self) -> Image.Image:
        return image_io.load(self.source)


def read_samples(codec: PerCoV2, folder: Path) -> dict[str, Sample]:
    """The files of `folder` that this model wrote, the smallest first."""
    found: dict[str, Sample] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        stream = Stream.from_bytes(path.read_bytes())
        if stream.fingerprint == codec.fingerprint:
            example = path.stem.partition("-")[2]  # of "0124-kodim07-shutters"
            preview = data_uri(path.with_suffix(PREVIEW_SUFFIX).read_bytes(), "image/webp")
            name = example.partition("-")[2].replace("-", " ")
            source = EXAMPLES_DIR / f"{example}.jpg"
            found[path.stem] = Sample(path.stem, name, stream, preview, source)
    return found


class Gallery:
    """The cards and the stage; `cards.open` says which file was clicked."""

    def __init__(self, codec: PerCoV2, turns: Turns) -> None:
        self.codec, self.turns = codec, turns
        self.samples = read_samples(codec, GALLERY_DIR)
        self.cards_at = lru_cache(maxsize=8)(self._cards_at)  # QR codes take a second

    def cards(self) -> gr.HTML:
        """To be called where they are to be."""
        self.asked = gr.Textbox(visible="hidden", label="file asked for")
        self.shown = plain_html("", elem_id="pc-gallery", js_on_load=_CARDS_JS)
        return self.shown

    def stage(self, demo: gr.Blocks) -> None:
        """The presenter's mode, hidden where nobody asked for it."""
        if not self.samples:
            return
        # The QR codes hold the page's address, which only a visitor's browser knows.
        demo.load(self.fill, outputs=self.shown, queue=False, **FREE)
        stage = plain_html("", elem_id="pc-show", js_on_load=_STAGE_JS)
        last: dict[str, Any] = {"trigger_mode": "always_last", "js": ASKED_JS, **DEVICE}
        stage.turn(self.present, self.asked, stage, **last)

    def fill(self, request: gr.Request) -> str:
        return self.cards_at(page_address(request.headers))

    def _cards_at(self, address: str) -> str:
        cards = [(s, qr_svg(border.link_to(s.stream, address))) for s in self.samples.values()]
        return piece("gallery", cards=cards) if cards else ""

    def present(self, asked: str, request: gr.Request) -> Iterator[str]:
        """This file, at first the smallest, is painted for all to see."""
        keys = list(self.samples)
        at = keys.index(check_choice("example", asked, keys)) if asked else 0
        near = {"before": keys[at - 1], "after": keys[(at + 1) % len(keys)]}
        sample, address = self.samples[keys[at]], page_address(request.headers)
        code = qr_svg(border.link_to(sample.stream, address))
        said = {"sample": sample, "at": at + 1, "total": len(keys), "code": code, **near}
        given = (sample.stream, request.session_hash or "", sample.name)
        look = look_of(self.codec, sample.stream, USUAL, OWN_PAINTER)
        yield gr.skip()
        for figure, run in paint_file(
            self.codec, self.turns, *given, look=look, original=sample.original
        ):
            yield piece("show", figure=figure, caption=run.contents.caption if run else "", **said)
