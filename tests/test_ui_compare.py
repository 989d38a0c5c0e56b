"""Comparing pictures, the gallery and the presenter's mode, in a browser: by mouse, keys, touch."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from percov2_core.bitstream import Stream
from tests.tiny import tiny_codec
from tests.ui_browser import choose_example, compress, expect, open_tab, pixels

pytestmark = [pytest.mark.ui, pytest.mark.timeout(600)]

SIDE_PX = 512  # of every example
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def seen(page, picture):
    """The middle of a picture's window on the screen, and the same of its file 8:1, unsmoothed."""
    box = picture.locator("xpath=..").bounding_box()
    inner = {name: round(box[name]) + 20 for name in ("x", "y")} | {"width": 300, "height": 300}
    screen = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=inner))).convert("RGB"))
    place = picture.bounding_box()
    source = np.frombuffer(pixels(picture), np.uint8).reshape(SIDE_PX, SIDE_PX, 3)
    at = [np.arange(300) + inner[name] - round(place[name]) for name in ("y", "x")]
    return screen, source[at[0][:, None] // 8, at[1] // 8]


def zoom(page):
    return float(re.findall(r"[\d.]+", page.locator("#pc-stage .pc-zoom").inner_text())[0])


def test_three_views_show_one_place_and_pixels_as_they_are(page):
    choose_example(page, 2)
    page.locator("#pc-caption-box textarea").focus()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#pc-stage .pc-range")
    expect(page.locator(".pc-gallery")).to_be_hidden()
    for place in ("#pc-compress", "#pc-stage .pc-tools"):
        box = page.locator(place).bounding_box()
        assert box is not None and box["y"] + box["height"] <= 900
    slider, view = page.get_by_role("slider", name="Compare"), page.locator("#pc-stage .pc-view")
    for _ in range(5):
        slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "55 percent original"
    for value in ("0", "100"):
        page.keyboard.press("o")
        assert slider.input_value() == value
    box = view.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100, steps=2)
    page.mouse.up()
    assert abs(int(slider.input_value()) - 50) <= 1

    sides = page.get_by_role("button", name="Side by side")
    sides.click()
    expect(sides).to_have_attribute("aria-pressed", "true")
    whole = zoom(page)
    page.get_by_role("button", name="8:1").click()
    original, decoded = (page.locator(f"#pc-stage .pc-{one}") for one in ("original", "decoded"))
    before = original.bounding_box()
    box = original.locator("xpath=..").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 163, box["y"] + 229, steps=2)
    page.mouse.up()
    moved = original.bounding_box()
    assert (moved["x"] - before["x"], moved["y"] - before["y"]) == (-37, 29)
    for picture in (original, decoded):
        screen, expected = seen(page, picture)
        assert np.abs(screen.astype(int) - expected).max() <= 1
    page.mouse.wheel(0, -200)
    expect(page.locator("#pc-stage .pc-zoom")).to_have_text(re.compile(r"^1[12]\d\d %$"))
    view.press("ArrowLeft")
    assert original.bounding_box()["x"] > moved["x"] - 1000
    view.press("0")
    assert zoom(page) == whole

    page.get_by_role("button", name="Flip").click()
    for shown, hidden, said in ((decoded, original, "tap"), (original, decoded, "Original")):
        expect(shown).to_be_visible()
        expect(hidden).to_be_hidden()
        expect(page.locator("#pc-stage .pc-say")).to_contain_text(said)
        page.keyboard.press("o")
    view.press("8")
    page.get_by_label("Extreme", exact=True).check()  # another picture: the same view and place
    expect(page.locator("#pc-head")).to_contain_text("mode extreme")
    expect(page.locator("#pc-stage .pc-zoom")).to_have_text("8:1")
    expect(decoded).to_be_visible()
    page.get_by_role("button", name="Full screen").click()
    page.wait_for_function("document.fullscreenElement?.matches('.pc-compare')")


def test_a_phone_scrolls_pinches_drags_and_taps(visit):
    page = visit(**PHONE)
    choose_example(page, 3)
    compress(page)
    page.wait_for_function("document.documentElement.scrollWidth <= 390")
    fingers = page.context.new_cdp_session(page)
    picture = page.locator("#pc-stage .pc-decoded")
    picture.evaluate("one => one.scrollIntoView({block: 'center', behavior: 'instant'})")
    page.wait_for_timeout(500)

    def middle():
        box = page.locator("#pc-stage .pc-view").bounding_box()
        return box["x"] + box["width"] / 2 - 60, box["y"] + box["height"] / 2 - 60

    def touch(kind, *places):
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def drag(*ways):
        """Fingers near the picture's middle, one for each way, in eight steps."""
        x, y = middle()
        starts = [(x, y + 40 * i) for i in range(len(ways))]
        touch("touchStart", *starts)
        for i in range(1, 9):
            moves = zip(starts, ways, strict=True)
            touch("touchMove", *((x + dx * i / 8, y + dy * i / 8) for (x, y), (dx, dy) in moves))
        touch("touchEnd")

    whole, top = zoom(page), page.evaluate("scrollY")
    drag((0, -120))
    page.wait_for_function("before => scrollY > before + 60", arg=top)
    assert zoom(page) == whole
    expect(page.get_by_role("slider", name="Compare")).to_have_value("50")
    drag((90, 0))
    expect(page.get_by_role("slider", name="Compare")).to_have_value(re.compile(r"5[789]|60"))
    drag((0, -40), (0, 40))
    assert zoom(page) > 1.5 * whole and page.evaluate("visualViewport.scale") == 1
    before, top = picture.bounding_box(), page.evaluate("scrollY")
    drag((-70, -50))
    after = picture.bounding_box()
    assert after["x"] < before["x"] - 20 and after["y"] < before["y"] - 20
    assert page.evaluate("scrollY") == top
    page.get_by_role("button", name="Reset").tap()
    page.get_by_role("button", name="Flip").tap()
    expect(page.locator("#pc-stage .pc-original")).to_be_hidden()
    page.touchscreen.tap(*middle())
    expect(page.locator("#pc-stage .pc-original")).to_be_visible()


@pytest.mark.parametrize("options", [{}, PHONE], ids=["desktop", "phone"])
def test_a_card_of_the_gallery_is_painted_from_its_file(visit, options, server):
    page = visit(**options)
    card = page.locator(".pc-cards button").last
    card.locator("svg").wait_for()
    assert card.bounding_box()["y"] < page.viewport_size["height"]
    card.click()
    figure = page.locator("#pc-decoded-stage figure:not(.pc-busy)")
    figure.wait_for()
    (path,) = server.files.with_name("gallery").glob("*parrots.pcv2")
    painted = tiny_codec().decode(Stream.from_bytes(path.read_bytes()))
    assert pixels(figure.locator(".pc-decoded")) == painted.tobytes()
    expect(figure.locator(".pc-right")).to_have_text(f"From {path.stat().st_size} bytes")
    assert figure.locator(".pc-view").bounding_box()["y"] < page.viewport_size["height"] / 2
    with page.expect_file_chooser():
        page.locator(".pc-own >> visible=true").click()
    expect(page.get_by_role("tab", name="Compress")).to_have_attribute("aria-selected", "true")


def test_the_stage_goes_through_the_files_by_keys(visit, server):
    page = visit("?stage=1")
    title, at = page.locator(".pc-told h2"), page.locator(".pc-told nav span")
    sizes = sorted(path.stat().st_size for path in server.files.parent.glob("gallery/*.pcv2"))
    expect(page.locator("#pc-compress")).to_be_hidden()
    for key, place in (("", 0), ("ArrowRight", 1), ("PageDown", 0), ("PageUp", 1), ("p", 0)):
        if key:
            page.keyboard.press(key)
        expect(at).to_have_text(f"{place + 1} of {len(sizes)}")
        expect(title).to_have_text(f"{sizes[place]} bytes")
        expect(page.locator(".pc-told p")).to_contain_text("“")  # its caption, once it is painted
    page.keyboard.press("o")
    expect(page.locator("#pc-show .pc-say")).to_have_text("Original")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_is_asked_for_while_another_file_is_painted_comes_next(visit, hold):
    page = visit("?stage=1")
    at = page.locator(".pc-told nav span")
    expect(at).to_have_text("1 of 2")  # at once; its picture is held back
    page.keyboard.press("ArrowRight")
    hold.unlink()
    expect(at).to_have_text("2 of 2")
    expect(page.locator(".pc-told p")).to_contain_text("“")


def test_of_cards_clicked_in_a_row_the_last_is_painted_and_who_waits_is_told(visit, hold, server):
    page, other = visit(), visit()
    cards = page.locator(".pc-cards button")
    cards.first.locator("svg").wait_for()
    cards.first.click()
    expect(page.locator("#pc-decoded-stage [role=status]")).to_contain_text("Step 1 of")
    open_tab(page, "Compress")
    cards.last.click()
    other.locator(".pc-cards button").first.click()
    expect(other.locator("#pc-decoded-stage [role=status]")).to_have_text("Waiting for your turn…")
    hold.unlink()
    sizes = sorted(path.stat().st_size for path in server.files.with_name("gallery").glob("*.pcv2"))
    for visitor, size in ((page, sizes[-1]), (other, sizes[0])):
        expect(visitor.locator("#pc-decoded-stage .pc-right")).to_have_text(f"From {size} bytes")
