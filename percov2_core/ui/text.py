"""Every text of the page, and small pieces of HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from types import MappingProxyType
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image

from percov2_core.ui.border import KEEP_FILES_S

TITLE = "PerCoV2"
CLAIM = "A whole photo in about a hundred bytes."
INTRO = "One line of text and a few tokens are sent; a generative model repaints the rest."

MODES = MappingProxyType(
    {
        "Ultra-low": "ultra-low",
        "Extreme": "extreme",
        "Hybrid (generated caption only)": "hybrid",
    }
)
MODE_INFO = "Ultra-low: smallest whole picture. Extreme: closest. Hybrid: the text, little else."
OWN_CAPTIONER = "Describe it for me"
OTHER_CAPTIONERS = MappingProxyType({"BLIP network": "blip", "Exactly what I type": "fixed"})
PRESETS = MappingProxyType({"Faithful": "faithful", "Balanced": "balanced", "Vivid": "vivid"})
SCHEDULES = MappingProxyType(
    {
        "Quantized low-discrepancy (qlds)": "qlds",
        "Coarse to fine (var)": "var",
        "Quincunx": "quincunx",
        "Checkerboard": "checkerboard",
        "None: every token costs the same": "uniform",
    }
)
SIZES = MappingProxyType({"1024 px (quick)": 1024, "Up to 2048 px (slow)": 2048})

CAPTION_LABEL = "Caption (travels in the file)"
CAPTION_PLACEHOLDER = (
    "Choose a picture, and its caption appears here. Edit it, then compress again."
)
CAPTIONER_INFO = "Who writes the caption when the box is left alone or emptied."
PRESET_INFO = "Sets steps and guidance: closest to the original, in between, or liveliest."
STEPS_INFO = "How many strokes the flow model takes. More is slower."
GUIDANCE_INFO = "How strongly the text steers the picture. 1 turns it off."
SEED_INFO = "Another number invents other details. 0 costs no bytes."
SCHEDULE_INFO = "In which order tokens are sent, each predicted from the ones before."
TOKENS_INFO = "Hybrid only: tokens to send. 0 sends the caption alone; the rest is invented."
TARGET_INFO = "At most this many bytes: picks the mode and the tokens for you. 0: off."
SIZE_INFO = "This picture is larger than the model likes. It is compressed at:"

EMPTY_HEADLINE = "Pick a picture, press Compress."
EMPTY_HEADLINE_NOTE = "You will see how little of it has to be sent."
EMPTY_STAGE = "The original and what comes out of the file meet here."
EMPTY_BITS = "After compressing, every bit of the file is accounted for here."
EMPTY_NUMBERS = "After compressing, the picture is measured here beside the classic codecs."
EMPTY_SHARE = (
    "After compressing, the file is here: to save, to send as a link, to show as a QR code."
)
EMPTY_FILE = "Drop in a .pcv2 file or paste a link. No original is needed."
EMPTY_FILE_STAGE = "The picture will be painted here."
FILE_ADVICE = "Check that it is the whole .pcv2 file, as it was saved."
LINK_ADVICE = "Check that the whole link was copied, to its last character."
EMPTY_RESENT = "Move the slider: the picture from fewer tokens appears here."
READY_VARIATIONS = "Press the button: four pictures and a map of where they disagree appear here."
EMPTY_VARIATIONS = "Compress or open a picture first: then see what its file leaves open."
EMPTY_RUNS_PLOT = "No point has both of these measures yet. Pick others, or compress a picture."
CODECS = MappingProxyType(
    {
        "percov2 ultra-low": "PerCoV2 Ultra-low",
        "percov2 extreme": "PerCoV2 Extreme",
        "percov2 hybrid": "PerCoV2 Hybrid",
        "jpeg": "JPEG",
        "jpeg2000": "JPEG 2000",
        "j2k": "JPEG 2000 codestream",
        "webp": "WebP",
        "avif": "AVIF",
        "jxl": "JPEG XL",
        "vvc": "VVC",
    }
)
REFERENCE = "classic codecs, reference"
REFERENCE_SOURCE = "mean of 24 Kodak pictures, 512 x 512"
PUBLISHED = "published elsewhere, own protocols"
YOUR_RUNS = "your runs"
PLOT_NOTE = (
    "Every point is a mean over Kodak pictures; stars are your own runs. Click a star, or its line "
    "in the table, to bring its picture back; click one of our points to take its steps and "
    "guidance. Published values were measured by others in their own ways: they appear for rate "
    "and PSNR only, and compare loosely."
)
VARIATIONS_NOTE = (
    "One file allows many pictures. Here it is painted with four seeds: what all four share is in "
    "the file, what differs is invented."
)
RESEND_INFO = "Send fewer tokens of the same file. Nothing is encoded from the picture again."
HARDLY_LEVELS = 2.0
HARDLY = (
    "That is hardly anything: in few steps the model paints what it expects on average. "
    "Compress with the Vivid preset to see it invent."
)
NOT_HYBRID = (
    "This is an Extreme file, which works only whole. Compress in Ultra-low or Hybrid to send "
    "fewer tokens."
)
NO_TOKENS = "This file holds its caption alone: there is no token that could be left out."
WRONG_INPUT = "An input is missing or of a wrong kind. The API page lists what is expected."
RUN_FORGOTTEN = "This run is not kept any more. Compress the picture again."
TAKEN = "Steps and guidance are set. Compress to see them."
CANCELLED = "Cancelled. Nothing was kept."
MISSING = MappingProxyType(
    {
        "lpips": "LPIPS is not shown, because its weights are not on this machine: PicoRank, which "
        "comes with the page, stands in for it.",
        "feature_distance": "The SqueezeNet feature distance is not shown, because its weights are "
        "not on this machine.",
    }
)
CAPTION_COST_EMPTY = "The caption will cost a few bytes."

SHORTCUTS = (
    "Keyboard: <kbd>Ctrl</kbd>+<kbd>V</kbd> pastes a picture, <kbd>Ctrl</kbd>+<kbd>Enter</kbd> "
    "compresses, <kbd>O</kbd> flips between original and result, arrow keys move the slider."
)
PRIVACY = (
    f"Nothing is kept: an upload is deleted after {KEEP_FILES_S // 60} minutes. A share link is "
    "the picture itself, in the address, and stored nowhere."
)
NOT_EVIDENCE = (
    "At these sizes most details are painted by a model: plausible, not true. "
    "Do not use it as evidence."
)


def waiting(before: int) -> str:
    """`before`: visitors who pressed Compress earlier and have no picture yet."""
    who = {0: "", 1: " One visitor is before you."}.get(
        before, f" {before} visitors are before you."
    )
    return f"Waiting for your turn…{who}"


def full(waiting: int) -> str:
    return f"The demo is full: {waiting} visitors are waiting already. Try again in a few minutes."


def bytes_in_words(size_bytes: int) -> str:
    return "1 byte" if size_bytes == 1 else f"{size_bytes:,} bytes"


def one_in(whole_bytes: int, part_bytes: int) -> str:
    """'1/6,900': how small a part is, in two digits that mean something."""
    ratio = whole_bytes / max(1, part_bytes)
    if ratio < 10:
        return f"1/{ratio:.1f}"
    digits = len(str(int(ratio))) - 2
    return f"1/{int(round(ratio, -digits)):,}"


def steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def classic_setting(factor: str, quality: float) -> str:
    """`factor` is the number by which both sides were divided, or empty."""
    shrunk = f"shrunk to 1/{factor} a side, " if factor else ""
    return f"{shrunk}quality {quality:g}"


def none_as_small(size_bytes: int) -> str:
    return f"No classic codec here makes a file of {size_bytes:,} bytes or less from this picture."


def disagreement(mean: float, most: float) -> str:
    """Of the pictures from several seeds, in levels of 255."""
    said = f"On average the four differ by {mean:.1f} of 255 levels, at most by {most:.0f}."
    if mean < HARDLY_LEVELS:
        return f"{said} {HARDLY}"
    return f"{said} Where they agree, the file decides; where they differ, the model invents."


def stored(row: Mapping[str, Any]) -> str:
    """A stored point in words."""
    words = str(row["key"])
    if row.get("mode") in MODES.values():
        preset = row.get("preset")
        count, guidance = row.get("steps"), row.get("guidance")
        words = f"preset {preset}"
        if count is not None and pd.notna(count) and pd.notna(guidance):
            words = f"{steps(int(count))}, guidance {guidance:g}"
        if pd.notna(tokens := row.get("tokens")):
            words += f", {tokens:.0f} tokens"
    return f"{words}<br>{row['size_bytes']:,.0f} bytes, mean of {row['pictures']} Kodak pictures"


def codec_name(label: str) -> str:
    """'avif/4' -> 'AVIF': what a codec of the stored tables is called on the page."""
    family = label.partition("/")[0]
    return CODECS.get(family, family)


def plain_html(value: str = "", **options: Any) -> gr.HTML:
    """HTML that only the page's own style sheet touches."""
    options.setdefault("js_on_load", None)
    return gr.HTML(value, apply_default_css=False, **options)


def png_uri(image: Image.Image) -> str:
    """The picture inside the page itself: lossless, and no file is left on the server."""
    buffer = io.BytesIO()
    # Level 1: four times as fast as the default, a tenth larger.
    image.save(buffer, "PNG", compress_level=1)
    return data_uri(buffer.getvalue(), "image/png")


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def empty(message: str) -> str:
    """A friendly placeholder."""
    return f'<div class="pc-empty"><p>{escape(message)}</p></div>'


def scale_bar(low: str, high: str) -> str:
    """The colours of a heat map, from its least to its most."""
    return (
        f'<div class="pc-scale"><span>{escape(low)}</span><i aria-hidden="true"></i>'
        f"<span>{escape(high)}</span></div>"
    )
