"""The layout of the page, and which button calls what."""

from __future__ import annotations

import gradio as gr

from percov2_core.codec import MAX_GUIDANCE, MAX_STEPS, PerCoV2
from percov2_core.config import DEFAULT_SCHEDULE
from percov2_core.ui import runs, text
from percov2_core.ui.examples import find_examples, thumbnails
from percov2_core.ui.handlers import Handlers
from percov2_core.ui.html import empty
from percov2_core.ui.limits import KEEP_FILES_S, SWEEP_FILES_S

DEVICE = {"concurrency_id": "device", "concurrency_limit": 1, "api_visibility": "private"}
FREE = {"concurrency_limit": None, "api_visibility": "private", "show_progress": "hidden"}


def build_demo(codec: PerCoV2) -> gr.Blocks:
    """The whole page around a loaded codec."""
    examples = find_examples()
    handlers = Handlers(codec, examples)
    with gr.Blocks(
        title=f"{text.TITLE}: {text.CLAIM}",
        analytics_enabled=False,
        delete_cache=(SWEEP_FILES_S, KEEP_FILES_S),
    ) as demo:
        gr.HTML(
            f'<header class="pc-top"><h1>{text.TITLE}</h1><p>{text.CLAIM} {text.INTRO}</p></header>'
        )
        run = gr.State(None, time_to_live=KEEP_FILES_S)
        with gr.Tabs():
            with gr.Tab("Compress", id="compress"):
                _compress_tab(handlers, thumbnails(examples), codec, run)
            with gr.Tab("Open a file", id="decode"):
                _decode_tab(handlers)
        gr.Markdown(f"{text.SHORTCUTS} {text.PRIVACY} {text.NOT_EVIDENCE}", elem_id="pc-foot")
    return demo


def _compress_tab(handlers: Handlers, thumbs: str, codec: PerCoV2, run: gr.State) -> None:
    chosen = gr.State(None, time_to_live=KEEP_FILES_S)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            image = gr.Image(
                label="Picture",
                type="filepath",
                image_mode=None,
                format="png",
                height=232,
                sources=["upload", "clipboard", "webcam"],
                elem_id="pc-image",
            )
            picks = gr.HTML(
                thumbs,
                elem_id="pc-examples",
                js_on_load=(
                    "element.addEventListener('click', (event) => {"
                    " const button = event.target.closest('button');"
                    " if (button) trigger('pick', {name: button.dataset.name}); });"
                ),
            )
            side = gr.Radio(
                list(text.SIZES.items()), value=1024, label=text.SIZE_INFO, visible=False
            )
            mode = gr.Radio(
                list(text.MODES.items()), value="ultra-low", label="Mode", elem_id="pc-mode"
            )
            caption = gr.Textbox(
                label=text.CAPTION_LABEL,
                placeholder=text.CAPTION_PLACEHOLDER,
                lines=2,
                max_lines=3,
                elem_id="pc-caption-box",
            )
            cost = gr.Markdown(text.CAPTION_COST_EMPTY, elem_id="pc-cost")
            with gr.Row():
                button = gr.Button(
                    "Compress", variant="primary", interactive=False, elem_id="pc-compress"
                )
                cancel = gr.Button("Cancel", elem_id="pc-cancel", min_width=90)
            with gr.Accordion("Advanced", open=False, elem_id="pc-advanced"):
                captioner = gr.Radio(
                    list(text.CAPTIONERS.items()),
                    value="describer",
                    label="Caption by",
                    info=text.CAPTIONER_INFO,
                )
                preset = gr.Radio(
                    list(text.PRESETS.items()),
                    value="balanced",
                    label="Preset",
                    info=text.PRESET_INFO,
                )
                default = codec.presets["ultra-low"]["balanced"]
                steps = gr.Slider(
                    1, MAX_STEPS, default.steps, step=1, label="Steps", info=text.STEPS_INFO
                )
                guidance = gr.Slider(
                    1,
                    MAX_GUIDANCE,
                    default.guidance,
                    step=0.1,
                    label="Guidance",
                    info=text.GUIDANCE_INFO,
                )
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", info=text.SEED_INFO)
                schedule = gr.Dropdown(
                    list(text.SCHEDULES.items()),
                    value=DEFAULT_SCHEDULE,
                    label="Schedule",
                    info=text.SCHEDULE_INFO,
                )
                tokens = gr.Slider(0, 64, 0, step=1, label="Tokens sent", info=text.TOKENS_INFO)
                target = gr.Number(
                    None, precision=0, minimum=0, label="Target size", info=text.TARGET_INFO
                )
        with gr.Column(scale=8, min_width=320):
            headline = gr.HTML(runs.empty_headline(), elem_id="pc-head")
            stage = gr.HTML(empty(text.EMPTY_STAGE), elem_id="pc-stage")
    with gr.Tabs():
        with gr.Tab("Where the bits went"):
            bits = gr.HTML(empty(text.EMPTY_BITS), elem_id="pc-bits")
        with gr.Tab("File, link, QR code"):
            share = gr.HTML(empty(text.EMPTY_SHARE), elem_id="pc-share")

    picks.pick(handlers.pick, outputs=image, **FREE)
    image.change(
        handlers.choose,
        inputs=[image, captioner],
        outputs=[chosen, caption, cost, button, side],
        preprocess=False,
        **DEVICE,
        show_progress="hidden",
    )
    captioner.input(handlers.recaption, [chosen, captioner], [caption, cost], **DEVICE)
    caption.input(handlers.caption_cost, caption, cost, trigger_mode="always_last", **FREE)
    gr.on(
        [preset.input, mode.input], handlers.apply_preset, [mode, preset], [steps, guidance], **FREE
    )
    compressed = button.click(
        handlers.compress,
        inputs=[
            chosen,
            mode,
            caption,
            captioner,
            schedule,
            tokens,
            target,
            side,
            steps,
            guidance,
            seed,
        ],
        outputs=[headline, stage, caption, run],
        **DEVICE,
        show_progress="hidden",
    )
    compressed.success(handlers.explain, run, [bits, share], **DEVICE, show_progress="hidden")
    cancel.click(
        handlers.cancel, outputs=[headline, stage], cancels=[compressed], queue=False, **FREE
    )


def _decode_tab(handlers: Handlers) -> None:
    run = gr.State(None, time_to_live=KEEP_FILES_S)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            file = gr.File(label="A .pcv2 file", type="filepath", elem_id="pc-file", height=140)
            link = gr.Textbox(label="or a link", lines=3, max_lines=5, elem_id="pc-link-box")
            button = gr.Button("Open the link", variant="primary", elem_id="pc-open-link")
        with gr.Column(scale=8, min_width=320):
            headline = gr.HTML(runs.plain_headline("Open a file", text.EMPTY_FILE))
            stage = gr.HTML(empty(text.EMPTY_STAGE), elem_id="pc-decoded-stage")
    details = gr.HTML(elem_id="pc-details")
    outputs = [headline, stage, details, run]
    file.upload(handlers.open_file, file, outputs, **DEVICE, show_progress="hidden")
    button.click(handlers.open_link, link, outputs, **DEVICE, show_progress="hidden")
