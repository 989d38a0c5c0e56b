"""How a picture comes into the page, in a browser; and what is said of one that does not."""

import base64

import pytest

from percov2_core.ui.border import MAX_UPLOAD_BYTES
from tests.picture_files import saved
from tests.tiny import picture
from tests.ui_browser import choose_example, compress, expect, open_tab, pixels

pytestmark = [pytest.mark.ui, pytest.mark.timeout(600)]

_COPY_JS = """async (data) => {
    const blob = await (await fetch(`data:image/png;base64,${data}`)).blob();
    await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
}"""


def upload(page, file):
    page.locator("#pc-image input[type=file]").first.set_input_files(file)


def caption(page):
    """Of the picture that was just chosen, once it is there."""
    box = page.locator("#pc-caption-box textarea")
    expect(box).not_to_have_value("")
    return box.input_value()


def test_a_picture_is_pasted_and_replaced_by_the_next_one(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    before = ""
    for seed in (0, 1):
        data = saved(picture(256, 128, seed=seed), "PNG")
        page.evaluate(_COPY_JS, base64.b64encode(data).decode())
        page.keyboard.press("Control+v")
        expect(page.locator("#pc-caption-box textarea")).not_to_have_value(before)
        before = caption(page)
        compress(page)
        shown = pixels(page.locator("#pc-stage .pc-original"))
        assert shown == picture(256, 128, seed=seed).tobytes()


def test_the_webcam_gives_a_picture(visit):
    page = visit(permissions=["camera"])
    page.get_by_role("button", name="Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#pc-image video')?.currentTime > 0.2")
    page.get_by_role("button", name="capture photo").click()
    assert caption(page)
    assert compress(page) > 0


def test_a_large_picture_is_offered_two_sizes(page, tmp_path):
    picture(1600, 400).save(tmp_path / "wide.jpg")
    upload(page, tmp_path / "wide.jpg")
    slow = page.get_by_label("2048 px (slow)")
    slow.wait_for()
    compress(page)
    expect(page.locator("#pc-bits")).to_contain_text("1024 x 256 pixels")
    slow.check()
    compress(page)
    expect(page.locator("#pc-bits")).to_contain_text("1600 x 400 pixels")


def test_what_cannot_be_read_gets_a_message_in_words(visit, tmp_path):
    page = visit("?pcv2=sRwBAAAA")

    def say(words):
        expect(page.get_by_test_id("toast-body").filter(has_text=words)).to_be_visible()

    say("whole link was copied")
    open_tab(page, "Compress")
    choose_example(page, 0)
    expect(page.locator("#pc-compress")).to_be_enabled()
    (tmp_path / "broken.png").write_bytes(b"no such thing" * 20)
    upload(page, tmp_path / "broken.png")
    say("broken.png is not a picture")
    expect(page.locator("#pc-compress")).to_be_disabled()  # nor is the one before still there
    expect(page.locator("#pc-caption-box textarea")).to_have_value("")
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(MAX_UPLOAD_BYTES + 1)
    upload(page, tmp_path / "big.png")
    say("maximum allowed size of 20")
    open_tab(page, "Open a file")
    page.locator("#pc-file input[type=file]").first.set_input_files(tmp_path / "broken.png")
    say("not a PerCoV2 file")
