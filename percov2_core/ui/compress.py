"""The main tab: choose a picture, describe it, compress it, see what comes out of the file."""

from __future__ import annotations

import io
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image, ImageOps

from percov2_core.config import MODES, check_choice
from percov2_core.errors import PerCoError
from percov2_core.ui import border, results, text
from percov2_core.ui.border import Chosen, Painters, Payload
from percov2_core.ui.device import (
    DESCRIBE,
    DEVICE,
    FREE,
    INTAKE,
    MAX_WAITING,
    Turn,
    Turns,
    is_loading,
    paint,
)
from percov2_core.ui.difference import STAGE_JS
from percov2_core.ui.gallery import EXAMPLES_DIR, Gallery
from percov2_core.ui.host import page_address
from percov2_core.ui.results import Run
from percov2_core.ui.settings import Given, Settings, named_preset
from percov2_core.ui.share import share_panel
from percov2_core.ui.text import data_uri, empty, piece, plain_html

if TYPE_CHECKING:
    from percov2_core.codec import Found, PerCoV2
    from percov2_core.contents import Contents, Tokens
    from percov2_core.run_settings import RunSettings

_THUMB_PX = 112
Answer = dict[Any, Any]  # component -> its new value
_KEEP: Any = gr.skip()
_EXAMPLES_JS = """
percov.buttons(element, (key) => trigger('pick', {key}));
percov.pasted(element, upload, (path) => trigger('paste', {path}));"""
_COUNT_JS = "() => ++window.percov.presses"
# What a visitor types while a caption is looked for stays.
_BEFORE_JS = """(...given) => {
    window.percov.caption = document.querySelector('#pc-caption-box textarea').value;
    return given;
}"""
_UNLESS_TYPED_JS = """(said, now) =>
    said && (!now.trim() || now === window.percov.caption) ? said : now"""


class CompressTab:
    """Layout and callbacks, made inside its `gr.Tab`; callbacks answer component -> new value."""

    def __init__(
        self, codec: PerCoV2, turns: Turns, run: gr.State, gallery: Gallery, painters: Painters
    ) -> None:
        self.codec, self.turns, self.run, self.painters = codec, turns, run, painters
        self.examples = {path.stem: path for path in sorted(EXAMPLES_DIR.glob("*.jpg"))}
        self.chosen = gr.State(None, time_to_live=border.KEEP_FILES_S)
        self.done = gr.State([], time_to_live=border.KEEP_FILES_S)  # the visitor's runs
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=280, elem_id="pc-controls"):
                self._controls()
                with gr.Accordion("Advanced", open=False, elem_id="pc-advanced"):
                    self.settings.advanced(codec, painters)
            with gr.Column(scale=8, min_width=280, elem_id="pc-result"):
                self.headline = plain_html(results.quiet_headline(), elem_id="pc-head")
                stage = empty(text.EMPTY_STAGE)
                self.stage = plain_html(stage, elem_id="pc-stage", js_on_load=STAGE_JS)
                gallery.cards()
        with gr.Tabs(elem_id="pc-details-tabs"):
            with gr.Tab("Where bits went"):
                self.bits = plain_html(empty(text.EMPTY_BITS), elem_id="pc-bits")
            with gr.Tab("In numbers"):
                self.numbers = plain_html(empty(text.EMPTY_NUMBERS), elem_id="pc-numbers")
            with gr.Tab("File and QR"):
                self.share = plain_html(empty(text.EMPTY_SHARE), elem_id="pc-share")
        self._connect()

    def _controls(self) -> None:
        kept: dict[str, Any] = {"type": "filepath", "image_mode": None, "format": "png"}
        kept["sources"] = ["upload", "clipboard", "webcam"]
        look: dict[str, Any] = {"label": "Picture", "height": 210, "elem_id": "pc-image"}
        self.image = gr.Image(buttons=[], **kept, **look)
        # The pictures are inside the page, so that they are there at once.
        pictures = {name: _thumbnail(path) for name, path in self.examples.items()}
        buttons = piece("thumbnails", pictures=pictures)
        self.picks = plain_html(buttons, elem_id="pc-examples", js_on_load=_EXAMPLES_JS)
        self.settings = Settings()
        self.cost = gr.Markdown(text.CAPTION_COST_EMPTY, elem_id="pc-cost")
        with gr.Row(elem_id="pc-buttons"):
            self.button = gr.Button(
                "Compress", variant="primary", interactive=False, elem_id="pc-compress", scale=3
            )
            self.cancel_button = gr.Button("Cancel", elem_id="pc-cancel", min_width=90, scale=1)
        self.presses = gr.Number(0, precision=0, visible="hidden")
        self.suggested = gr.Textbox(visible="hidden", label="suggested caption")

    def _connect(self) -> None:
        more = self.settings
        self.picks.pick(self.pick, outputs=self.image, **FREE)
        self.picks.paste(self.paste, outputs=self.image, **FREE)
        read = self.image.change(
            self.choose,
            [self.image, self.chosen, more.mode, more.size],
            [self.chosen, more.caption, self.cost, self.button, more.side, more.size],
            preprocess=False,  # gradio would open the file itself, and fail without words
            trigger_mode="always_last",
            **INTAKE,
        )
        last = {"trigger_mode": "always_last", **FREE}
        # Not by whoever reads the picture: the next one is read while this waits for the model.
        asked, found = [self.chosen, more.captioner], [self.suggested, self.cost]
        for event in (read.success, more.captioner.input):
            event(self.describe, asked, found, js=_BEFORE_JS, **{**last, **DESCRIBE}).success(
                None, [self.suggested, more.caption], more.caption, js=_UNLESS_TYPED_JS, **FREE
            ).success(self.caption_cost, more.caption, self.cost, **FREE)
        filled = [*more.filled, self.cost]
        more.pasted.submit(self.use, [more.pasted, self.chosen], filled, **DESCRIBE)
        more.caption.input(self.caption_cost, more.caption, self.cost, **last)
        pressed = self.button.click(
            self.press,
            [self.chosen, self.presses, more.side],
            [self.presses, self.stage],
            # The browser counts, so that Cancel is understood even if it arrives before Compress.
            js="(chosen, _, side) => [chosen, ++window.percov.presses, side]",
            queue=False,
            **FREE,
        )
        named = gr.on(
            [more.mode.input, more.preset.input, more.painter.input],
            self.apply_preset,
            [self.presses, self.chosen, more.size, more.mode, more.preset, more.painter],
            [self.presses, more.size, more.steps, more.guidance],
            js="(_, ...given) => [++window.percov.presses, ...given]",
            **FREE,
        )
        moved = more.size.input(
            lambda pressed: (border.count(pressed), "hybrid"),
            self.presses,
            [self.presses, more.mode],
            js=_COUNT_JS,
            **FREE,
        )
        given = {self.chosen, self.presses, self.done, *more.filled}
        found = [self.headline, self.stage, more.caption, more.size, self.run, self.done]
        # A newer press replaces the older one, so none may be skipped; of sizes the last counts.
        every, last = {"trigger_mode": "multiple", **DEVICE}, {**last, **DEVICE}
        self.painted = [  # gradio's events at the end of a run
            pressed.success(self.compress, given, found, **every),
            *(one.success(self.resize, given, found, **last) for one in (named, moved)),
        ]
        shown, counted = [self.headline, self.stage], {"js": "() => window.percov.presses", **FREE}
        self.cancel_button.click(self.cancel, self.presses, shown, queue=False, **counted)

    def pick(self, event: gr.EventData) -> str:
        """A click on a thumbnail -> the path of the example."""
        name = check_choice("example", border.told(event, "key"), self.examples)
        return str(self.examples[name])

    def paste(self, event: gr.EventData) -> str:
        """A picture was pasted, and uploaded by the browser -> its path."""
        return str(border.uploaded({"path": border.told(event, "path")}).path)

    def choose(
        self, payload: Payload | None, before: Chosen | None, mode: str, size: float
    ) -> Iterator[Answer]:
        """Read what was uploaded. `payload` is gradio's own file data."""
        if payload and before and border.uploaded(payload).path == before.source:
            # Told twice by gradio; the visitor may be typing, and nothing may follow.
            raise gr.Error(text.TOLD_TWICE, visible=False, print_exception=False)
        # What was chosen before must not be compressed in place of what is shown now.
        yield {
            self.chosen: None,
            self.settings.caption: "",
            self.cost: self.caption_cost(""),
            self.button: gr.Button(interactive=False),
        }
        if payload is None:
            return
        chosen = border.read_picture(payload)
        assert chosen.quick.png_bytes  # measured here, so that compressing need not wait for it
        yield {
            self.chosen: chosen,
            self.settings.caption: "",
            self.button: gr.Button(interactive=True),
            self.settings.side: gr.Radio(visible=True if chosen.large else "hidden"),
            self.settings.size: self.settings.sized(mode, size, chosen.quick.image.size),
        }

    def describe(self, chosen: Chosen | None, captioner: str) -> Iterator[Answer]:
        """A picture was read, or another captioner picked."""
        if chosen is None or captioner == "fixed":
            yield {self.suggested: ""}
            return
        if is_loading(self.codec):
            yield {self.cost: self.caption_cost("")}
        yield {self.suggested: self.codec.describe(chosen.image, captioner=captioner)}

    def use(self, pasted: str, chosen: Chosen | None) -> Answer:
        """Settings of another run were pasted."""
        if (settings := border.read_settings(pasted)) is None:
            return {self.cost: _KEEP}
        if is_loading(self.codec):
            gr.Info(text.LOADING)
        filled = self.settings.put(settings, self.codec, chosen)
        gr.Info(text.TAKEN)
        return filled | {self.cost: self.caption_cost(filled[self.settings.caption])}

    def caption_cost(self, caption: str) -> str:
        """The price of the text, as one types."""
        caption = border.words("caption", caption, border.MAX_CAPTION).strip()
        if is_loading(self.codec):
            return text.CAPTION_LATER
        if not caption:
            return text.CAPTION_COST_EMPTY
        cost = self.codec.caption_bits(caption)
        in_bytes = text.bytes_in_words(-(-round(cost) // 8))
        return f"This text costs **{cost:.0f} bits**, about {in_bytes}."

    def apply_preset(
        self,
        pressed: float,
        chosen: Chosen | None,
        size: float,
        mode: str,
        preset: str,
        painter: str,
    ) -> tuple[Any, ...]:
        sides = chosen.quick.image.size if chosen else (512, 512)
        check_choice("mode", mode, MODES)
        look = named_preset(self.codec, mode, preset, self.painters.checked(painter))
        sized = self.settings.sized(mode, size, sides)
        return border.count(pressed), sized, look.steps, look.guidance

    def press(
        self, chosen: Chosen | None, pressed: float, side_px: float, request: gr.Request
    ) -> tuple[int, str]:
        """Compress was pressed: whatever this visitor pressed before is no longer wanted."""
        if chosen is None:
            raise gr.Error(border.CHOOSE_FIRST, print_exception=False)
        session = request.session_hash or ""
        if (before := self.turns.before(session)) >= MAX_WAITING:
            raise gr.Error(text.full(before), print_exception=False)
        if not self.turns.press(session, border.count(pressed)):
            raise gr.Error(text.CANCELLED, visible=False, print_exception=False)
        size = chosen.at(border.count(side_px)).image.size
        return border.count(pressed), piece("painting", size=size, before=before)

    def compress(self, given: Given, request: gr.Request) -> Iterator[Answer]:
        """Encode, say how small it is, then paint."""
        if given[self.chosen] is None:
            raise gr.Error(border.CHOOSE_FIRST, print_exception=False)
        yield from self._take_turn(given, request, moved=False)

    def _take_turn(self, given: Given, request: gr.Request, *, moved: bool) -> Iterator[Answer]:
        yield {self.stage: _KEEP}
        number = border.count(given[self.presses])
        with self.turns.take(request.session_hash or "", number) as turn:
            try:
                if not turn.dropped.is_set():
                    yield from self._compress(given, given[self.chosen], turn, moved)
                if turn.dropped.is_set() and self.turns.newest(turn.session) <= turn.number:
                    yield self._nothing(text.CANCELLED) | {self.run: None}
            except PerCoError:
                yield self._nothing() | {self.run: None}
                raise

    def resize(self, given: Given, request: gr.Request) -> Iterator[Answer]:
        """Another size was asked for: paint it from the same tokens, where there are any."""
        chosen, side = given[self.chosen], border.count(given[self.settings.side])
        caption = border.words("caption", given[self.settings.caption]).strip()
        if chosen is None or self._found(given, chosen.at(side).image, caption) is None:
            raise gr.Error(text.CANCELLED, visible=False, print_exception=False)
        yield from self._take_turn(given, request, moved=True)

    def _found(self, given: Given, image: Image.Image, caption: str) -> Tokens | None:
        """What the encoder has found in this picture, for this caption, with this effort."""
        runs: list[Run] = given[self.done]
        wanted = (caption, given[self.settings.effort])
        found = (run.tokens for run in runs if run.original is image and run.tokens)
        return next((t for t in found if (t.caption, t.effort) == wanted), None)

    def _kept(self, given: Given, tokens: Tokens, settings: RunSettings) -> Contents | None:
        """The file of an earlier run, which was only painted otherwise."""
        runs: list[Run] = given[self.done]
        same = (r for r in reversed(runs) if r.settings.encoding == settings.encoding)
        return next((run.contents for run in same if run.tokens is tokens), None)

    def _compress(self, given: Given, chosen: Chosen, turn: Turn, moved: bool) -> Iterator[Answer]:
        more, hybrid = self.settings, given[self.settings.mode] == "hybrid"
        image, png_bytes = chosen.at(border.count(given[more.side]))
        if is_loading(self.codec):
            yield {self.stage: piece("painting", size=image.size, loading=text.LOADING)}
        look, said = more.look(given, image, self.painters), more.said(given, self.codec, image)
        if found := self._found(given, image, said):
            tokens = found
        else:
            yield {self.stage: piece("painting", size=image.size)}
            effort = border.check_effort(given[more.effort], image)
            looking = self.codec.looking(image, caption=said, effort=effort)
            if (looked := (yield from self._searching(looking, image, turn))) is None:
                return
            tokens = looked
        settings = more.told(given, self.codec, chosen, said)
        contents = self._kept(given, tokens, settings) if moved else None
        if contents is None:
            stream = more.write(given, self.codec, tokens)
            if not moved:  # a hand that moves the size does not wait for a search
                completing = self.codec.completing(image, tokens, stream)
                if (better := (yield from self._searching(completing, image, turn))) is None:
                    return
                if better is not tokens:
                    stream = more.write(given, self.codec, better)
            contents = self.codec.read(stream)
        stream = contents.stream
        if turn.dropped.is_set():
            return
        headline = results.headline(stream, chosen, png_bytes, given[more.size] if hybrid else 0)
        # What is the same already would jump under the hand that moves it, or types.
        controls: Answer = {} if said == given[more.caption] else {more.caption: said}
        if not (found and hybrid):
            asked = (given[more.mode], given[more.size], image.size)
            controls[more.size] = more.sized(*asked, sum(stream.sizes))
        yield {self.headline: headline} | controls
        for frame in paint(self.codec, contents, look, turn):
            if frame.picture is None:
                yield {self.stage: piece("painting", size=image.size, frame=frame)}
            elif self.turns.finish(turn):
                seen = (frame.picture, frame.step_s, image, turn.number, tokens)
                run = Run(chosen.name, contents, look, headline, *seen, settings)
                done = [*given[self.done], run][-border.KEEP_RUNS :]
                shown = {self.stage: results.compare_run(run), self.run: run, self.done: done}
                yield shown | controls

    def _searching(
        self, parts: Iterator[Found], image: Image.Image, turn: Turn
    ) -> Generator[Answer, None, Tokens | None]:
        """What is to be seen while tokens are looked for -> the tokens; None once nobody waits."""
        began, found = time.monotonic(), None
        for part in parts:
            if turn.dropped.is_set():
                return None
            if (found := part.tokens) is None:
                left_s = (time.monotonic() - began) * (1 / part.share - 1)
                share = {"share": part.share, "left_s": left_s}
                yield {self.stage: piece("painting", size=image.size, **share)}
        return found

    def cancel(self, pressed: float, request: gr.Request) -> Answer:
        """Stop what the visitor's presses began: what waits, what is encoded, what is painted."""
        if self.turns.cancel(request.session_hash or "", border.count(pressed)):
            return self._nothing(text.CANCELLED)
        return {self.stage: _KEEP}

    def _nothing(self, said: str = "") -> Answer:
        headline = results.quiet_headline(*([said, ""] if said else ()))
        return {self.headline: headline, self.stage: empty(text.EMPTY_STAGE)}

    def explain(self, run: Run | None, request: gr.Request) -> tuple[Any, Any]:
        """Where the bits went, and the file to take away."""
        if run is None:
            return empty(text.EMPTY_BITS), empty(text.EMPTY_SHARE)
        return results.bits_panel(run), share_panel(run, address=page_address(request.headers))


def _thumbnail(path: Path) -> str:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        # Lossy, and no picture that anybody compares.
        ImageOps.fit(image, (_THUMB_PX, _THUMB_PX)).save(buffer, "WEBP", quality=80)
    return data_uri(buffer.getvalue(), "image/webp")
