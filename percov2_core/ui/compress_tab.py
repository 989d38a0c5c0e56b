"""The layout of the main tab, and which of its controls calls what."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from percov2_core.codec import MAX_GUIDANCE, MAX_STEPS, PerCoV2
from percov2_core.config import DEFAULT_SCHEDULE
from percov2_core.ui import runs, text
from percov2_core.ui.examples import thumbnails
from percov2_core.ui.handlers import Handlers
from percov2_core.ui.html import empty
from percov2_core.ui.limits import COMFORTABLE_SIDE_PX
from percov2_core.ui.wiring import DEVICE, FREE, INTAKE, plain_html, visitor_state

# Pictures are also pasted anywhere on this tab. Not through gr.Image: its own button asks for a
# permission first, and a picture that is shown would have to be removed before.
_PICK_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button) trigger('pick', {name: button.dataset.name});
});
document.addEventListener('paste', async (event) => {
  const picture = [...event.clipboardData.files].find((file) => file.type.startsWith('image/'));
  if (!picture || !element.offsetParent) return;
  event.preventDefault();
  const file = await upload(picture).catch(() => null);
  trigger('paste', {path: file?.path ?? ''});
});"""

# The browser counts, so that Cancel is understood even if it arrives before Compress.
_PRESS_JS = "(chosen, _, side) => [chosen, ++window.percov.presses, side]"


class Advanced(NamedTuple):
    """Controls that most visitors never open."""

    captioner: gr.Radio
    preset: gr.Radio
    steps: gr.Slider
    guidance: gr.Slider
    seed: gr.Number
    schedule: gr.Dropdown
    tokens: gr.Slider
    target: gr.Number


class Controls(NamedTuple):
    """The left column."""

    chosen: gr.State
    image: gr.Image
    picks: gr.HTML
    side: gr.Radio
    mode: gr.Radio
    caption: gr.Textbox
    cost: gr.Markdown
    compress: gr.Button
    cancel: gr.Button
    presses: gr.Number
    advanced: Advanced


class Results(NamedTuple):
    """What compressing fills."""

    headline: gr.HTML
    stage: gr.HTML
    numbers: gr.HTML
    bits: gr.HTML
    share: gr.HTML


class CompressTab(NamedTuple):
    """What other tabs connect to."""

    controls: Controls
    results: Results
    compressed: Any  # gradio's event at the end of a run
    done: gr.State  # the visitor's runs


def compress_tab(handlers: Handlers, codec: PerCoV2, run: gr.State) -> CompressTab:
    """Build the tab inside the current one."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280, elem_id="pc-controls"):
            controls = _controls(handlers, codec)
        with gr.Column(scale=8, min_width=280, elem_id="pc-result"):
            headline = plain_html(runs.empty_headline(), elem_id="pc-head")
            stage = plain_html(empty(text.EMPTY_STAGE), elem_id="pc-stage")
    with gr.Tabs(elem_id="pc-details-tabs"):
        with gr.Tab("Where bits went"):
            bits = plain_html(empty(text.EMPTY_BITS), elem_id="pc-bits")
        with gr.Tab("In numbers"):
            numbers = plain_html(empty(text.EMPTY_NUMBERS), elem_id="pc-numbers")
        with gr.Tab("File and QR"):
            share = plain_html(empty(text.EMPTY_SHARE), elem_id="pc-share")
    results = Results(headline, stage, numbers, bits, share)
    _connect_controls(handlers, controls)
    done = visitor_state([])
    compressed = _connect_compress(handlers, controls, results, [run, done])
    return CompressTab(controls, results, compressed, done)


def _controls(handlers: Handlers, codec: PerCoV2) -> Controls:
    return Controls(
        chosen=visitor_state(None),
        image=gr.Image(
            label="Picture",
            type="filepath",
            image_mode=None,
            format="png",
            height=210,
            sources=["upload", "clipboard", "webcam"],
            buttons=[],
            elem_id="pc-image",
        ),
        picks=plain_html(thumbnails(handlers.examples), elem_id="pc-examples", js_on_load=_PICK_JS),
        side=gr.Radio(
            list(text.SIZES.items()),
            value=COMFORTABLE_SIDE_PX,
            label=text.SIZE_INFO,
            visible="hidden",
        ),
        mode=gr.Radio(
            list(text.MODES.items()),
            value="extreme",
            label="Mode",
            info=text.MODE_INFO,
            elem_id="pc-mode",
        ),
        caption=gr.Textbox(
            label=text.CAPTION_LABEL,
            placeholder=text.CAPTION_PLACEHOLDER,
            lines=4,
            max_lines=4,
            elem_id="pc-caption-box",
        ),
        cost=gr.Markdown(text.CAPTION_COST_EMPTY, elem_id="pc-cost"),
        **_buttons(),
        presses=gr.Number(0, precision=0, visible="hidden"),
        advanced=_advanced(codec),
    )


def _buttons() -> dict[str, gr.Button]:
    with gr.Row(elem_id="pc-buttons"):
        compress = gr.Button(
            "Compress", variant="primary", interactive=False, elem_id="pc-compress", scale=3
        )
        cancel = gr.Button("Cancel", elem_id="pc-cancel", min_width=90, scale=1)
    return {"compress": compress, "cancel": cancel}


def _advanced(codec: PerCoV2) -> Advanced:
    default = codec.presets["extreme"]["balanced"]
    with gr.Accordion("Advanced", open=False, elem_id="pc-advanced"):
        return Advanced(
            captioner=gr.Radio(
                _captioners(codec),
                value=codec.captioner,
                label="Caption by",
                info=text.CAPTIONER_INFO,
            ),
            preset=gr.Radio(
                list(text.PRESETS.items()), value="balanced", label="Preset", info=text.PRESET_INFO
            ),
            steps=gr.Slider(
                1, MAX_STEPS, default.steps, step=1, label="Steps", info=text.STEPS_INFO
            ),
            guidance=gr.Slider(
                1,
                MAX_GUIDANCE,
                default.guidance,
                step=0.1,
                label="Guidance",
                info=text.GUIDANCE_INFO,
            ),
            seed=gr.Number(0, precision=0, minimum=0, label="Seed", info=text.SEED_INFO),
            schedule=gr.Dropdown(
                list(text.SCHEDULES.items()),
                value=DEFAULT_SCHEDULE,
                label="Schedule",
                info=text.SCHEDULE_INFO,
            ),
            tokens=gr.Slider(0, 64, 0, step=1, label="Tokens sent", info=text.TOKENS_INFO),
            target=gr.Number(
                None,
                precision=0,
                minimum=0,
                label="Target size in bytes",
                info=text.TARGET_INFO,
                elem_id="pc-target",
            ),
        )


def _captioners(codec: PerCoV2) -> list[tuple[str, str]]:
    """The model's own first, and none twice."""
    others = [pair for pair in text.OTHER_CAPTIONERS.items() if pair[1] != codec.captioner]
    return [(text.OWN_CAPTIONER, codec.captioner), *others]


def _connect_controls(handlers: Handlers, controls: Controls) -> None:
    more = controls.advanced
    controls.picks.pick(handlers.pick, outputs=controls.image, **FREE)
    controls.picks.paste(handlers.paste, outputs=controls.image, **FREE)
    controls.image.change(
        handlers.choose,
        inputs=[controls.image, more.captioner, controls.chosen],
        outputs=[
            controls.chosen,
            controls.caption,
            controls.cost,
            controls.compress,
            controls.side,
            more.tokens,
        ],
        preprocess=False,  # gradio would open the file itself, and fail without words
        trigger_mode="always_last",
        **INTAKE,
    )
    more.captioner.input(
        handlers.recaption,
        [controls.chosen, more.captioner],
        [controls.caption, controls.cost],
        **INTAKE,
    )
    controls.caption.input(
        handlers.caption_cost,
        controls.caption,
        controls.cost,
        trigger_mode="always_last",
        **FREE,
    )
    gr.on(
        [more.preset.input, controls.mode.input],
        handlers.apply_preset,
        [controls.mode, more.preset],
        [more.steps, more.guidance],
        **FREE,
    )


def _connect_compress(
    handlers: Handlers, controls: Controls, results: Results, states: list[gr.State]
) -> Any:
    more = controls.advanced
    # In the order of `runs.Settings`.
    settings = [
        controls.mode, controls.caption, more.captioner, more.schedule, more.tokens,
        more.target, controls.side, more.steps, more.guidance, more.seed,
    ]  # fmt: skip
    pressed = controls.compress.click(
        handlers.press,
        inputs=[controls.chosen, controls.presses, controls.side],
        outputs=[controls.presses, results.stage],
        js=_PRESS_JS,
        queue=False,
        **FREE,
    )
    compressed = pressed.success(
        handlers.compress,
        inputs=[controls.chosen, controls.presses, states[1], *settings],
        outputs=[results.headline, results.stage, controls.caption, *states],
        trigger_mode="multiple",  # a newer press replaces the older one, and must not be skipped
        **DEVICE,
    )
    controls.cancel.click(
        handlers.cancel,
        inputs=controls.presses,
        outputs=[results.headline, results.stage],
        js="() => window.percov.presses",
        queue=False,
        **FREE,
    )
    return compressed
