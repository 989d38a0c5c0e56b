"""The tab that opens a file or a link: the picture without its original."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from percov2_core.bitstream import Stream
from percov2_core.codec import PerCoV2
from percov2_core.contents import Tokens
from percov2_core.run_settings import USUAL, RunSettings
from percov2_core.ui import border, results, text
from percov2_core.ui.border import Payload
from percov2_core.ui.device import DEVICE, FREE, Turns, paint
from percov2_core.ui.results import Run
from percov2_core.ui.settings import look_of, size_slider
from percov2_core.ui.text import empty, piece, plain_html

_KEEP: Any = gr.skip()


class OpenTab:
    """Layout and callbacks; made inside its `gr.Tab`."""

    def __init__(
        self, codec: PerCoV2, turns: Turns, run: gr.State, *, demo: gr.Blocks, tabs: gr.Tabs
    ) -> None:
        self.codec, self.turns, self.run = codec, turns, run
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=280):
                file = gr.File(label="A .pcv2 file", type="filepath", elem_id="pc-file", height=150)
                link = gr.Textbox(label="or a link", lines=3, max_lines=5, elem_id="pc-link-box")
                button = gr.Button("Open the link", variant="primary", elem_id="pc-open-link")
                label = "Cut: at most so many bytes"
                self.size = size_slider(label, elem_id="pc-cut", interactive=False)
            with gr.Column(scale=8, min_width=280):
                self.headline = plain_html(results.quiet_headline("Open a file", text.EMPTY_FILE))
                self.stage = plain_html(empty(text.EMPTY_FILE_STAGE), elem_id="pc-decoded-stage")
        self.details = plain_html(elem_id="pc-decoded-details")
        self.whole = gr.State(None, time_to_live=border.KEEP_FILES_S)  # the run of the whole file
        outputs = [self.headline, self.stage, self.details, run, self.size, self.whole]
        asked, last = [self.whole, self.size], {"trigger_mode": "always_last", **DEVICE}
        arrived = demo.load(self.tab_of_address, outputs=tabs, **FREE)
        self.opened = [  # gradio's events that bring a new picture
            file.upload(self.open_file, file, outputs, preprocess=False, **DEVICE),
            button.click(self.open_link, link, outputs, **DEVICE),
            arrived.then(self.open_address, outputs=outputs, **DEVICE),
            self.size.input(self.cut, asked, outputs, **last),
        ]

    def open_file(self, payload: Payload | None, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """A `.pcv2` file was dropped in."""
        yield {self.stage: _KEEP}
        if payload is not None:
            with border.shown_to_user(advice=text.FILE_ADVICE):
                stream, name = border.read_file(payload), Path(border.uploaded(payload).name).stem
                yield from self._open(stream, name, request)

    def open_link(self, pasted: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """A link was pasted, or the page was opened by one."""
        yield {self.stage: _KEEP}
        if pasted:
            with border.shown_to_user(advice=text.LINK_ADVICE):
                stream, settings = border.read_link(pasted)
                yield from self._open(stream, "shared", request, settings)

    def tab_of_address(self, request: gr.Request) -> Any:
        """A share link opens to the tab of its picture."""
        shared = request.query_params.get(border.PARAMETER)
        return gr.Tabs(selected="decode") if shared else _KEEP

    def open_address(self, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """The page was opened, perhaps by a share link."""
        shared = request.query_params.get(border.PARAMETER)
        yield from self.open_link(f"?{request.query_params}" if shared else "", request)

    def cut(self, whole: Run | None, size: float, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Less of the same file was asked for."""
        yield {self.stage: _KEEP}
        if whole:
            part = self.codec.truncate(whole.stream, size=border.count(size))
            yield from self._open(part, whole.name, request, whole.settings, whole)

    def _open(
        self,
        stream: Stream,
        name: str,
        request: gr.Request,
        settings: RunSettings | None = None,
        whole: Run | None = None,
    ) -> Iterator[dict[Any, Any]]:
        """Paint a file, or a part of the whole one."""
        settings = settings or USUAL
        look, sides = look_of(self.codec, stream, settings), (stream.width, stream.height)
        contents, headline = self.codec.read(stream), piece("opened_headline", stream=stream)
        yield {self.headline: headline}
        with self.turns.take(request.session_hash or "") as turn:
            for frame in paint(self.codec, contents, look, turn):
                if frame.picture is None:
                    yield {self.stage: piece("painting", size=sides, frame=frame)}
                elif self.turns.finish(turn):
                    seen = (frame.picture, frame.step_s)
                    run = Run(name, contents, look, headline, *seen, settings=settings)
                    details, stage = results.bits_panel(run), results.compare_run(run)
                    if settings != USUAL:
                        told = {"settings": settings.to_json(), "id": "pc-opened-settings"}
                        details += piece("settings_line", **told)
                    view = {self.stage: stage, self.details: details, self.run: run}
                    if whole is None:
                        view |= {self.size: cuts(self.codec, run), self.whole: run}
                    yield view


def cuts(codec: PerCoV2, run: Run) -> Any:
    """The size control of a file's cuts: from its caption alone to all of it."""
    contents, stream = run.contents, run.stream
    said = Tokens((stream.width, stream.height), contents.caption, contents.fine.tokens, None)
    least = sum(codec.write(said, count=0, seed=stream.seed).sizes)
    most, some = run.size_bytes, stream.tokens_sent > 0
    return gr.Slider(minimum=min(least, most - 1), maximum=most, value=most, interactive=some)
