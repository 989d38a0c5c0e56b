"""Seconds that a visitor waits: `python -m tests.page_speed [--model FOLDER] [--threads N]`.

From the start of the demo to its first page, and to a first picture where an example and Compress
are clicked at once; then from the click on Compress, or a move of the size control, to the headline
and to the picture, at the default preset. Medians; run it on an idle machine.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

from percov2_core.weights.find import EMBEDDED_DIR
from tests.ui_browser import choose_example, launch, open_tab
from tests.ui_server import serve

EXAMPLES = (0, 3, 5, 6, 7)
BYTES = (30, 60, 120, 250, 500)
STARTS = 3
_CLICK_JS = "document.querySelector('#pc-compress').click()"
_MOVE_JS = """const range = document.querySelector('#pc-size input[type=range]');
range.value = %d; range.dispatchEvent(new Event('input', {bubbles: true}))"""
# The browser's own clock: from an act to the first change that shows what was waited for.
_WAIT_JS = """(act) => new Promise((resolve) => {
    const seen = {headline: 0, picture: 0};
    const began = performance.now();
    document.querySelector('#pc-bytes')?.removeAttribute('id');
    document.querySelector('#pc-stage figure')?.classList.add('seen');
    const look = () => {
        const now = (performance.now() - began) / 1000;
        if (document.querySelector('#pc-bytes')) seen.headline ||= now;
        if (document.querySelector('#pc-stage figure:not(.seen) .pc-range')) seen.picture ||= now;
        if (seen.headline && seen.picture) resolve(seen);
        else requestAnimationFrame(look);
    };
    new Function(act)();
    requestAnimationFrame(look);
})"""


def main(model, threads):
    with sync_playwright() as playwright:
        page = launch(playwright).new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        starts = [_start(page, model, threads) for _ in range(STARTS)]
        first, picture = (median(times) for times in zip(*starts, strict=True))
        print(f"after the start: page {first:.1f} s, picture {picture:.1f} s", flush=True)
        with TemporaryDirectory() as folder, serve(model, Path(folder), threads=threads) as server:
            page.goto(server.address)
            open_tab(page, "In numbers")  # so that it is seen when everything is done
            for mode in ("Extreme", "Ultra-low", "Hybrid"):
                choose_example(page, 1)  # so that no picture is there that the mode repaints
                page.get_by_label(mode).first.check()
                _print(mode, [_compress(page, number) for number in EXAMPLES])
            _print("another size", [_wait(page, _MOVE_JS % size) for size in BYTES])


def _print(what, waits):
    headline, picture = (median(wait[name] for wait in waits) for name in waits[0])
    print(f"{what}: headline {headline:.2f} s, picture {picture:.2f} s")


def _start(page, model, threads):
    began = time.perf_counter()
    with TemporaryDirectory() as folder, serve(model, Path(folder), threads=threads) as server:
        page.goto(server.address)
        page.locator("#pc-compress").wait_for()
        first = time.perf_counter() - began
        page.locator("#pc-examples button").first.click()
        page.locator("#pc-compress").click()  # once it can be
        page.wait_for_selector("#pc-stage .pc-range")
        return first, time.perf_counter() - began


def _compress(page, number):
    choose_example(page, number)
    return _wait(page, _CLICK_JS)


def _wait(page, act):
    found = page.evaluate(_WAIT_JS, act)
    # What follows a picture must not slow the next one: the classic codecs take some seconds.
    for state in ("attached", "detached"):
        page.locator("#pc-numbers [role=status]").wait_for(state=state)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED_DIR)
    parser.add_argument("--threads", type=int, default=4)
    main(**vars(parser.parse_args()))
