"""The pictures that come with the page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from html import escape
from pathlib import Path

from PIL import Image, ImageOps

from percov2_core.ui.html import data_uri

EXAMPLES_DIR = Path(__file__).parents[2] / "assets" / "examples"
_THUMB_PX = 112


def find_examples(folder: Path = EXAMPLES_DIR) -> dict[str, Path]:
    """Name -> file, in order of name; empty where the folder is absent."""
    return {path.stem: path for path in sorted(folder.glob("*.jpg"))}


def thumbnails(examples: Mapping[str, Path]) -> str:
    """Buttons with the pictures inside the page, so that they are there at once."""
    buttons = "".join(
        f'<button type="button" data-name="{escape(name)}" title="{escape(name)}">'
        f'<img src="{_thumbnail(path)}" alt="Example {escape(name)}" width="56" height="56">'
        "</button>"
        for name, path in examples.items()
    )
    return f'<div class="pc-thumbs" role="group" aria-label="Example pictures">{buttons}</div>'


def _thumbnail(path: Path) -> str:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        # Lossy, and no picture that anybody compares.
        ImageOps.fit(image, (_THUMB_PX, _THUMB_PX)).save(buffer, "WEBP", quality=80)
    return data_uri(buffer.getvalue(), "image/webp")
