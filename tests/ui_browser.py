"""What a person does in a browser, and what the browser complains about."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Error, Locator, Page, Playwright, expect

from tests.ui_server import Server

WAIT_MS = 90_000
expect.set_options(timeout=WAIT_MS)
SYSTEM_CHROMIUM = Path("/usr/bin/chromium")
_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


def launch(playwright: Playwright) -> Browser:
    """The system's Chromium, else Playwright's own; skips where there is neither."""
    path = str(SYSTEM_CHROMIUM) if SYSTEM_CHROMIUM.exists() else None
    try:
        return playwright.chromium.launch(executable_path=path, args=_QUIET)
    except Error:
        pytest.skip("needs Chromium: install it, or run `playwright install chromium`")


def new_page(browser: Browser, server: Server, query: str = "", **options: object) -> Page:
    """A visitor; `page.complaints` is what the console says against the page, `page.hosts` whom
    the browser asked for anything."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}, **options).new_page()
    page.set_default_timeout(WAIT_MS)
    page.complaints, page.hosts = [], set()
    page.on("request", lambda request: page.hosts.add(urlsplit(request.url).netloc))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: _note(page, message))
    page.goto(server.address + query)
    page.wait_for_selector("#pc-compress", state="attached")  # a link opens to another tab
    return page


def _note(page: Page, message: ConsoleMessage) -> None:
    # Gradio asks for the progress of uploads that have already arrived, and is told 404.
    asked = "upload_progress" in message.location["url"] or message.text == "Response"
    if message.type == "error" and not asked:
        page.complaints.append(message.text)


def pixels(image: Locator) -> bytes:
    """The decoded PNG of an <img> whose picture is inside the page."""
    source = image.get_attribute("src") or ""
    assert source.startswith("data:image/png;base64,")
    data = base64.b64decode(source.partition(",")[2])
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def choose_example(page: Page, number: int) -> None:
    """Click a thumbnail and wait until its caption is there."""
    box = page.locator("#pc-caption-box textarea")
    before = box.input_value()
    page.locator("#pc-examples button").nth(number).click()
    page.wait_for_function(
        "([before]) => { const now = document.querySelector('#pc-caption-box textarea').value;"
        " return now && now !== before }",
        arg=[before],
    )


def compress(page: Page) -> int:
    """Press the button, wait for the picture; -> the bytes in the headline."""
    page.evaluate("document.querySelector('#pc-stage figure')?.classList.add('seen')")
    page.locator("#pc-compress").click()
    page.wait_for_selector("#pc-stage figure:not(.seen) .pc-range")
    return int(page.locator("#pc-bytes").get_attribute("data-bytes") or 0)


def set_steps(page: Page, steps: int) -> None:
    """In the advanced settings, which are opened for it."""
    box = page.get_by_label("number input for Steps")
    if not box.is_visible():
        page.get_by_role("button", name="Advanced").click()
    slider = page.get_by_label("range slider for Steps")
    for _ in range(100):  # a slider that is just being shown forgets what it is told
        box.fill(str(steps))
        box.press("Enter")
        page.wait_for_timeout(200)
        if box.input_value() == slider.input_value() == str(steps):
            return
    pytest.fail(f"the slider does not take {steps} steps")


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
