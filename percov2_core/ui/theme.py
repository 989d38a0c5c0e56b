"""How the page looks. System fonts only: nothing is fetched from anywhere."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr

from percov2_core.ui.limits import MAX_UPLOAD_BYTES

_HERE = Path(__file__).parent
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Consolas", "DejaVu Sans Mono", "monospace")


def theme() -> gr.themes.Base:
    base = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        spacing_size=gr.themes.sizes.spacing_sm,
        font=[gr.themes.Font(name) for name in _SANS],
        font_mono=[gr.themes.Font(name) for name in _MONO],
    )
    themed: gr.themes.Base = base.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_300",
    )
    return themed


def launch_options() -> dict[str, Any]:
    """Arguments of `gr.Blocks.launch` that belong to the page, whoever starts it."""
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    return {
        "theme": theme(),
        # Not by `css`: gradio puts a prefix before every rule, which breaks those for phones.
        "head": f"<style>{style}</style><script>{script}</script>",
        "max_file_size": MAX_UPLOAD_BYTES,
        "state_session_capacity": 200,
        "footer_links": ["api"],
        "ssr_mode": False,
        # An extra of gradio: `pip install "gradio[mcp]"`.
        "mcp_server": find_spec("mcp") is not None,
    }
