"""What a person does in a browser, and what the browser complains about."""

import base64
import io
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = sync_api.expect

WAIT_MS = 90_000
expect.set_options(timeout=WAIT_MS)
SYSTEM_CHROMIUM = Path("/usr/bin/chromium")
_QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--use-fake-device-for-media-stream"),
    "--use-fake-ui-for-media-stream",
]


def launch(playwright):
    """The system's Chromium, else Playwright's own; skips where there is neither."""
    path = str(SYSTEM_CHROMIUM) if SYSTEM_CHROMIUM.exists() else None
    try:
        return playwright.chromium.launch(executable_path=path, args=_QUIET)
    except sync_api.Error:
        pytest.skip("needs Chromium: install it, or run `playwright install chromium`")


def new_page(browser, server, query="", **options):
    """A visitor; `page.complaints` is what the console says against the page, `page.hosts` whom
    the browser asked for anything."""
    options = {"viewport": {"width": 1440, "height": 900}, **options}
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(WAIT_MS)
    page.complaints, page.hosts = [], set()
    page.on("request", lambda request: page.hosts.add(urlsplit(request.url).netloc))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: _note(page, message))
    page.goto(server.address + query)
    page.wait_for_selector("#pc-compress", state="attached")  # a link opens to another tab
    return page


def _note(page, message):
    # Gradio asks for the progress of uploads that have already arrived, and is told 404.
    asked = "upload_progress" in message.location["url"] or message.text == "Response"
    if message.type == "error" and not asked:
        page.complaints.append(message.text)


def pixels(image):
    """The decoded PNG of an <img> whose picture is inside the page."""
    source = image.get_attribute("src") or ""
    assert source.startswith("data:image/png;base64,")
    data = base64.b64decode(source.partition(",")[2])
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def choose_example(page, number):
    """Click a thumbnail and wait until its caption is there."""
    before = page.locator("#pc-caption-box textarea").input_value()
    page.locator("#pc-examples button").nth(number).click()
    now = "document.querySelector('#pc-caption-box textarea').value"
    page.wait_for_function(f"([before]) => {now} && {now} !== before", arg=[before])


def compress(page):
    """Press the button, wait for the picture; -> the bytes in the headline."""
    return painted(page, page.locator("#pc-compress").click)


def painted(page, act):
    """Do what brings another picture, wait for it; -> the bytes in the headline."""
    page.evaluate("document.querySelector('#pc-stage figure')?.classList.add('seen')")
    act()
    page.wait_for_selector("#pc-stage figure:not(.seen) .pc-range")
    return int(page.locator("#pc-bytes").get_attribute("data-bytes") or 0)


def choose_mode(page, label):
    return painted(page, page.get_by_label(label, exact=True).check)


def resize(page, size):
    def type_it():
        box = page.locator("#pc-size input[type=number]")
        box.press("Control+a")
        box.press_sequentially(str(size))
        box.press("Enter")

    return painted(page, type_it)


def set_steps(page, steps):
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


def use_settings(page, line, *, refused=""):
    """Paste them under Advanced, which is opened for it."""
    box = page.locator("#pc-paste textarea, #pc-paste input")
    if not box.is_visible():
        page.get_by_role("button", name="Advanced").click()
    box.fill(line)
    box.press("Enter")
    expect(page.locator(".toast-body").last).to_contain_text(refused or "Compress to see them")


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def open_plot(page):
    """With its plot drawn."""
    open_tab(page, "Trade-off")
    page.wait_for_function("document.querySelector('#pc-plot .js-plotly-plot')?.listened")


def download(page):
    """The file of the link below File and QR, which is open."""
    with page.expect_download() as waiting:
        page.locator("#pc-download").click()
    assert waiting.value.suggested_filename.endswith(".pcv2")
    return Path(waiting.value.path())


def starts(page, step):
    page.locator("#pc-compress").click()
    expect(page.locator("#pc-stage [role=status]")).to_contain_text(step)
