"""What the buttons do: one call into the core each, and its answer as component values."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from percov2_core.bitstream import Stream
from percov2_core.codec import PerCoV2
from percov2_core.errors import BitstreamError, PerCoError
from percov2_core.ui import bits, compare, runs, share, text
from percov2_core.ui.html import bytes_in_words, empty
from percov2_core.ui.intake import Chosen, Payload, file_of, read_stream, read_upload
from percov2_core.ui.limits import MAX_WORKING_PIXELS
from percov2_core.ui.painting import Cancelled, Look, Painted, paint
from percov2_core.ui.runs import Run, Settings

_KEEP: Any = gr.skip()


class Intake(NamedTuple):
    """Outputs of choosing a picture."""

    chosen: Chosen | None
    caption: str
    cost: str
    button: Any
    side: Any


class View(NamedTuple):
    """Outputs of compressing; what is not given stays as it is."""

    headline: Any = _KEEP
    stage: Any = _KEEP
    caption: Any = _KEEP
    run: Any = _KEEP


class Opened(NamedTuple):
    """Outputs of decoding a file."""

    tab: Any = _KEEP
    headline: Any = _KEEP
    stage: Any = _KEEP
    details: Any = _KEEP
    run: Any = _KEEP


@contextlib.contextmanager
def shown_to_user() -> Iterator[None]:
    """Turn the package's own errors into a toast. Bugs keep their traceback."""
    try:
        yield
    except PerCoError as error:
        raise gr.Error(str(error), print_exception=False) from error


def check_paintable(stream: Stream) -> None:
    """Refuse a picture that would keep the device for minutes.

    Raises:
        BitstreamError: if the picture has too many pixels.
    """
    if stream.width * stream.height > MAX_WORKING_PIXELS:
        raise BitstreamError(
            f"picture: this page paints at most {MAX_WORKING_PIXELS / 1e6:.1f} megapixels, "
            f"got {stream.width}x{stream.height}: use the command line"
        )


class Handlers:
    """Holds the loaded codec, and which painting each visitor may cancel."""

    def __init__(self, codec: PerCoV2, examples: Mapping[str, Path]) -> None:
        self.codec = codec
        self.examples = examples
        self._running: dict[str, threading.Event] = {}

    def pick(self, event: gr.EventData) -> str:
        """A click on a thumbnail -> the path of the example."""
        return str(self.examples[event.name])

    def choose(self, payload: Payload | None, captioner: str) -> Intake:
        """Read what was uploaded, and caption it at once. `payload` is gradio's own file data."""
        if payload is None:
            return Intake(None, "", "", gr.Button(interactive=False), gr.Radio(visible=False))
        with shown_to_user():
            chosen = read_upload(*file_of(payload))
            assert chosen.quick.png_bytes  # measured here, so that compressing need not wait for it
            caption = ""
            if captioner != "fixed":
                caption = self.codec.describe(chosen.image, captioner=captioner)
        return Intake(
            chosen,
            caption,
            self.caption_cost(caption),
            gr.Button(interactive=True),
            gr.Radio(visible=chosen.large),
        )

    def recaption(self, chosen: Chosen | None, captioner: str) -> tuple[Any, Any]:
        """Another captioner was picked."""
        if chosen is None or captioner == "fixed":
            return _KEEP, _KEEP
        with shown_to_user():
            caption = self.codec.describe(chosen.image, captioner=captioner)
        return caption, self.caption_cost(caption)

    def caption_cost(self, caption: str) -> str:
        """The price of the text, as one types."""
        if not caption.strip():
            return text.CAPTION_COST_EMPTY
        cost = self.codec.caption_bits(caption.strip())
        return f"This text costs **{cost:.0f} bits**, about {bytes_in_words(-(-round(cost) // 8))}."

    def apply_preset(self, mode: str, preset: str) -> tuple[int, float]:
        chosen = self.codec.presets[mode][preset]
        return chosen.steps, chosen.guidance

    def compress(self, chosen: Chosen | None, request: gr.Request, *values: Any) -> Iterator[View]:
        """Encode, say how small it is, then paint."""
        if chosen is None:
            raise gr.Error(text.CHOOSE_FIRST, print_exception=False)
        settings = Settings(*values)
        image, png_bytes = chosen.at(settings.side_px)
        cancel = self._begin(request)
        with shown_to_user():
            yield View(stage=compare.painting(image.size, frame=None, picture=None))
            caption = runs.wanted_caption(self.codec, image, settings)
            stream = runs.encode(self.codec, image, caption, settings)
            headline = runs.headline(stream, chosen, png_bytes)
            yield View(headline, caption=caption)
            tag = bytes_in_words(sum(stream.sizes))
            for stage, painted in self._painted(stream, settings.look, cancel):
                if painted is None:
                    yield View(stage=stage)
                    continue
                shown = compare.compare(image, painted.picture, tag=tag, caption=caption)
                run = Run(chosen.name, caption, stream, settings.look, headline, painted, image)
                yield View(stage=shown, run=run)

    def _begin(self, request: gr.Request) -> threading.Event:
        cancel = self._running[request.session_hash or ""] = threading.Event()
        return cancel

    def _end(self, cancel: threading.Event) -> None:
        """The painting is done: nothing is left to cancel."""
        for session in [key for key, event in self._running.items() if event is cancel]:
            self._running.pop(session, None)

    def _painted(
        self, stream: Stream, look: Look, cancel: threading.Event
    ) -> Iterator[tuple[str, Painted | None]]:
        """(HTML of the state, None) while painting; at the end ("", the picture)."""
        latest = None
        size = (stream.width, stream.height)
        with contextlib.suppress(Cancelled):
            for frame in paint(self.codec, stream, look, cancel=cancel):
                latest = frame.picture or latest
                if frame.finished and frame.picture:
                    self._end(cancel)
                    yield "", Painted(frame.picture, frame.step_s)
                else:
                    yield compare.painting(size, frame=frame, picture=latest), None

    def cancel(self, request: gr.Request) -> tuple[Any, Any]:
        """Stop the visitor's own painting."""
        running = self._running.pop(request.session_hash or "", None)
        if running is None:
            return _KEEP, _KEEP
        running.set()
        return runs.plain_headline(text.CANCELLED, ""), empty(text.EMPTY_STAGE)

    def forget(self, request: gr.Request) -> None:
        """A visitor left."""
        if running := self._running.pop(request.session_hash or "", None):
            running.set()

    def explain(self, run: Run | None, request: gr.Request) -> tuple[Any, Any]:
        """Where the bits went, and the file to take away."""
        if run is None:
            return _KEEP, _KEEP
        with shown_to_user():
            contents = self.codec.read(run.stream)
        address = share.page_address(request.headers)
        return (
            bits.bits_panel(run.stream, contents, run.decoded),
            share.share_panel(run.stream, address=address, name=run.name),
        )

    def open_file(self, payload: Payload | None, request: gr.Request) -> Iterator[Opened]:
        """A `.pcv2` file was dropped in."""
        if payload is None:
            return
        with shown_to_user():
            file = file_of(payload)
            yield from self._open(read_stream(file.path), Path(file.name).stem, request)

    def open_link(self, pasted: str, request: gr.Request) -> Iterator[Opened]:
        """A link was pasted."""
        if not pasted.strip():
            return
        with shown_to_user():
            yield from self._open(share.read_link(pasted), "shared", request)

    def open_address(self, request: gr.Request) -> Iterator[Opened]:
        """The page was opened by a share link."""
        shared = request.query_params.get(share.PARAMETER)
        if not shared:
            return
        yield Opened(tab=gr.Tabs(selected="decode"))
        with shown_to_user():
            yield from self._open(Stream.from_text(shared), "shared", request)

    def _open(self, stream: Stream, name: str, request: gr.Request) -> Iterator[Opened]:
        check_paintable(stream)
        contents = self.codec.read(stream)
        preset = self.codec.presets[stream.mode]["balanced"]
        look = Look(preset.steps, preset.guidance)
        headline = runs.file_headline(stream)
        yield Opened(headline=headline)
        for state, painted in self._painted(stream, look, self._begin(request)):
            if painted is None:
                yield Opened(stage=state)
                continue
            tag = bytes_in_words(sum(stream.sizes))
            yield Opened(
                stage=compare.single(painted.picture, tag=tag, caption=contents.caption),
                details=bits.bits_panel(stream, contents, painted.picture),
                run=Run(name, contents.caption, stream, look, headline, painted),
            )
