"""Every text of the page, and small pieces of HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import jinja2
import pandas as pd
from PIL import Image

from percov2_core import config
from percov2_core.baselines import CLASSIC

TITLE = "PerCoV2"
CLAIM = "A whole photo in about a hundred bytes."

MODES = {"Ultra-low": "ultra-low", "Extreme": "extreme", "Hybrid (any size)": "hybrid"}
CAPTIONERS = {
    "Describe it for me": "auto",
    "Things and colours": "objects",
    "Colours only": "describer",
    "BLIP network": "blip",
    "Exactly what I type": "fixed",
}
PRESETS = {"Faithful": "faithful", "Balanced": "balanced", "Vivid": "vivid"}
OWN_PAINTER = "The model's own"
PAINTERS = {
    "sd3-medium": "Stable Diffusion 3 Medium",
    "sd3.5-medium": "Stable Diffusion 3.5 Medium",
}
SCHEDULES = {
    "Quantized low-discrepancy (qlds)": "qlds",
    "Coarse to fine (var)": "var",
    "Quincunx": "quincunx",
    "Checkerboard": "checkerboard",
    "None: every token costs the same": "uniform",
}
EFFORTS = {"Fast": "fast", "Normal": "normal", "Best (slow)": "best"}
SIZES = {"1024 px (quick)": 1024, "Up to 2048 px (slow)": 2048}

CAPTION_LABEL = "Caption (travels in the file)"
CAPTION_PLACEHOLDER = (
    "Choose a picture, and its caption appears here. Edit it, then compress again."
)
# The label of a control, and what is said below it.
CONTROLS = {
    "Mode": "Ultra-low: all coarse tokens and a few fine ones, about 110 bytes. Extreme: all fine "
    "ones, closest.",
    "Size: at most so many bytes": "13 to about 722 at 512 x 512, more for larger pictures. Moving "
    "it paints again, without encoding again.",
    "Cut: at most so many bytes": "Keeps the first tokens of the file. No original is needed.",
    "Mode of all": "Ultra-low: about 110 bytes a picture. Extreme: closest. Hybrid: any size.",
    "At most so many bytes each": "As many tokens as fit. 13 to about 722 at 512 x 512.",
    "Effort for all": "Fast takes the first tokens found; Normal looks for closer ones.",
    "Caption by": "Who writes the caption when the box is left alone or emptied.",
    "Painter": "The other one repaints the picture of the model's own: layout and colours stay, "
    "texture is invented. Of a caption alone it paints the caption.",
    "Preset": "Sets steps and guidance: closest to the original, in between, or liveliest.",
    "Steps": "How many strokes the flow model takes. More is slower.",
    "Guidance": "1 stays closest to what was sent; more invents more texture and contrast.",
    "Seed": "Another number invents other details. 0 costs no bytes.",
    "Schedule": "In which order tokens are sent, each predicted from the ones before.",
    "Settings of a run": "One line of JSON, as it stands beside every file: paste it, press Enter.",
    "Encoder's effort": "How long to look for tokens that come closer. Fast takes the first found.",
}
SETTINGS_EXAMPLE = '{"size": 240, "steps": 1, "guidance": 1.5}'
MANY_NOTE = (
    "One setting for up to 50 pictures, and one ZIP of the files. Each waits for its turn, so that "
    "other visitors are served in between. Pictures over 1024 pixels are reduced to that; the "
    "command `percov2 compress FOLDER -o OUT` takes whole folders at full size."
)
EMPTY_MANY = "Drop in pictures or a ZIP: name, bytes before and after, and PSNR of each stand here."
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
READY_VARIATIONS = "Press the button: four pictures and a map of where they disagree appear here."
EMPTY_VARIATIONS = "Compress or open a picture first: then see what its file leaves open."
EMPTY_RUNS = "Every picture that you compress is listed here, to save as CSV."
EMPTY_RUNS_PLOT = "No point has both of these measures yet. Pick others, or compress a picture."
CODECS = {
    **{f"percov2 {mode}": f"PerCoV2 {mode.capitalize()}" for mode in MODES.values()},
    **CLASSIC,
    "jpeg2000": "JPEG 2000",
    "j2k": "JPEG 2000 codestream",
    "vvc": "VVC",
}
REFERENCE = "classic codecs, reference"
REFERENCE_SOURCE = "mean of 24 Kodak pictures, 512 x 512"
PUBLISHED = "published elsewhere, own protocols"
YOUR_RUNS = "your runs"
PLOT_NOTE = (
    "Every point is a mean over Kodak pictures, its colour the bytes of the file; stars are your "
    "own runs. Full lines go over steps at guidance 1, dotted ones over guidance at one step, "
    "dashed ones over bytes, of a preset or a classic codec. "
    "Point at one of ours to see an example; click it to take its steps and guidance; click a "
    "star, or its line in the table, to bring its picture back. Measures with a * are related to "
    "the training loss of the bundled model: no claim rests on them alone. Published values were "
    "measured by others in their own ways: they appear for rate and PSNR only, and compare loosely."
)
VARIATIONS_NOTE = (
    "One file allows many pictures. Here it is painted with four seeds. Coarse tokens that it does "
    "not hold are drawn by the seed: colours and layout differ. Fine ones are guessed alike for "
    "every seed: where all coarse ones were sent, or none belong to it, only grain differs."
)
WRONG_INPUT = "An input is missing or of a wrong kind. The API page lists what is expected."
RUN_FORGOTTEN = "This run is not kept any more. Compress the picture again."
TAKEN = "The settings are set. Compress to see them."
TOLD_TWICE = "This picture is here already."
CANCELLED = "Cancelled. Nothing was kept."
CAPTION_COST_EMPTY = "The caption will cost a few bytes."
LOADING = "The model is being loaded…"
CAPTION_LATER = "The model is being loaded. The caption and its cost follow."


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


def control(label: str) -> dict[str, Any]:
    """What gradio's components are told of a control."""
    return {"label": label, "info": CONTROLS[label]}


def steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def painted_by(painter: str, *, alone: bool) -> str:
    """What follows the size of a file under its picture; `alone`: it holds a caption only."""
    if painter == config.OWN_PAINTER:
        return ""
    return f", by {Path(painter).name}" + " from the caption alone" * alone


def stored(row: Mapping[str, Any]) -> str:
    """A stored point in words."""
    words = str(row["key"])
    if row.get("mode") in MODES.values():
        count, guidance = row.get("steps"), row.get("guidance")
        words = f"preset {row.get('preset')}"
        if count is not None and pd.notna(count) and pd.notna(guidance):
            words = f"{steps(int(count))}, guidance {guidance:g}"
        if pd.notna(tokens := row.get("tokens")):
            words += f", {tokens:.0f} tokens"
    return f"{words}<br>{row['size_bytes']:,.0f} bytes, mean of {row['pictures']} Kodak pictures"


def codec_name(label: str) -> str:
    """'avif/4' -> 'AVIF': what a codec of the stored tables is called on the page."""
    family = label.partition("/")[0]
    return CODECS.get(family, family)


def plain_html(value: str = "", *, js_on_load: str | None = None, **options: Any) -> gr.HTML:
    """HTML that only the page's own style sheet touches."""
    return gr.HTML(value, js_on_load=js_on_load, apply_default_css=False, **options)


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
    return piece("empty", message=message)


def piece(name: str, **values: Any) -> str:
    """One of the macros of `pieces.html`, filled in. Whatever is not HTML there is escaped."""
    return str(getattr(_PIECES, name)(**values))


_LOADER = jinja2.FileSystemLoader(Path(__file__).parent)
_HTML = jinja2.Environment(loader=_LOADER, autoescape=True, trim_blocks=True, lstrip_blocks=True)
_HTML.filters |= {"uri": png_uri, "in_bytes": bytes_in_words}
_PIECES = _HTML.get_template("pieces.html").module
