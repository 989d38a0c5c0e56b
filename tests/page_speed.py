"""Seconds that a visitor waits: `python -m tests.page_speed [--model FOLDER] [--threads N]`.

From the start of the demo to its first page, and from the click on Compress to the headline and to
the picture, on an example at the default preset. Medians; run it on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

from percov2_core.weights.find import EMBEDDED_DIR
from tests.ui_browser import choose_example, launch, open_tab
from tests.ui_server import serve

EXAMPLES = (0, 3, 5, 6, 7)
STARTS = 3
_BUTTONS = {"extreme": "Extreme", "ultra-low": "Ultra-low", "hybrid": "Hybrid"}
# The browser's own clock: from the click to the first change that shows what was waited for.
_CLICK_JS = """() => new Promise((resolve) => {
    const seen = {};
    const began = performance.now();
    document.querySelector('#pc-bytes')?.removeAttribute('id');
    document.querySelector('#pc-stage figure')?.classList.add('seen');
    const look = () => {
        const now = (performance.now() - began) / 1000;
        if (document.querySelector('#pc-bytes')) seen.headline ??= now;
        if (document.querySelector('#pc-stage figure:not(.seen) .pc-range')) seen.picture ??= now;
        if (seen.headline && seen.picture) resolve(seen);
        else requestAnimationFrame(look);
    };
    document.querySelector('#pc-compress').click();
    requestAnimationFrame(look);
})"""


def main(model: Path, threads: int) -> None:
    with sync_playwright() as playwright:
        page = launch(playwright).new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        starts = [_start(page, model, threads) for _ in range(STARTS)]
        print(f"first page {statistics.median(starts):.1f} s after the start", flush=True)
        with TemporaryDirectory() as folder, serve(model, Path(folder), threads=threads) as server:
            page.goto(server.address)
            open_tab(page, "In numbers")  # so that it is seen when everything is done
            for mode, label in _BUTTONS.items():
                page.get_by_label(label).first.check()
                waits = [_wait(page, number) for number in EXAMPLES]
                headline, picture = (
                    statistics.median(wait[name] for wait in waits)
                    for name in ("headline", "picture")
                )
                print(f"{mode}: headline {headline:.2f} s, picture {picture:.2f} s after the click")


def _start(page: Page, model: Path, threads: int) -> float:
    began = time.perf_counter()
    with TemporaryDirectory() as folder, serve(model, Path(folder), threads=threads) as server:
        page.goto(server.address)
        page.get_by_role("button", name="Compress").wait_for()
        return time.perf_counter() - began


def _wait(page: Page, number: int) -> dict[str, float]:
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
