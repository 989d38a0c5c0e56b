"""Rate, distortion and perception of the stored studies, as one picture: `python -m tests.curves`
draws it in a headless Chromium and writes `assets/results/curves.webp`."""

import io
import json

import pandas as pd
from PIL import Image
from playwright.sync_api import sync_playwright

from percov2_core.config import PRESETS
from percov2_core.plots import curves
from percov2_core.ui.stored import RESULTS_DIR
from tests.ui_browser import launch

SIZE_PX = (1500, 860)


def read(study):
    return pd.DataFrame(json.loads((RESULTS_DIR / f"{study}.json").read_text("utf-8"))["means"])


def points():
    """Ours from the caption alone to a whole file, and what classic codecs do for all pictures."""
    presets, classic = read("presets"), read("classic")
    presets = presets[presets["preset"].isin(PRESETS[::2]) & (presets["mode"] != "ultra-low")]
    caption = presets["mode"] == "hybrid"  # where the lines begin
    presets.loc[caption, "budget_bytes"] = presets.loc[caption, "size_bytes"]
    return pd.concat([read("sizes"), presets, classic[classic["errors"] == 0]], ignore_index=True)


def main():
    width, height = SIZE_PX
    drawn = curves(points()).update_layout(width=width, height=height, font_size=13)
    with sync_playwright() as playwright:
        page = launch(playwright).new_page(viewport={"width": width, "height": height})
        page.set_content(drawn.to_html(include_plotlyjs=True, config={"staticPlot": True}))
        page.locator(".main-svg").first.wait_for()
        shot = page.screenshot(clip={"x": 0, "y": 0, "width": width, "height": height})
    Image.open(io.BytesIO(shot)).save(RESULTS_DIR / "curves.webp", "WEBP", quality=90)


if __name__ == "__main__":
    main()
