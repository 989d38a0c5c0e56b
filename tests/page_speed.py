"""Seconds that a visitor waits: `python -m tests.page_speed [--model FOLDER] [--threads N]`.

From the start of the demo to its first page, and from the click on Compress to the headline and to
the picture, on an example at the default preset. Medians; run it on an idle machine.
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
STARTS = 3
# The browser's own clock: from the click to the first change that shows what was waited for.
_CLICK_JS = """() => new Promise((resolve) => {
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
    document.querySelector('#pc-compress').click();
    requestAnimationFrame(look);
})"""


def main(model, threads):
    with sync_playwright() as playwright:
        page = launch(playwright).new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        starts = [_start(page, model, threads) for _ in range(STARTS)]
        print(f"first page {median(starts):.1f} s after the start", flush=True)
        with TemporaryDirectory() as folder, serve(model, Path(folder), threads=threads) as server:
            page.goto(server.address)
            open_tab(page, "In numbers")  # so that it is seen when everything is done
            for mode in ("Extreme", "Ultra-low", "Hybrid"):
                page.get_by_label(mode).first.check()
                waits = [_wait(page, number) for number in EXAMPLES]
                headline, picture = (median(w[what] for w in waits) for what in waits[0])
                print(f"{mode}: headline {headline:.2f} s, picture {picture:.2f} s after the click")


def _start(page, model, threads):
    began = time.perf_counter()
    with TemporaryDirectory() as folder, serve(model, Path(folder), threads=threads) as server:
        page.goto(server.address)
        page.get_by_role("button", name="Compress").wait_for()
        return time.perf_counter() - began


def _wait(page, number):
    choose_example(page, number)
    found: dict[str, float] = page.evaluate(_CLICK_JS)
    # What follows a picture must not slow the next one: the classic codecs take some seconds.
    for state in ("attached", "detached"):
        page.locator("#pc-numbers [role=status]").wait_for(state=state)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED_DIR)
    parser.add_argument("--threads", type=int, default=4)
    main(**vars(parser.parse_args()))
