"""What opening a file or a link does: the picture without its original."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from percov2_core.bitstream import Stream
from percov2_core.codec import Contents, PerCoV2
from percov2_core.ui import bits, compare, runs, share, text
from percov2_core.ui.handlers import check_paintable, shown_to_user
from percov2_core.ui.intake import Payload, file_of, read_stream
from percov2_core.ui.painting import Look
from percov2_core.ui.progress import states
from percov2_core.ui.runs import Run
from percov2_core.ui.turns import Turns

_KEEP: Any = gr.skip()


class Opened(NamedTuple):
    """Outputs of decoding a file."""

    headline: Any = _KEEP
    stage: Any = _KEEP
    details: Any = _KEEP
    run: Any = _KEEP


class Opening:
    """Holds the loaded codec, and which painting each visitor still wants."""

    def __init__(self, codec: PerCoV2, turns: Turns) -> None:
        self.codec = codec
        self.turns = turns

    def open_file(self, payload: Payload | None, request: gr.Request) -> Iterator[Opened]:
        """A `.pcv2` file was dropped in."""
        yield Opened()
        if payload is None:
            return
        with shown_to_user(advice=text.FILE_ADVICE):
            file = file_of(payload)
            yield from self._open(read_stream(file.path), Path(file.name).stem, request)

    def open_link(self, pasted: str, request: gr.Request) -> Iterator[Opened]:
        """A link was pasted."""
        yield Opened()
        if not pasted.strip():
            return
        with shown_to_user(advice=text.LINK_ADVICE):
            yield from self._open(share.read_link(pasted), "shared", request)

    def tab_of_address(self, request: gr.Request) -> Any:
        """A share link opens to the tab of its picture."""
        return gr.Tabs(selected="decode") if request.query_params.get(share.PARAMETER) else _KEEP

    def open_address(self, request: gr.Request) -> Iterator[Opened]:
        """The page was opened by a share link."""
        yield Opened()
        shared = request.query_params.get(share.PARAMETER)
        if not shared:
            return
        with shown_to_user(advice=text.LINK_ADVICE):
            yield from self._open(Stream.from_text(shared), "shared", request)

    def _open(self, stream: Stream, name: str, request: gr.Request) -> Iterator[Opened]:
        check_paintable(stream)
        contents = self.codec.read(stream)
        preset = self.codec.presets[stream.mode]["balanced"]
        look = Look(preset.steps, preset.guidance)
        headline = runs.file_headline(stream)
        yield Opened(headline=headline)
        with self.turns.take(request.session_hash or "") as turn:
            for state in states(self.codec, stream, look, turns=self.turns, turn=turn):
                if painted := state.painted:
                    run = Run(name, contents.caption, stream, look, headline, painted)
                    yield _opened(run, contents)
                elif state.stage:
                    yield Opened(stage=state.stage)


def _opened(run: Run, contents: Contents) -> Opened:
    return Opened(
        stage=compare.of_run(run),
        details=bits.bits_panel(run.stream, contents, run.decoded),
        run=run,
    )
