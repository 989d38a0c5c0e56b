"""Pictures for the README, page and plot: `python -m tests.screenshots [MODEL_FOLDER] [OUTPUT]`.

Every tab at 1440 x 900 and 390 x 844, light and dark; look at them after each change of the page.
"""

import sys
from pathlib import Path
from tempfile import mkdtemp

import pandas as pd
from playwright.sync_api import sync_playwright
from plotly.subplots import make_subplots

from percov2_core.metrics import AXES
from percov2_core.plots import colour
from percov2_core.weights.find import EMBEDDED_DIR
from tests.ui_browser import choose_example, choose_mode, compress, launch, open_plot, open_tab
from tests.ui_server import ROOT, serve

EXAMPLE = 7
SIZES = {"desktop": (1440, 900), "phone": (390, 844)}
WAIT_MS = 180_000
RESULTS = ROOT / "assets" / "results"
SHOWN = ("psnr", "ms_ssim", "feature_distance", "picorank", "patch_swd")


def main(model, out):
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix="percov2-screenshots-"))
    with serve(model, folder) as server, sync_playwright() as playwright:
        browser = launch(playwright)
        for scheme in ("light", "dark"):
            for name, size in SIZES.items():
                _visit(browser, server, size, scheme, out / f"{name}-{scheme}")
        _plot(browser, out / "equal-bytes.png")


def _visit(browser, server, size, scheme, stem):
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.set_default_timeout(WAIT_MS)
    page.goto(f"{server.address}?__theme={scheme}")
    page.wait_for_selector("#pc-compress")
    _shoot(page, stem, "empty")
    choose_example(page, EXAMPLE)
    compress(page)
    for mode in ("Extreme", "Ultra-low"):
        choose_mode(page, mode)
        page.wait_for_selector("#pc-bits .pc-bar")
        _shoot(page, stem, mode.lower(), whole=False)
    _shoot(page, stem, "bits")
    open_tab(page, "File and QR")
    _shoot(page, stem, "share")
    link = page.locator("#pc-link").input_value()
    open_tab(page, "In numbers")
    page.wait_for_selector("#pc-numbers .pc-ours")
    page.locator("#pc-numbers [role=status]").wait_for(state="detached")
    _shoot(page, stem, "numbers")
    open_tab(page, "Invented?")
    page.locator("#pc-vary").click()
    page.get_by_text("On average the four").wait_for()
    _shoot(page, stem, "invented")
    open_plot(page)
    _shoot(page, stem, "trade-off")
    open_tab(page, "Open a file")
    page.locator("#pc-link-box textarea").fill(link)
    page.locator("#pc-open-link").click()
    page.wait_for_selector("#pc-decoded-stage .pc-tools button")
    _shoot(page, stem, "open")
    page.close()


def _plot(browser, path):
    """The studies `sizes` and `classic` as bars."""
    ours, classic = (pd.read_csv(RESULTS / f"{name}.csv") for name in ("sizes", "classic"))
    page = browser.new_page(viewport={"width": 1200, "height": 420}, device_scale_factor=1.5)
    page.set_content(_equal_bytes(ours, classic, size=430).to_html(include_plotlyjs=True))
    page.wait_for_selector(".js-plotly-plot .barlayer")
    page.screenshot(path=path)
    page.close()


def _equal_bytes(ours, classic, *, size):
    """One panel per metric: our presets, and classic codecs in as many bytes."""
    mine = ours[ours["budget_bytes"] == size]
    rivals = classic[(classic["budget_bytes"] == size) & classic["bpp"].notna()]
    bars = [(f"ours, {p}", "percov2 hybrid", rows) for p, rows in mine.groupby("preset")]
    bars += [(str(codec), str(codec), rows) for codec, rows in rivals.groupby("codec")]
    figure = make_subplots(rows=1, cols=len(SHOWN), shared_yaxes=True)
    for i, metric in enumerate(SHOWN, start=1):
        values = [rows[metric].mean() for *_, rows in bars]
        look = {"marker_color": [colour(label) for _, label, _ in bars], "showlegend": False}
        look |= {"text": [f"{v:.3g}" for v in values], "orientation": "h"}
        figure.add_bar(x=values, y=[name for name, *_ in bars], row=1, col=i, **look)
        name, _, better = AXES[metric].removesuffix(")").partition(" (")
        figure.update_xaxes(title=f"{name}<br>{better}", row=1, col=i)
    figure.update_yaxes(autorange="reversed")
    title = f"Kodak at equal bytes, at most {size} a picture"
    margin = {"l": 130, "r": 20, "t": 50, "b": 80}
    return figure.update_layout(title=title, template="plotly_white", margin=margin)


def _shoot(page, stem, name, *, whole=True):
    page.wait_for_timeout(800)  # fades and fonts
    page.screenshot(path=f"{stem}-{name}.png", full_page=whole)


if __name__ == "__main__":
    given = dict(enumerate(map(Path, sys.argv[1:])))
    main(given.get(0, EMBEDDED_DIR), given.get(1, ROOT / "assets" / "screenshots"))
