"""The page: its tabs around a loaded codec."""

from __future__ import annotations

import gradio as gr

from percov2_core.codec import PerCoV2
from percov2_core.ui import text
from percov2_core.ui.compress_tab import compress_tab
from percov2_core.ui.examples import find_examples
from percov2_core.ui.explore import Explore
from percov2_core.ui.following import Following
from percov2_core.ui.handlers import Handlers
from percov2_core.ui.limits import KEEP_FILES_S, SWEEP_FILES_S
from percov2_core.ui.opening import Opening
from percov2_core.ui.other_tabs import decode_tab, invented_tab, plot_tab
from percov2_core.ui.programs import add_endpoints
from percov2_core.ui.turns import Turns
from percov2_core.ui.variations import Variations
from percov2_core.ui.wiring import DEVICE, plain_html, visitor_state


def build_demo(codec: PerCoV2, *, keep_files_s: int = KEEP_FILES_S) -> gr.Blocks:
    """The whole page.

    Args:
        codec: A loaded model.
        keep_files_s: Age at which uploaded and temporary files are removed.
    """
    turns = Turns()
    handlers, opening = Handlers(codec, find_examples(), turns), Opening(codec, turns)
    explore, variations = Explore(turns, codec.presets), Variations(codec)
    demo: gr.Blocks
    with gr.Blocks(
        title=f"{text.TITLE}: {text.CLAIM}",
        analytics_enabled=False,
        delete_cache=(min(SWEEP_FILES_S, keep_files_s), keep_files_s),
        fill_width=True,
    ) as demo:
        plain_html(
            f'<header class="pc-top"><h1>{text.TITLE}</h1><p>{text.CLAIM} {text.INTRO}</p></header>'
        )
        # First: gradio numbers names that are taken, and would take them for the page's own.
        add_endpoints(codec, DEVICE)
        run = visitor_state(None)
        with gr.Tabs() as tabs:
            with gr.Tab("Compress", id="compress"):
                main = compress_tab(handlers, codec, run)
            with gr.Tab("Open a file", id="decode"):
                opened = decode_tab(opening, demo, tabs, run)
            with gr.Tab("Invented?", id="invented"):
                invented = invented_tab(variations, run)
            with gr.Tab("Trade-off", id="plot") as tab:
                plot = plot_tab(explore, tab)
        following = Following(handlers, explore, variations, run, tabs, main, invented, plot)
        following.connect(opened)
        plain_html(
            f'<footer class="pc-foot"><p>{text.SHORTCUTS}</p><p>{text.PRIVACY}</p>'
            f"<p>{text.NOT_EVIDENCE}</p></footer>"
        )
        demo.unload(handlers.forget)
    return demo
