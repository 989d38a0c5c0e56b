"""The layout of the tabs beside the main one, and which of their controls calls what."""

from __future__ import annotations

import gradio as gr

from percov2_core import plots
from percov2_core.ui import runs, text, tradeoff
from percov2_core.ui.compress_tab import CompressTab
from percov2_core.ui.explore import Explore
from percov2_core.ui.handlers import Handlers
from percov2_core.ui.html import empty
from percov2_core.ui.wiring import DEVICE, FREE, MEASURE, plain_html, visitor_state

# gr.Plot tells nobody about clicks: this piece of HTML listens in its place.
_CLICK_JS = """
const attach = () => {
  const plot = document.querySelector('#pc-plot .js-plotly-plot');
  if (!plot || !plot.on || plot.listened) return;
  plot.listened = true;
  plot.on('plotly_click', (event) => {
    const data = event.points[0].customdata;
    if (data && data[1]) trigger('pick', {key: data[1]});
  });
};
setInterval(attach, 300);"""


def decode_tab(handlers: Handlers, demo: gr.Blocks, tabs: gr.Tabs, run: gr.State) -> None:
    """A file or a link, and the picture inside."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            file = gr.File(label="A .pcv2 file", type="filepath", elem_id="pc-file", height=150)
            link = gr.Textbox(label="or a link", lines=3, max_lines=5, elem_id="pc-link-box")
            button = gr.Button("Open the link", variant="primary", elem_id="pc-open-link")
        with gr.Column(scale=8, min_width=280):
            headline = plain_html(runs.plain_headline("Open a file", text.EMPTY_FILE))
            stage = plain_html(empty(text.EMPTY_FILE_STAGE), elem_id="pc-decoded-stage")
    details = plain_html(elem_id="pc-decoded-details")
    outputs = [tabs, headline, stage, details, run]
    file.upload(handlers.open_file, file, outputs, preprocess=False, **DEVICE)
    button.click(handlers.open_link, link, outputs, **DEVICE)
    demo.load(handlers.open_address, outputs=outputs, **DEVICE)


def invented_tab(explore: Explore, run: gr.State) -> None:
    """What the file leaves open."""
    gr.Markdown(text.VARIATIONS_NOTE)
    with gr.Row():
        vary = gr.Button(
            "Paint it four times", variant="primary", elem_id="pc-vary", scale=0, min_width=240
        )
    grid = plain_html(empty(text.EMPTY_VARIATIONS), elem_id="pc-variations")
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            tokens = gr.Slider(
                0, 64, 32, step=1, label="Tokens sent", info=text.RESEND_INFO, elem_id="pc-resend"
            )
        with gr.Column(scale=8, min_width=280):
            resent = plain_html(empty(text.EMPTY_RESENT), elem_id="pc-resent")
    vary.click(explore.vary, run, grid, **DEVICE)
    # Not `release`: the keyboard never releases a slider.
    tokens.input(explore.resend, [run, tokens], resent, trigger_mode="always_last", **DEVICE)


def plot_tab(
    explore: Explore, tab: gr.Tab, tabs: gr.Tabs, main: CompressTab, run: gr.State
) -> None:
    """Distortion against perception, and every run of the visitor."""
    history = visitor_state([])
    axes = [(label, name) for name, label in plots.AXES.items()]
    with gr.Row():
        x = gr.Dropdown(axes, value="psnr", label="Across", elem_id="pc-x")
        y = gr.Dropdown(axes, value="picorank", label="Up", elem_id="pc-y")
    plot = gr.Plot(show_label=False, elem_id="pc-plot")
    note = plain_html()
    gr.Markdown(text.PLOT_NOTE)
    table = plain_html(tradeoff.runs_table([]), elem_id="pc-runs")
    clicks = plain_html("", js_on_load=_CLICK_JS, elem_id="pc-clicks")

    controls, results = main.controls, main.results
    drawing = ([history, x, y], [plot, note, table])
    measured = main.explained.success(
        explore.measure, [run, history], [results.numbers, history], **MEASURE
    )
    measured.success(explore.draw, *drawing, **FREE)
    gr.on([tab.select, x.input, y.input], explore.draw, *drawing, **FREE)
    clicks.pick(
        explore.pick_point,
        history,
        [
            tabs, results.headline, results.stage, run,
            controls.mode, controls.advanced.steps, controls.advanced.guidance,
        ],
        **FREE,
    )  # fmt: skip
