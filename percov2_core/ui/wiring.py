"""What all listeners and all pieces of HTML of the page have in common.

What gradio wants of listeners that yield: one yield at least, since outputs that are never given
are emptied; and in the last yield every update (`gr.Button(...)`) of the ones before, since its
client changes updates in place, and on a busy machine only the last state of one is seen.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from percov2_core.ui.limits import KEEP_FILES_S

# One queue for everything that needs the model.
DEVICE: dict[str, Any] = {
    "concurrency_id": "device",
    "concurrency_limit": 1,
    "api_visibility": "private",
    "show_progress": "hidden",
}
# Reading and describing a picture need not wait for what others paint.
INTAKE: dict[str, Any] = {**DEVICE, "concurrency_id": "intake"}
# Measuring may wait for nobody, and nobody for it; least of all for the slow classic codecs.
MEASURE: dict[str, Any] = {**DEVICE, "concurrency_id": "measure"}
CLASSICS: dict[str, Any] = {**DEVICE, "concurrency_id": "classics"}
FREE: dict[str, Any] = {
    "concurrency_limit": None,
    "api_visibility": "private",
    "show_progress": "hidden",
}


def plain_html(value: str = "", **options: Any) -> gr.HTML:
    """HTML that only the page's own style sheet touches."""
    options.setdefault("js_on_load", None)
    return gr.HTML(value, apply_default_css=False, **options)


def visitor_state(value: Any) -> gr.State:
    """State of one visitor, forgotten with the visit."""
    return gr.State(value, time_to_live=KEEP_FILES_S)
