"""The page in a browser, around the tiny codec: what a person does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="needs playwright")

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    TimeoutError,
    expect,
    sync_playwright,
)

from tests.tiny import tiny_folder
from tests.ui_server import Server, choose_example, compress, launch, open_tab, pixels, serve

pytestmark = [pytest.mark.ui, pytest.mark.timeout(600)]

WAIT_MS = 90_000
expect.set_options(timeout=WAIT_MS)
# The test server and the browser leave sockets and event loops to the interpreter's exit.
pytestmark += [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tiny_folder(), tmp_path_factory.mktemp("page"), held=True) as running:
        yield running
        assert not running.errors()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield launch(playwright)


def note(page: Page, message: ConsoleMessage) -> None:
    # Gradio asks for the progress of uploads that have already arrived, and is told 404.
    asked = "upload_progress" in message.location["url"] or message.text == "Response"
    if message.type == "error" and not asked:
        page.complaints.append(message.text)


def new_page(browser: Browser, server: Server, query: str = "", **options: object) -> Page:
    """A visitor; what the console says against the page ends up in `page.complaints`."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}, **options).new_page()
    page.set_default_timeout(WAIT_MS)
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: note(page, message))
    page.goto(server.address + query)
    page.wait_for_selector("#pc-compress", state="attached")  # a link opens to another tab
    return page


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    page = new_page(browser, server)
    yield page
    assert page.complaints == []
    page.context.close()


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
    page: Page, browser: Browser, server: Server
) -> None:
    choose_example(page, 3)
    compress(page)
    painted = pixels(page.locator("#pc-stage .pc-decoded"))
    open_tab(page, "File and QR")
    link = page.locator("#pc-link").input_value()
    with page.expect_download() as download:
        page.locator("#pc-download").click()

    visitor = new_page(browser, server, link.removeprefix(server.address))
    shown = visitor.locator("#pc-decoded-stage .pc-tools button >> nth=0")
    shown.wait_for()
    assert pixels(visitor.locator("#pc-decoded-stage .pc-decoded")) == painted
    assert visitor.complaints == []

    visitor = new_page(browser, server)
    open_tab(visitor, "Open a file")
    visitor.locator("#pc-file input[type=file]").set_input_files(download.value.path())
    visitor.wait_for_selector("#pc-decoded-stage .pc-tools button")
    assert pixels(visitor.locator("#pc-decoded-stage .pc-decoded")) == painted
    expect(visitor.locator("#pc-decoded-details")).to_contain_text("caption")


def test_two_visitors_at_once_see_their_own_pictures(browser: Browser, server: Server) -> None:
    visitors = [new_page(browser, server) for _ in range(2)]
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


@pytest.fixture
def hold(server: Server) -> Iterator[Path]:
    """While this file is there, painting stands still after its first step."""
    server.hold.touch()
    yield server.hold
    server.hold.unlink(missing_ok=True)


def set_steps(page: Page, steps: int) -> None:
    box = page.get_by_label("number input for Steps")
    if not box.is_visible():
        page.get_by_role("button", name="Advanced").click()
    box.fill(str(steps))
    box.press("Enter")


def test_a_run_is_cancelled_in_the_middle_of_a_step(page: Page, hold: Path) -> None:
    choose_example(page, 6)
    set_steps(page, 3)
    page.locator("#pc-compress").click()
    expect(page.locator("#pc-stage [role=status]")).to_contain_text("Step 1 of 3")
    page.locator("#pc-cancel").click()
    expect(page.locator("#pc-head")).to_contain_text("Cancelled")
    expect(page.locator("#pc-stage figure")).to_have_count(0)
    hold.unlink()
    compress(page)
    expect(page.locator("#pc-head")).not_to_contain_text("Cancelled")


def test_a_waiting_run_is_cancelled_at_once(
    page: Page, browser: Browser, server: Server, hold: Path
) -> None:
    first = new_page(browser, server)
    for visitor, number in ((first, 0), (page, 1)):
        choose_example(visitor, number)
        set_steps(visitor, 2)
    first.locator("#pc-compress").click()
    expect(first.locator("#pc-stage [role=status]")).to_contain_text("Step 1 of 2")
    page.locator("#pc-compress").click()
    expect(page.locator("#pc-stage [role=status]")).to_contain_text("Waiting")
    page.locator("#pc-cancel").click()
    expect(page.locator("#pc-head")).to_contain_text("Cancelled")
    page.locator("#pc-compress").click()
    expect(page.locator("#pc-stage [role=status]")).to_contain_text("Waiting")
    hold.unlink()
    for visitor in (first, page):
        visitor.wait_for_selector("#pc-stage .pc-range")
    assert first.complaints == []
    first.context.close()


def test_pressing_again_replaces_the_run_under_way(page: Page, hold: Path) -> None:
    choose_example(page, 2)
    set_steps(page, 2)
    page.locator("#pc-compress").click()
    expect(page.locator("#pc-stage [role=status]")).to_contain_text("Step 1 of 2")
    page.get_by_label("Ultra-low", exact=True).check()
    page.locator("#pc-compress").click()
    hold.unlink()
    page.wait_for_selector("#pc-stage .pc-range")
    expect(page.locator("#pc-head")).to_contain_text("mode ultra-low")
    open_tab(page, "In numbers")
    expect(page.locator("#pc-numbers .pc-ours")).to_contain_text("ultra-low")
    open_tab(page, "Trade-off")
    expect(page.locator("#pc-runs tbody tr")).to_have_count(1)


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
def test_axe_finds_nothing_serious(browser: Browser, server: Server, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    page = new_page(browser, server, f"?__theme={scheme}", color_scheme=scheme)
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
