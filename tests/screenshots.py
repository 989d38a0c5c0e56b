"""Pictures of the page, for the README: `python -m tests.screenshots [MODEL_FOLDER] [OUTPUT]`.

Every tab, every way to compare, the gallery and the presenter's mode at 1440 x 900
and 390 x 844, light and dark; look at them after each change of the page.
"""

import sys
from pathlib import Path
from tempfile import mkdtemp

from playwright.sync_api import sync_playwright

from percov2_core.ui.compress import EXAMPLES_DIR
from percov2_core.weights.find import EMBEDDED_DIR
from tests.ui_browser import (
    choose_example,
    choose_mode,
    compress,
    launch,
    new_page,
    open_plot,
    open_tab,
)
from tests.ui_server import ROOT, serve

EXAMPLE = 7
SIZES = {"desktop": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844}}
WAIT_MS = 180_000
GALLERY_CARD = 6
_MOVED_JS = "before => document.querySelector('.pc-told nav span').textContent !== before"


def main(model, out):
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix="percov2-screenshots-"))
    with serve(model, folder) as server, sync_playwright() as playwright:
        browser = launch(playwright)
        for scheme in ("light", "dark"):
            for name, size in SIZES.items():
                _visit(browser, server, size, scheme, out / f"{name}-{scheme}")


def _visit(browser, server, size, scheme, stem):
    page = new_page(browser, server, f"?__theme={scheme}", viewport=size, color_scheme=scheme)
    page.set_default_timeout(WAIT_MS)
    page.locator(".pc-cards svg").first.wait_for()
    _shoot(page, stem, "gallery")
    page.locator(".pc-cards button").nth(GALLERY_CARD).click()
    page.wait_for_selector("#pc-decoded-stage figure:not(.pc-busy)")
    _shoot(page, stem, "gallery-opened", whole=False)
    open_tab(page, "Compress")
    choose_example(page, EXAMPLE)
    compress(page)
    for mode in ("Extreme", "Ultra-low"):
        choose_mode(page, mode)
        page.wait_for_selector("#pc-bits .pc-bar")
        _shoot(page, stem, mode.lower(), whole=False)
    _views(page, stem)
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
    open_tab(page, "Many pictures")
    page.locator("#pc-many-files input[type=file]").set_input_files(
        sorted(EXAMPLES_DIR.glob("*.jpg"))
    )
    page.locator("#pc-many-files").get_by_text("parrots").wait_for()
    page.locator("#pc-many-start").click()
    page.locator("#pc-many-said").get_by_text("8 of 8").wait_for()
    page.locator("#pc-many-table button").first.click()
    page.wait_for_selector("#pc-many-stage .pc-range")
    _shoot(page, stem, "many")
    open_tab(page, "Open a file")
    page.locator("#pc-link-box textarea").fill(link)
    page.locator("#pc-open-link").click()
    page.wait_for_selector("#pc-decoded-stage .pc-tools button")
    _shoot(page, stem, "open")
    page.context.close()
    page = new_page(browser, server, f"?stage=1&__theme={scheme}", viewport=size)
    for _ in range(GALLERY_CARD):
        page.wait_for_selector("#pc-show figure:not(.pc-busy)")
        at = page.locator(".pc-told nav span").inner_text()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(_MOVED_JS, arg=at)
    page.wait_for_selector("#pc-show figure:not(.pc-busy)")
    _shoot(page, stem, "stage", whole=False)
    page.context.close()


def _views(page, stem):
    """The other ways to compare, and back to the slider."""
    figure = page.locator("#pc-stage")
    for name, button in (
        ("side", "Side by side"),
        ("flip-8", "Flip"),
        ("difference", "Difference"),
    ):
        figure.get_by_role("button", name=button, exact=True).click()
        if name == "flip-8":
            figure.get_by_role("button", name="8:1").click()
        if name == "difference":
            figure.get_by_role("button", name="Reset").click()
            page.wait_for_function("document.querySelector('#pc-stage .pc-error').src")
        figure.locator(".pc-view").scroll_into_view_if_needed()
        _shoot(page, stem, name, whole=False)
    figure.get_by_role("button", name="Slider").click()


def _shoot(page, stem, name, *, whole=True):
    page.wait_for_timeout(800)  # fades and fonts
    page.screenshot(path=f"{stem}-{name}.png", full_page=whole)


if __name__ == "__main__":
    given = dict(enumerate(map(Path, sys.argv[1:])))
    main(given.get(0, EMBEDDED_DIR), given.get(1, ROOT / "assets" / "screenshots"))
