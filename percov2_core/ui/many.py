"""The tab for many pictures: one setting for all, one ZIP of files and one of pictures.

Every picture is an event of its own: the end of one begins the next, which goes to the end of the
device's queue, so that other visitors get their turn in between.
"""

from __future__ import annotations

import io
import secrets
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from percov2_core.bitstream import MAX_FILE_BYTES, SUFFIX
from percov2_core.config import MODES, check_choice
from percov2_core.errors import PerCoError
from percov2_core.ui import archive, border, text
from percov2_core.ui.archive import Item
from percov2_core.ui.border import COMFORTABLE_SIDE_PX
from percov2_core.ui.device import (
    DEVICE,
    FREE,
    INTAKE,
    MAX_WAITING,
    Look,
    Turn,
    Turns,
    is_loading,
    paint,
)
from percov2_core.ui.host import page_address
from percov2_core.ui.settings import LEAST_BYTES, size_slider
from percov2_core.ui.text import bytes_in_words, control, data_uri, empty, piece, plain_html

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2
    from percov2_core.evaluation.judge import Judge

Answer = dict[Any, Any]  # component -> its new value
_EFFORTS = {label: name for label, name in text.EFFORTS.items() if name != "best"}  # takes minutes
_SHOW_JS = "percov.buttons(element, (key) => trigger('show', {key}))"
_KEEP: Any = gr.skip()


@dataclass(frozen=True)
class Row:
    """What came of one picture, or why nothing did."""

    item: Item
    size_bytes: int = 0  # of the picture's own file
    data: bytes = b""  # the `.pcv2` file
    psnr: float | None = None  # dB
    caption: str = ""
    problem: str = ""

    @property
    def stem(self) -> str:
        return Path(self.item.name).stem


@dataclass(eq=False)
class Batch:
    """A visitor's pictures, one setting for all, and what is done of them so far."""

    items: list[Item]
    mode: str
    size: int | None  # at most so many bytes each, in place of the mode
    effort: str
    pictures: Path  # a ZIP of the decoded ones
    rows: list[Row] = field(default_factory=list)
    stopped: bool = False
    turn: Turn | None = None  # on the device

    @property
    def waits(self) -> bool:
        """Whether a picture is left to do."""
        return not self.stopped and len(self.rows) < len(self.items)

    @property
    def done(self) -> list[Row]:
        return [row for row in self.rows if row.data]

    def stop(self) -> None:
        self.stopped = True
        if self.turn:
            self.turn.dropped.set()


class ManyTab:
    """Layout and callbacks; made inside its `gr.Tab`."""

    def __init__(self, codec: PerCoV2, turns: Turns) -> None:
        self.codec, self.turns = codec, turns
        self.batch = gr.State(None, time_to_live=border.KEEP_FILES_S)
        gr.Markdown(text.MANY_NOTE)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=280):
                self._controls()
            with gr.Column(scale=8, min_width=280):
                self.said = plain_html(elem_id="pc-many-said")
                self.table = plain_html(
                    empty(text.EMPTY_MANY), js_on_load=_SHOW_JS, elem_id="pc-many-table"
                )
                self.save = plain_html(elem_id="pc-many-save")
        self.stage = plain_html(elem_id="pc-many-stage")
        self.next = gr.Number(0, precision=0, visible="hidden")
        self._connect()

    def _controls(self) -> None:
        self.files = gr.File(
            label="Pictures, or a ZIP of them",
            file_count="multiple",
            height=180,
            elem_id="pc-many-files",
        )
        modes = list(text.MODES.items())
        self.mode = gr.Radio(modes, value="ultra-low", **control("Mode of all"))
        label = "At most so many bytes each"
        self.size = size_slider(label, elem_id="pc-many-size", visible="hidden")
        self.effort = gr.Radio(list(_EFFORTS.items()), value="fast", **control("Effort for all"))
        with gr.Row():
            self.button = gr.Button(
                "Compress all", variant="primary", elem_id="pc-many-start", scale=3
            )
            self.cancel_button = gr.Button(
                "Cancel", elem_id="pc-many-cancel", min_width=90, scale=1
            )

    def _connect(self) -> None:
        sized: Any = {True: True, False: "hidden"}
        self.mode.input(
            lambda mode: gr.Slider(visible=sized[mode == "hybrid"]), self.mode, self.size, **FREE
        )
        shown = [self.batch, self.said, self.table, self.save, self.stage, self.next, self.button]
        given = [self.files, self.mode, self.size, self.effort, self.batch, self.next]
        self.button.click(self.start, given, shown, preprocess=False, **INTAKE)
        every = {"trigger_mode": "multiple", **DEVICE}
        self.next.change(self.step, [self.batch, self.next], shown, **every)
        stopped = [self.said, self.button]
        self.cancel_button.click(self.cancel, self.batch, stopped, queue=False, **FREE)
        self.table.show(self.show, self.batch, self.stage, **INTAKE)

    @cached_property
    def judge(self) -> Judge:
        from percov2_core.evaluation.judge import Judge  # loads torch

        return Judge(["psnr"])

    def start(
        self,
        files: object,
        mode: str,
        size: float,
        effort: str,
        before: Batch | None,
        number: float,
        request: gr.Request,
    ) -> Answer:
        """List what was uploaded, and begin with the first picture. `files` are gradio's own."""
        if (waiting := self.turns.before(request.session_hash or "")) >= MAX_WAITING:
            raise gr.Error(text.full(waiting), print_exception=False)
        most = None
        if check_choice("mode", mode, MODES) == "hybrid":
            most = border.whole("size", size, LEAST_BYTES, MAX_FILE_BYTES)
        check_choice("effort", effort, _EFFORTS.values())
        after = border.count(number) + 1
        items = archive.list_pictures(files)
        if before:
            before.stop()
        folder = Path(get_upload_folder()) / secrets.token_hex(16)
        batch = Batch(items, mode, most, effort, folder / "percov2-pictures.zip")
        self.files.temp_files.add(str(batch.pictures))  # gradio removes it in time
        return {
            **self._seen(batch, request),
            self.batch: batch,
            self.stage: "",
            self.next: after,
            self.button: gr.Button(interactive=False),
        }

    def step(self, batch: Batch | None, number: float, request: gr.Request) -> Iterator[Answer]:
        """Compress the next picture; what it ends with begins the one after it."""
        yield {self.said: _KEEP}
        if batch is None or not batch.waits:
            return
        item, row = batch.items[len(batch.rows)], None
        if is_loading(self.codec):
            yield {self.said: _progress(batch, text.LOADING, 0.0)}
        with self.turns.take(request.session_hash or "") as batch.turn:
            try:
                for found in self._compress(item, batch, batch.turn):
                    if isinstance(found, Row):
                        row = found
                    else:
                        yield {self.said: _progress(batch, item.name, found)}
            except PerCoError as error:
                row = Row(item, problem=str(error))
        if row and not batch.stopped:
            batch.rows.append(row)
        answer = self._seen(batch, request)
        if batch.waits:
            yield answer | {self.next: border.count(number) + 1}
        else:
            yield answer | {self.button: gr.Button(interactive=True)}

    def _compress(self, item: Item, batch: Batch, turn: Turn) -> Iterator[float | Row]:
        """Shares of the work, then what came of it; ends without if nobody wants it."""
        chosen = archive.read_item(item)
        image = chosen.at(COMFORTABLE_SIDE_PX).image
        for part in self.codec.looking(image, effort=batch.effort):
            if turn.dropped.is_set():
                return
            yield part.share / 3
        assert part.tokens is not None
        tokens = part.tokens
        stream = self.codec.write(tokens, batch.mode, size=batch.size)
        for part in self.codec.completing(image, tokens, stream):
            if turn.dropped.is_set():
                return
            yield (1 + part.share) / 3
        if part.tokens is not None and part.tokens is not tokens:
            stream = self.codec.write(part.tokens, batch.mode, size=batch.size)
        contents = self.codec.read(stream)
        preset = self.codec.presets[stream.mode]["balanced"]
        border.check_work(*image.size, preset.steps)
        for frame in paint(self.codec, contents, Look(preset.steps, preset.guidance), turn):
            yield (2 + frame.share) / 3
            if frame.picture:
                psnr = self.judge.score(self.judge.see(image), frame.picture).psnr
                row = Row(item, chosen.size_bytes, stream.to_bytes(), psnr, contents.caption)
                batch.pictures.parent.mkdir(exist_ok=True)
                with zipfile.ZipFile(batch.pictures, "a") as kept:
                    kept.writestr(f"{row.stem}.png", _png(frame.picture))
                yield row

    def _seen(self, batch: Batch, request: gr.Request) -> Answer:
        waiting = [item.name for item in batch.items[len(batch.rows) :]]
        files = {f"{row.stem}{SUFFIX}": row.data for row in batch.done}
        address = f"{page_address(request.headers)}gradio_api/file={batch.pictures}"
        saved = {"files": len(files), "data": data_uri(_zipped(files), "application/zip")}
        name = waiting[0] if batch.waits else ""
        return {
            self.said: _progress(batch, name, 0.0),
            self.table: piece("many", rows=batch.rows, waiting=waiting, stopped=batch.stopped),
            self.save: piece("many_save", address=address, **saved) if files else "",
        }

    def cancel(self, batch: Batch | None) -> Answer:
        """Stop; what is done is kept."""
        if batch is None or not batch.waits:
            return {self.said: _KEEP}
        batch.stop()
        return {self.said: _progress(batch, "", 0.0), self.button: gr.Button(interactive=True)}

    def show(self, event: gr.EventData, batch: Batch | None) -> str:
        """A click on a line of the table: its picture, before and after."""
        key = border.told(event, "key")
        row = next((row for row in batch.done if row.stem == key), None) if batch else None
        if batch is None or row is None:
            raise gr.Error(text.RUN_FORGOTTEN, print_exception=False)
        try:
            with zipfile.ZipFile(batch.pictures) as kept:
                decoded = Image.open(io.BytesIO(kept.read(f"{row.stem}.png")))
        except FileNotFoundError as error:
            raise gr.Error(text.RUN_FORGOTTEN, print_exception=False) from error
        original = archive.read_item(row.item).at(COMFORTABLE_SIDE_PX).image
        tag = bytes_in_words(len(row.data))
        said = {"tag": tag, "caption": row.caption, "run": "", "of": row.item.name}
        return piece("compare", original=original, decoded=decoded, **said)


def _progress(batch: Batch, name: str, share: float) -> str:
    done, total = len(batch.rows), len(batch.items)
    wrong, stopped = done - len(batch.done), batch.stopped
    known = {"done": done, "total": total, "wrong": wrong, "stopped": stopped}
    return piece("many_progress", now=name, share=(done + share) / total, **known)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return buffer.getvalue()
