"""The tab that opens a file or a link: the picture without its original."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.config import OWN_PAINTER, check_choice
from percov2_core.run_settings import USUAL, RunSettings
from percov2_core.ui import border, results, text
from percov2_core.ui.border import Painters, Payload
from percov2_core.ui.device import DEVICE, FREE, Turns, is_loading
from percov2_core.ui.difference import STAGE_JS
from percov2_core.ui.gallery import ASKED_JS, Gallery, Sample
from percov2_core.ui.results import Run, paint_file
from percov2_core.ui.settings import look_of, painter_choice, size_slider
from percov2_core.ui.text import empty, piece, plain_html

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2

_KEEP: Any = gr.skip()


class OpenTab:
    """Layout and callbacks; made inside its `gr.Tab`."""

    def __init__(
        self,
        codec: PerCoV2,
        turns: Turns,
        run: gr.State,
        gallery: Gallery,
        painters: Painters,
        *,
        demo: gr.Blocks,
        tabs: gr.Tabs,
    ) -> None:
        self.codec, self.turns, self.run, self.painters = codec, turns, run, painters
        self.gallery, self.tabs = gallery, tabs
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=280):
                file = gr.File(label="A .pcv2 file", type="filepath", elem_id="pc-file", height=150)
                link = gr.Textbox(label="or a link", lines=3, max_lines=5, elem_id="pc-link-box")
                button = gr.Button("Open the link", variant="primary", elem_id="pc-open-link")
                label = "Cut: at most so many bytes"
                self.size = size_slider(label, elem_id="pc-cut", interactive=False)
                painter = painter_choice(painters, elem_id="pc-file-painter")
            with gr.Column(scale=8, min_width=280):
                self.headline = plain_html(results.quiet_headline("Open a file", text.EMPTY_FILE))
                stage: dict[str, Any] = {"elem_id": "pc-decoded-stage", "js_on_load": STAGE_JS}
                self.stage = plain_html(empty(text.EMPTY_FILE_STAGE), **stage)
        self.details = plain_html(elem_id="pc-decoded-details")
        self.whole = gr.State(None, time_to_live=border.KEEP_FILES_S)  # the run of the whole file
        outputs = [self.headline, self.stage, self.details, run, self.size, self.whole]
        last: dict[str, Any] = {"trigger_mode": "always_last", **DEVICE}
        asked, wanted = [self.whole, self.size, painter], [gallery.asked, painter]
        arrived = demo.load(self.tab_of_address, outputs=tabs, **FREE)
        # Told at once, whoever is painted for.
        now = {"trigger_mode": "always_last", "queue": False, "js": ASKED_JS, **FREE}
        clicked = gallery.shown.open(self.wait, gallery.asked, [tabs, self.stage], **now)
        self.opened = [  # gradio's events that bring a new picture
            file.upload(self.open_file, [file, painter], outputs, preprocess=False, **DEVICE),
            button.click(self.open_link, [link, painter], outputs, **DEVICE),
            arrived.then(self.open_address, outputs=outputs, **DEVICE),
            gr.on([self.size.input, painter.input], self.cut, asked, outputs, **last),
            clicked.success(self.open_sample, wanted, outputs, js=ASKED_JS, **last),
        ]

    def open_file(
        self, payload: Payload | None, painter: str, request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        """A `.pcv2` file was dropped in."""
        yield {self.stage: _KEEP}
        if payload is not None:
            with border.shown_to_user(advice=text.FILE_ADVICE):
                stream, name = border.read_file(payload), Path(border.uploaded(payload).name).stem
                yield from self._open(stream, name, painter, request)

    def open_link(self, pasted: str, painter: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """A link was pasted, or the page was opened by one."""
        yield {self.stage: _KEEP}
        if pasted:
            with border.shown_to_user(advice=text.LINK_ADVICE):
                stream, settings = border.read_link(pasted)
                yield from self._open(stream, "shared", painter, request, settings)

    def tab_of_address(self, request: gr.Request) -> Any:
        """A share link opens to the tab of its picture."""
        shared = request.query_params.get(border.PARAMETER)
        return gr.Tabs(selected="decode") if shared else _KEEP

    def open_address(self, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """The page was opened, perhaps by a share link."""
        shared = request.query_params.get(border.PARAMETER)
        link = f"?{request.query_params}" if shared else ""
        yield from self.open_link(link, OWN_PAINTER, request)

    def wait(self, asked: str, request: gr.Request) -> dict[Any, Any]:
        """A file of the gallery was clicked: what is to be seen until its turn comes."""
        stream = self._sample(asked).stream
        told: dict[str, Any] = {"before": self.turns.before(request.session_hash or "")}
        if is_loading(self.codec):
            told = {"loading": text.LOADING}
        waiting = piece("painting", size=(stream.width, stream.height), **told)
        return {self.tabs: gr.Tabs(selected="decode"), self.stage: waiting}

    def open_sample(
        self, asked: str, painter: str, request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        """Its turn has come."""
        sample = self._sample(asked)
        given = (sample.stream, sample.name, painter, request)
        yield from self._open(*given, original=sample.original)

    def _sample(self, asked: str) -> Sample:
        samples = self.gallery.samples
        return samples[check_choice("example", asked, samples)]

    def cut(
        self, whole: Run | None, size: float, painter: str, request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        """Less of the same file was asked for, or another painter."""
        yield {self.stage: _KEEP}
        if whole:
            part = self.codec.truncate(whole.stream, size=border.count(size))
            settings, original = whole.settings, whole.original
            yield from self._open(part, whole.name, painter, request, settings, whole, original)

    def _open(
        self,
        stream: Stream,
        name: str,
        painter: str,
        request: gr.Request,
        settings: RunSettings | None = None,
        whole: Run | None = None,
        original: Image.Image | None = None,
    ) -> Iterator[dict[Any, Any]]:
        """Paint a file, or a part of the whole one."""
        settings = settings or USUAL
        title = piece("opened_headline", stream=stream, beside=original is not None)
        yield {self.headline: title}
        painting = paint_file(
            self.codec,
            self.turns,
            stream,
            request.session_hash or "",
            name,
            look=look_of(self.codec, stream, settings, self.painters.checked(painter)),
            settings=settings,
            original=original,
        )
        for stage, run in painting:
            view: dict[Any, Any] = {self.stage: stage}
            if run:
                details = results.bits_panel(run)
                if settings != USUAL:
                    told = {"settings": settings.to_json(), "id": "pc-opened-settings"}
                    details += piece("settings_line", **told)
                view |= {self.details: details, self.run: run}
                if whole is None:
                    view |= {self.size: cuts(self.codec, run), self.whole: run}
            yield view


def cuts(codec: PerCoV2, run: Run) -> Any:
    """The size control of a file's cuts: from its caption alone to all of it."""
    from percov2_core.contents import Tokens  # brings the entropy models' libraries

    contents, stream = run.contents, run.stream
    said = Tokens((stream.width, stream.height), contents.caption, contents.fine.tokens, None)
    least = sum(codec.write(said, count=0, seed=stream.seed).sizes)
    most, some = run.size_bytes, stream.tokens_sent > 0
    return gr.Slider(minimum=min(least, most - 1), maximum=most, value=most, interactive=some)
