"""The page in a browser, around the tiny codec: what a person does, and how a picture comes in."""

import base64
import json
import re

import pytest

from percov2_core.cli import main
from percov2_core.ui.border import MAX_UPLOAD_BYTES
from percov2_core.ui.compress import EXAMPLES_DIR
from tests import ui_browser
from tests.picture_files import saved
from tests.tiny import picture, tiny_folder
from tests.ui_browser import choose_example, compress, expect, open_tab, pixels, set_steps

pytestmark = [pytest.mark.ui, pytest.mark.timeout(600)]


def test_the_headline_says_the_size_of_the_downloaded_file(page):
    choose_example(page, 0)
    open_tab(page, "File and QR")
    compress(page)
    for mode in ("Hybrid (any size)", "Ultra-low", "Extreme"):
        size_bytes = ui_browser.choose_mode(page, mode)
        expect(page.locator("#pc-download")).to_contain_text(f"({size_bytes:,} bytes)")
        assert ui_browser.download(page).stat().st_size == size_bytes
    page.locator("#pc-caption-box textarea").fill("x" * 60)
    expect(page.locator("#pc-cost")).to_contain_text("bits")
    assert compress(page) > size_bytes
    open_tab(page, "Where bits went")
    expect(page.locator("#pc-bits")).to_contain_text("x" * 60)


def test_another_size_is_another_picture_of_the_same_encoding(page, server):
    choose_example(page, 5)
    first, looks = compress(page), server.work.looks
    decoded, slider = page.locator("#pc-stage .pc-decoded"), page.locator("#pc-size [type=range]")
    shown = [pixels(decoded)]
    for size in (60, 400, 200):
        assert size - 2 <= ui_browser.resize(page, size) <= size
        shown.append(pixels(decoded))
    assert len(set(shown)) == 4
    assert 197 <= ui_browser.painted(page, lambda: slider.press("ArrowLeft")) <= 199
    assert page.locator("#pc-mode input:checked").get_attribute("value") == "hybrid"
    expect(page.locator("#pc-bits .pc-total")).to_contain_text(re.compile("19[789]"))
    assert ui_browser.resize(page, 13) > 13
    expect(page.locator("#pc-head")).to_contain_text("13 cannot be reached")
    assert ui_browser.choose_mode(page, "Ultra-low") == first and pixels(decoded) == shown[0]
    expect(slider).to_have_value(str(first))
    assert server.work.looks == looks
    page.locator("#pc-caption-box textarea").fill("the sea")
    assert compress(page) and server.work.looks == looks + 1


def test_a_run_is_cancelled_in_the_middle_of_a_step_and_nothing_jumps(page, hold):
    def below():
        box = page.locator("#pc-details-tabs").bounding_box()
        assert box is not None
        return box["y"] + page.evaluate("scrollY")

    set_steps(page, 3)
    empty = below()
    choose_example(page, 6)
    assert below() == empty
    ui_browser.starts(page, "Step 1 of 3")
    assert below() == empty
    page.locator("#pc-cancel").click()
    expect(page.locator("#pc-head")).to_contain_text("Cancelled")
    expect(page.locator("#pc-stage figure")).to_have_count(0)
    hold.unlink()
    compress(page)
    expect(page.locator("#pc-head")).not_to_contain_text("Cancelled")
    assert below() == empty


def test_the_second_painter_repaints_the_same_file_in_both_tabs(page, server):
    choose_example(page, 4)
    size_bytes, decoded = compress(page), page.locator("#pc-stage .pc-decoded")
    own, looks = pixels(decoded), server.work.looks
    page.get_by_role("button", name="Advanced").click()
    first, second = page.locator("#pc-painter input").all()
    tag, name = page.locator("#pc-stage .pc-right"), second.get_attribute("value")
    assert ui_browser.painted(page, second.check) == size_bytes
    expect(tag).to_have_text(f"From {size_bytes} bytes, by {name}")
    repainted = pixels(decoded)
    assert repainted != own
    open_tab(page, "File and QR")
    file = ui_browser.download(page)
    ui_browser.painted(page, first.check)
    expect(tag).to_have_text(f"From {size_bytes} bytes")
    assert pixels(decoded) == own and server.work.looks == looks
    open_tab(page, "Open a file")
    page.locator("#pc-file input[type=file]").set_input_files(file)
    opened, tag = (page.locator(f"#pc-decoded-stage .pc-{part}") for part in ("decoded", "right"))
    expect(tag).to_have_text(f"From {size_bytes} bytes")
    assert pixels(opened) == own
    page.locator("#pc-file-painter input").nth(1).check()
    expect(tag).to_have_text(f"From {size_bytes} bytes, by {name}")
    assert pixels(opened) == repainted


def test_the_file_and_the_link_open_to_the_same_pixels(page, visit, server):
    choose_example(page, 3)
    compress(page)
    painted = pixels(page.locator("#pc-stage .pc-decoded"))
    open_tab(page, "File and QR")
    link = page.locator("#pc-link").input_value()
    file = ui_browser.download(page)

    visitor = visit(link.removeprefix(server.address))
    shown = visitor.locator("#pc-decoded-stage .pc-tools button >> nth=0")
    shown.wait_for()
    assert pixels(visitor.locator("#pc-decoded-stage .pc-decoded")) == painted

    visitor = visit()
    open_tab(visitor, "Open a file")
    visitor.locator("#pc-file input[type=file]").set_input_files(file)
    visitor.wait_for_selector("#pc-decoded-stage .pc-tools button")
    assert pixels(visitor.locator("#pc-decoded-stage .pc-decoded")) == painted
    facts, slider = visitor.locator(".pc-facts"), visitor.locator("#pc-cut [type=range]")
    for key, sent in (("Home", 0), ("End", 64)):
        slider.press(key)
        expect(facts).to_contain_text(f"coarse {sent} of 64")
        shown = pixels(visitor.locator("#pc-decoded-stage .pc-decoded"))
        assert (shown == painted) == bool(sent)


def test_settings_travel_as_a_line_and_in_the_link_and_give_the_identical_file(
    page, visit, server, tmp_path
):
    line = '{"size": 300, "schedule": "var", "effort": "fast", "caption": "the sea", "seed": 9, '
    line += '"steps": 3, "guidance": 2.5}'
    made = []
    for visitor in (page, visit()):
        choose_example(visitor, 3)
        ui_browser.use_settings(visitor, line)
        open_tab(visitor, "File and QR")
        compress(visitor)
        line = visitor.locator("#pc-settings").input_value()
        painted = pixels(visitor.locator("#pc-stage .pc-decoded"))
        made.append((line, painted, ui_browser.download(visitor).read_bytes()))
    assert made[0] == made[1] and json.loads(line) == json.loads(made[0][0])
    run, file = tmp_path / "run.json", tmp_path / "a.pcv2"
    run.write_text(line)
    example = sorted(EXAMPLES_DIR.glob("*.jpg"))[3]
    options = ["--settings", str(run), "--model", str(tiny_folder())]
    assert main(["compress", str(example), "-o", str(file), *options]) == 0
    assert file.read_bytes() == made[0][2]
    shared = visit(page.locator("#pc-link").input_value().removeprefix(server.address))
    shared.wait_for_selector("#pc-decoded-stage .pc-tools button")
    assert pixels(shared.locator("#pc-decoded-stage .pc-decoded")) == made[0][1]
    expect(shared.locator("#pc-opened-settings")).to_have_value(line)
    ui_browser.use_settings(page, '{"steps": 3, "modus": 1}', refused="unknown key 'modus'")


def test_a_waiting_run_is_cancelled_at_once_and_visitors_see_their_own_pictures(page, visit, hold):
    first = visit()
    for number, visitor in enumerate((first, page)):
        choose_example(visitor, number)
        set_steps(visitor, 2)
    ui_browser.starts(first, "Step 1 of 2")
    ui_browser.starts(page, "Waiting")
    page.locator("#pc-cancel").click()
    expect(page.locator("#pc-head")).to_contain_text("Cancelled")
    ui_browser.starts(page, "Waiting")
    hold.unlink()
    for visitor in (first, page):
        visitor.wait_for_selector("#pc-stage .pc-range")
    one, other = (pixels(visitor.locator("#pc-stage .pc-original")) for visitor in (first, page))
    assert one != other


def test_pressing_again_replaces_the_run_under_way(page, hold):
    choose_example(page, 2)
    set_steps(page, 2)
    ui_browser.starts(page, "Step 1 of 2")
    page.get_by_label("Extreme", exact=True).check()
    page.locator("#pc-compress").click()
    hold.unlink()
    page.wait_for_selector("#pc-stage .pc-range")
    expect(page.locator("#pc-head")).to_contain_text("mode extreme")
    open_tab(page, "In numbers")
    expect(page.locator("#pc-numbers .pc-ours")).to_contain_text("extreme")
    open_tab(page, "Trade-off")
    expect(page.locator("#pc-runs tbody tr")).to_have_count(1)


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
