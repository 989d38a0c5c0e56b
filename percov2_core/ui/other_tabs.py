"""The layout of the tabs beside the main one, and which of their controls calls what."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from percov2_core.evaluation.axes import AXES
from percov2_core.ui import runs, text, tradeoff
from percov2_core.ui.explore import Explore
from percov2_core.ui.html import empty
from percov2_core.ui.opening import Opening
from percov2_core.ui.variations import Variations
from percov2_core.ui.wiring import DEVICE, FREE, plain_html, visitor_state

# gr.Plot tells nobody about clicks: this piece of HTML listens in its place.
_CLICK_JS = """
const attach = () => {
  const plot = document.querySelector('#pc-plot .js-plotly-plot');
  if (!plot || !plot.on || plot.listened) return;
  plot.listened = true;
  plot.on('plotly_click', (event) => {
    const data = event.points[0].customdata;
    if (data && data[1]) trigger(data[1].startsWith('run:') ? 'back' : 'take', {key: data[1]});
  });
};
setInterval(attach, 300);"""

# The same for those who do not point: every line of the table has a button.
_BACK_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button) trigger('back', {key: button.dataset.key});
});"""


class InventedTab(NamedTuple):
    """What a new file resets."""

    grid: gr.HTML
    tokens: gr.Slider
    resent: gr.HTML


class PlotTab(NamedTuple):
    """What a new measurement fills."""

    history: gr.State
    x: gr.Dropdown
    y: gr.Dropdown
    plot: gr.Plot
    note: gr.HTML
    table: gr.HTML
    clicks: gr.HTML


def decode_tab(opening: Opening, demo: gr.Blocks, tabs: gr.Tabs, run: gr.State) -> list[Any]:
    """A file or a link, and the picture inside; -> gradio's events that bring a new one."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            file = gr.File(label="A .pcv2 file", type="filepath", elem_id="pc-file", height=150)
            link = gr.Textbox(label="or a link", lines=3, max_lines=5, elem_id="pc-link-box")
            button = gr.Button("Open the link", variant="primary", elem_id="pc-open-link")
        with gr.Column(scale=8, min_width=280):
            headline = plain_html(runs.plain_headline("Open a file", text.EMPTY_FILE))
            stage = plain_html(empty(text.EMPTY_FILE_STAGE), elem_id="pc-decoded-stage")
    details = plain_html(elem_id="pc-decoded-details")
    outputs = [headline, stage, details, run]
    arrived = demo.load(opening.tab_of_address, outputs=tabs, **FREE)
    return [
        file.upload(opening.open_file, file, outputs, preprocess=False, **DEVICE),
        button.click(opening.open_link, link, outputs, **DEVICE),
        arrived.then(opening.open_address, outputs=outputs, **DEVICE),
    ]


def invented_tab(variations: Variations, run: gr.State) -> InventedTab:
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
                0,
                1,
                0,
                step=1,
                label="Tokens sent",
                info=text.RESEND_INFO,
                interactive=False,
                elem_id="pc-resend",
            )
        with gr.Column(scale=8, min_width=280):
            resent = plain_html(empty(text.EMPTY_RESENT), elem_id="pc-resent")
    vary.click(variations.vary, run, grid, **DEVICE)
    # Not `release`: the keyboard never releases a slider.
    tokens.input(variations.resend, [run, tokens], resent, trigger_mode="always_last", **DEVICE)
    return InventedTab(grid, tokens, resent)


def plot_tab(explore: Explore, tab: gr.Tab) -> PlotTab:
    """Distortion against perception, and every run of the visitor."""
    axes = [(label, name) for name, label in AXES.items()]
    with gr.Row():
        x = gr.Dropdown(axes, value="psnr", label="Across", min_width=280, elem_id="pc-x")
        y = gr.Dropdown(axes, value="picorank", label="Up", min_width=280, elem_id="pc-y")
    shown = PlotTab(
        history=visitor_state([]),
        x=x,
        y=y,
        plot=gr.Plot(show_label=False, elem_id="pc-plot"),
        note=plain_html(),
        table=_under_the_plot(),
        clicks=plain_html("", js_on_load=_CLICK_JS, elem_id="pc-clicks"),
    )
    gr.on([tab.select, x.input, y.input], explore.draw, *drawing(shown), **FREE)
    return shown


def drawing(shown: PlotTab) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs of `Explore.draw`."""
    return [shown.history, shown.x, shown.y], [shown.plot, shown.note, shown.table]


def _under_the_plot() -> gr.HTML:
    gr.Markdown(text.PLOT_NOTE)
    return plain_html(tradeoff.runs_table([]), js_on_load=_BACK_JS, elem_id="pc-runs")
