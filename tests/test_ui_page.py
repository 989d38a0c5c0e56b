"""The page in a browser, around the tiny codec: what a person does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="needs playwright")

from playwright.sync_api import Locator, Page, TimeoutError, expect

from tests.ui_browser import choose_example, compress, open_tab, pixels
from tests.ui_server import Server

pytestmark = [pytest.mark.ui, pytest.mark.timeout(600)]
Visit = Callable[..., Page]


@pytest.mark.parametrize("mode", ["Ultra-low", "Extreme", "Hybrid (generated caption only)"])
def test_the_headline_says_the_size_of_the_downloaded_file(page: Page, mode: str) -> None:
    choose_example(page, 0)
    page.get_by_label(mode, exact=True).check()
    size_bytes = compress(page)
    open_tab(page, "File and QR")
    with page.expect_download() as download:
        page.locator("#pc-download").click()
    assert Path(download.value.path()).stat().st_size == size_bytes
    assert download.value.suggested_filename.endswith(".pcv2")


def test_an_edited_caption_is_priced_and_sent(page: Page) -> None:
    choose_example(page, 1)
    before = compress(page)
    page.locator("#pc-caption-box textarea").fill("x" * 60)
    expect(page.locator("#pc-cost")).to_contain_text("bits")
    assert compress(page) > before
    expect(page.locator("#pc-bits")).to_contain_text("x" * 60)


def test_the_compare_slider_moves_by_keyboard(page: Page) -> None:
    choose_example(page, 2)
    compress(page)
    slider = page.get_by_role("slider", name="Compare")
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "55 percent original"
    page.keyboard.press("o")
    assert slider.input_value() == "0"
    page.keyboard.press("o")
    assert slider.input_value() == "100"


def test_the_file_and_the_link_open_to_the_same_pixels(
    page: Page, visit: Visit, server: Server
) -> None:
    choose_example(page, 3)
    compress(page)
    painted = pixels(page.locator("#pc-stage .pc-decoded"))
    open_tab(page, "File and QR")
    link = page.locator("#pc-link").input_value()
    with page.expect_download() as download:
        page.locator("#pc-download").click()

    visitor = visit(link.removeprefix(server.address))
    shown = visitor.locator("#pc-decoded-stage .pc-tools button >> nth=0")
    shown.wait_for()
    assert pixels(visitor.locator("#pc-decoded-stage .pc-decoded")) == painted

    visitor = visit()
    open_tab(visitor, "Open a file")
    visitor.locator("#pc-file input[type=file]").set_input_files(download.value.path())
    visitor.wait_for_selector("#pc-decoded-stage .pc-tools button")
    assert pixels(visitor.locator("#pc-decoded-stage .pc-decoded")) == painted
    expect(visitor.locator("#pc-decoded-details")).to_contain_text("caption")


def test_two_visitors_at_once_see_their_own_pictures(visit: Visit) -> None:
    visitors = [visit() for _ in range(2)]
    for number, visitor in enumerate(visitors):
        choose_example(visitor, number)
    for visitor in visitors:
        visitor.locator("#pc-compress").click()
    for visitor in visitors:
        visitor.wait_for_selector("#pc-stage .pc-range")
    originals = [pixels(visitor.locator("#pc-stage .pc-original")) for visitor in visitors]
    assert originals[0] != originals[1]
    for number, visitor in enumerate(visitors):
        choose_example(visitor, 7)
        choose_example(visitor, number)
        compress(visitor)
        assert pixels(visitor.locator("#pc-stage .pc-original")) == originals[number]


def test_a_click_on_a_run_in_the_plot_brings_its_picture_back(page: Page) -> None:
    choose_example(page, 4)
    compress(page)
    painted = pixels(page.locator("#pc-stage .pc-decoded"))
    choose_example(page, 5)
    open_tab(page, "Trade-off")
    page.locator("#pc-csv").wait_for()
    page.wait_for_function("document.querySelector('#pc-plot .js-plotly-plot')?.listened")
    star = page.locator("#pc-plot .scatterlayer .trace:last-child .points path").last
    click_until(page, star, "#pc-stage .pc-range")
    assert pixels(page.locator("#pc-stage .pc-decoded")) == painted
    open_tab(page, "In numbers")
    expect(page.locator("#pc-numbers .pc-ours")).to_be_visible()


def click_until(page: Page, point: Locator, shown: str) -> None:
    """Click a point of the plot; again if the plot was just being drawn anew."""
    for _ in range(20):
        box = point.bounding_box()
        if box is not None:
            page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        with contextlib.suppress(TimeoutError):
            page.wait_for_selector(shown, timeout=3000)
            return
    pytest.fail(f"no click brought {shown}")


@pytest.mark.parametrize(
    ("place", "name", "message"),
    [
        ("#pc-image", "broken.png", "broken.png is not a picture"),
        ("#pc-file", "broken.pcv2", "not a PerCoV2 file"),
    ],
)
def test_a_broken_file_gets_a_message_in_words(
    page: Page, tmp_path: Path, place: str, name: str, message: str
) -> None:
    broken = tmp_path / name
    broken.write_bytes(b"no such thing" * 20)
    if place == "#pc-file":
        open_tab(page, "Open a file")
    page.locator(f"{place} input[type=file]").first.set_input_files(broken)
    expect(page.get_by_test_id("toast-body")).to_contain_text(message)


def test_a_target_size_is_kept(page: Page) -> None:
    choose_example(page, 0)
    page.get_by_role("button", name="Advanced").click()
    page.locator("#pc-target input").fill("60")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#pc-stage .pc-range")
    assert int(page.locator("#pc-bytes").get_attribute("data-bytes") or 0) <= 60


def test_variations_and_fewer_tokens_need_no_new_encoding(page: Page) -> None:
    choose_example(page, 0)
    page.get_by_label("Ultra-low", exact=True).check()
    compress(page)
    open_tab(page, "Invented?")
    page.locator("#pc-vary").click()
    expect(page.locator("#pc-variations")).to_contain_text("On average")
    assert page.locator("#pc-variations img").count() == 5
    page.locator("#pc-resend input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#pc-resent")).to_contain_text("63 of 64 tokens")


def test_the_main_job_fits_one_screen_and_nothing_overflows_a_phone(page: Page) -> None:
    choose_example(page, 0)
    compress(page)
    for place in ("#pc-compress", "#pc-stage .pc-tools"):
        box = page.locator(place).bounding_box()
        assert box is not None and box["y"] + box["height"] <= 900
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.scrollWidth <= 390")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit: Visit, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    page = visit(f"?__theme={scheme}", color_scheme=scheme)
    choose_example(page, 0)
    compress(page)
    page.wait_for_selector("#pc-bits .pc-bar")
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (v["id"], [node["html"][:160] for node in v["nodes"]])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []
