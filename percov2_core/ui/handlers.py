"""What the buttons do: one call into the core each, and its answer as component values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from percov2_core.bitstream import Stream
from percov2_core.codec import PerCoV2
from percov2_core.errors import BitstreamError, PerCoError
from percov2_core.ui import bits, compare, runs, share, text
from percov2_core.ui.html import bytes_in_words, empty
from percov2_core.ui.intake import Chosen, Payload, file_of, read_upload, uploaded
from percov2_core.ui.limits import KEEP_RUNS, MAX_WORKING_PIXELS
from percov2_core.ui.progress import states
from percov2_core.ui.runs import Run, Settings
from percov2_core.ui.turns import Turn, Turns

_KEEP: Any = gr.skip()


class Intake(NamedTuple):
    """Outputs of choosing a picture."""

    chosen: Chosen | None
    caption: Any = _KEEP
    cost: Any = _KEEP
    button: Any = _KEEP
    side: Any = _KEEP
    tokens: Any = _KEEP


class View(NamedTuple):
    """Outputs of compressing; what is not given stays as it is."""

    headline: Any = _KEEP
    stage: Any = _KEEP
    caption: Any = _KEEP
    run: Any = _KEEP
    done: Any = _KEEP


@contextlib.contextmanager
def shown_to_user(*, advice: str = "") -> Iterator[None]:
    """Turn the package's own errors into a toast, with what to do. Bugs keep their traceback."""
    try:
        yield
    except PerCoError as error:
        said = f"{error}. {advice}" if advice else str(error)
        raise gr.Error(said, print_exception=False) from error


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


def _cancelled() -> tuple[str, str]:
    return runs.plain_headline(text.CANCELLED, ""), empty(text.EMPTY_STAGE)


class Handlers:
    """Holds the loaded codec, the examples, and which painting each visitor may cancel."""

    def __init__(self, codec: PerCoV2, examples: Mapping[str, Path], turns: Turns) -> None:
        self.codec = codec
        self.examples = examples
        self.turns = turns

    def pick(self, event: gr.EventData) -> str:
        """A click on a thumbnail -> the path of the example."""
        return str(self.examples[event.name])

    def paste(self, event: gr.EventData) -> str:
        """A picture was pasted, and uploaded by the browser -> its path."""
        with shown_to_user():
            return str(uploaded(event.path))

    def choose(
        self, payload: Payload | None, captioner: str, before: Chosen | None
    ) -> Iterator[Intake]:
        """Read what was uploaded, and caption it at once. `payload` is gradio's own file data."""
        if payload and before and file_of(payload).path == before.source:
            yield Intake(_KEEP)  # gradio says everything twice, and the visitor may be typing
            return
        # What was chosen before must not be compressed in place of what is shown now.
        yield Intake(None, "", text.CAPTION_COST_EMPTY, gr.Button(interactive=False))
        if payload is None:
            return
        with shown_to_user():
            chosen = read_upload(*file_of(payload))
            assert chosen.quick.png_bytes  # measured here, so that compressing need not wait for it
        ready = Intake(
            chosen=chosen,
            button=gr.Button(interactive=True),
            side=gr.Radio(visible=True if chosen.large else "hidden"),
            tokens=gr.Slider(maximum=runs.tokens_of(chosen.quick.image)),
        )
        yield ready  # a captioner that cannot be had is no reason to refuse the picture
        if captioner != "fixed":
            with shown_to_user():
                caption = self.codec.describe(chosen.image, captioner=captioner)
            yield ready._replace(caption=caption, cost=self.caption_cost(caption))

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

    def press(
        self, chosen: Chosen | None, pressed: float, side_px: int, request: gr.Request
    ) -> tuple[int, str]:
        """Compress was pressed: whatever this visitor pressed before is no longer wanted."""
        if chosen is None:
            raise gr.Error(text.CHOOSE_FIRST, print_exception=False)
        if not self.turns.press(request.session_hash or "", int(pressed)):
            raise gr.Error(text.CANCELLED, visible=False, print_exception=False)
        size = chosen.at(side_px).image.size
        return int(pressed), compare.painting(size, note=text.WAITING)

    def compress(
        self,
        chosen: Chosen | None,
        pressed: float,
        done: list[Run],
        request: gr.Request,
        *values: Any,
    ) -> Iterator[View]:
        """Encode, say how small it is, then paint. `done`: the visitor's runs so far."""
        if chosen is None:
            raise gr.Error(text.CHOOSE_FIRST, print_exception=False)
        yield View()
        with self.turns.take(request.session_hash or "", int(pressed)) as turn:
            try:
                if not turn.dropped.is_set():
                    for view in self._compress(chosen, Settings(*values), turn):
                        if isinstance(view.run, Run):
                            view = view._replace(done=[*done, view.run][-KEEP_RUNS:])
                        yield view
                elif self.turns.newest(turn.session) <= turn.number:
                    yield View(*_cancelled(), run=None)
            except PerCoError as error:
                yield View(runs.empty_headline(), empty(text.EMPTY_STAGE), run=None)
                raise gr.Error(str(error), print_exception=False) from error

    def _compress(self, chosen: Chosen, settings: Settings, turn: Turn) -> Iterator[View]:
        image, png_bytes = chosen.at(settings.side_px)
        yield View(stage=compare.painting(image.size, note=text.ENCODING))
        caption = runs.wanted_caption(self.codec, image, settings)
        stream = runs.encode(self.codec, image, caption, settings)
        headline = runs.headline(stream, chosen, png_bytes)
        if not turn.dropped.is_set():
            yield View(headline, caption=_KEEP if caption == settings.caption else caption)
        for state in states(self.codec, stream, settings.look, turns=self.turns, turn=turn):
            if painted := state.painted:
                run = Run(
                    name=chosen.name,
                    caption=caption,
                    stream=stream,
                    look=settings.look,
                    headline=headline,
                    painted=painted,
                    original=image,
                    number=turn.number,
                )
                yield View(stage=compare.of_run(run), run=run)
            elif state.stage:
                yield View(stage=state.stage)
            elif self.turns.newest(turn.session) <= turn.number:
                yield View(*_cancelled(), run=None)

    def cancel(self, pressed: float, request: gr.Request) -> tuple[Any, Any]:
        """Stop what the visitor's presses began: what waits, what is encoded, what is painted."""
        if not self.turns.cancel(request.session_hash or "", int(pressed)):
            return _KEEP, _KEEP
        return _cancelled()

    def forget(self, request: gr.Request) -> None:
        """A visitor left."""
        self.turns.forget(request.session_hash or "")

    def explain(self, run: Run | None, request: gr.Request) -> tuple[Any, Any]:
        """Where the bits went, and the file to take away."""
        if run is None:
            return empty(text.EMPTY_BITS), empty(text.EMPTY_SHARE)
        with shown_to_user():
            contents = self.codec.read(run.stream)
        address = share.page_address(request.headers)
        return (
            bits.bits_panel(run.stream, contents, run.decoded),
            share.share_panel(run.stream, address=address, name=run.name),
        )
