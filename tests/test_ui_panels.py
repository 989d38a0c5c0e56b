"""The panels and tabs around the main job, in a browser."""

import contextlib
import csv
import json
import re

import numpy as np
import pytest

from percov2_core.ui import text
from tests import ui_browser
from tests.ui_browser import choose_example, compress, expect, open_plot, open_tab, pixels

pytestmark = [pytest.mark.ui, pytest.mark.timeout(600)]

TABS = (
    *("Where bits went", "In numbers", "File and QR", "Open a file", "Invented?", "Trade-off"),
    "Many pictures",
)

# The point of a sweep that is farthest from every other point, and where it is on the screen.
_LONELY_JS = """() => {
    const points = [...document.querySelectorAll('#pc-plot .scatterlayer .trace')].flatMap(
        (trace) => [...trace.querySelectorAll('.points path')].map((path) => {
            const box = path.getBoundingClientRect();
            const key = trace.__data__[0].trace.customdata[path.__data__.i][1] || '';
            return {x: box.x + box.width / 2, y: box.y + box.height / 2, key};
        }));
    const gap = (p) => Math.min(...points.filter((q) => q !== p).map(
        (q) => Math.hypot(p.x - q.x, p.y - q.y)));
    return points.filter((p) => p.key.includes('steps=')).sort((a, b) => gap(b) - gap(a))[0];
}"""


def compressed(page, number, mode="Ultra-low"):
    choose_example(page, number)
    page.get_by_label(mode, exact=True).check()
    compress(page)


def test_every_empty_place_says_what_will_be_there(page):
    expect(page.locator("#pc-stage")).to_contain_text(text.EMPTY_STAGE)
    for tab, place, words in (
        ("In numbers", "#pc-numbers", text.EMPTY_NUMBERS),
        ("File and QR", "#pc-share", text.EMPTY_SHARE),
        ("Open a file", "#pc-decoded-stage", text.EMPTY_FILE_STAGE),
        ("Invented?", "#pc-variations", text.EMPTY_VARIATIONS),
        ("Trade-off", "#pc-runs", "is listed here"),
        ("Many pictures", "#pc-many-table", text.EMPTY_MANY),
    ):
        open_tab(page, tab)
        expect(page.locator(place)).to_contain_text(words)


def test_a_file_shows_its_prices_its_order_and_what_it_leaves_open(page):
    compressed(page, 0)
    page.wait_for_selector("#pc-bits .pc-bar")
    data = page.locator("#pc-bits figure.pc-tokens").get_attribute("data-levels") or ""
    coarse, fine = json.loads(data)
    note = page.locator("#pc-bits .pc-token-note")
    fine_tokens = f"{sum(fine['sent'])} fine tokens, {sum(fine['bits']):.0f} bits"
    expect(note).to_contain_text(fine_tokens)
    page.get_by_role("button", name="Coarse", exact=True).click()
    expect(note).to_contain_text(f"64 coarse tokens, {sum(coarse['bits']):.0f} bits")
    page.locator("#pc-bits canvas").hover(position={"x": 3, "y": 3})
    expect(note).to_contain_text(f"row 1, column 1: {coarse['bits'][0]:.2f} bits")
    page.get_by_role("button", name="Play the order").click()
    stages = page.get_by_role("slider", name="Stages shown")
    expect(stages).to_have_value("2")
    assert 0 < int(re.findall(r"(\d+) coarse", note.inner_text())[0]) < 64
    expect(stages).to_have_value(stages.get_attribute("max") or "")
    expect(note).to_contain_text(fine_tokens)

    open_tab(page, "Invented?")
    page.locator("#pc-vary").click()
    expect(page.locator("#pc-variations")).to_contain_text("On average")
    assert page.locator("#pc-variations img").count() == 5


def test_every_codec_is_one_click_away_and_the_runs_download(page, tmp_path):
    compressed(page, 1)
    size_bytes = page.locator("#pc-bytes").get_attribute("data-bytes")
    open_tab(page, "In numbers")
    page.wait_for_selector("#pc-numbers .pc-ours")
    page.locator("#pc-numbers [role=status]").wait_for(state="detached")
    rows = page.locator("#pc-numbers tbody tr")
    assert rows.first.locator("th").inner_text().startswith("PerCoV2 ultra-low")
    labels = rows.locator("th").all_inner_texts()
    assert any("JPEG, its smallest" in label for label in labels)
    last = rows.last.locator("button")
    last.click()
    source = last.locator("img").get_attribute("src")
    expect(page.locator("#pc-stage .pc-decoded")).to_have_attribute("src", source or "")
    tag = last.get_attribute("data-tag") or ""
    expect(page.locator("#pc-stage .pc-right")).to_have_text(tag)
    page.get_by_role("button", name="Difference").click()
    pictures = (page.locator(f"#pc-stage .{one}") for one in ("pc-original", "pc-decoded"))
    levels = [np.frombuffer(pixels(one), np.uint8).astype(float) for one in pictures]
    expect(page.locator("#pc-stage .pc-error")).to_have_attribute(
        "alt", f"Absolute error, {np.abs(np.subtract(*levels)).mean():.1f} of 255 levels on average"
    )
    expect(page.locator("#pc-stage .pc-legend >> nth=0")).to_contain_text("of 255 or more")
    expect(page.locator("#pc-stage .pc-legend >> nth=1")).to_contain_text("PicoRank")
    expect(page.locator("#pc-stage .pc-say")).to_have_text("The difference is shown")
    open_plot(page)
    with page.expect_download() as download:
        page.locator("#pc-csv").click()
    download.value.save_as(tmp_path / "runs.csv")
    (row,) = csv.DictReader((tmp_path / "runs.csv").read_text().splitlines())
    assert row["bytes"] == size_bytes and row["mode"] == "ultra-low"


def test_a_click_on_a_run_in_the_plot_brings_its_picture_back(page):
    choose_example(page, 4)
    painted, decoded = page.locator("#pc-stage .pc-decoded"), []
    for act in (compress, lambda page: ui_browser.choose_mode(page, "Extreme")):
        act(page)
        decoded.append(pixels(painted))
    slider = page.get_by_role("slider", name="Compare")
    slider.press("End")
    open_plot(page)
    page.locator("#pc-x input").click()
    page.get_by_role("option", name="bits per pixel").click()  # which tells the two apart
    expect(page.locator("#pc-plot .xtitle")).to_have_text("bits per pixel")
    stars = page.locator("#pc-plot .scatterlayer .trace:last-child .points path")
    expect(stars).to_have_count(2)
    click_until(page, lambda: centre(stars.first), "#pc-stage .pc-range")
    expect(slider).to_have_value("50")
    assert pixels(painted) == decoded[0] != decoded[1]
    open_tab(page, "In numbers")
    expect(page.locator("#pc-numbers .pc-ours")).to_contain_text("ultra-low")
    open_tab(page, "Trade-off")
    page.locator("#pc-runs .pc-back").first.press("Enter")
    expect(page.locator("#pc-head")).to_contain_text("mode extreme")
    assert pixels(painted) == decoded[1]


def test_a_click_on_a_point_of_the_sweep_takes_its_settings(page):
    open_plot(page)
    point = page.evaluate(_LONELY_JS)
    click_until(page, lambda: (point["x"], point["y"]), "#pc-compress")
    wanted = dict(re.findall(r"(mode|steps|guidance)=(\S+)", point["key"]))
    page.get_by_role("button", name="Advanced").click()
    steps = page.get_by_label("number input for Steps")
    expect(steps).to_have_value(wanted["steps"])
    guidance = page.get_by_label("number input for Guidance").input_value()
    assert float(guidance) == float(wanted["guidance"])
    assert page.locator("#pc-mode input:checked").get_attribute("value") == wanted["mode"]


def centre(point):
    """Where a point of the plot is; None while the plot is being drawn anew."""
    box = point.bounding_box()
    return box and (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def click_until(page, where, shown):
    """Click a point of the plot, again if the plot was just being drawn."""
    for _ in range(30):
        if place := where():
            page.mouse.click(*place)
        with contextlib.suppress(ui_browser.sync_api.TimeoutError):
            page.wait_for_selector(shown, timeout=2000)
            return
    pytest.fail(f"no click brought {shown}")


def violations(page, where):
    """What axe calls serious; in the dark only what depends on it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    page.wait_for_timeout(400)  # a colour that is fading in has little contrast
    options = {"resultTypes": ["violations"]}
    if "__theme=dark" in page.url:
        options["runOnly"] = ["color-contrast"]
    found = axe.Axe().run(page, options=options).response["violations"]
    return {
        f"{where}: {one['id']}": [node["html"][:160] for node in one["nodes"]]
        for one in found
        if one["impact"] in ("serious", "critical")
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_tab(visit, scheme):
    page = visit(f"?__theme={scheme}", color_scheme=scheme)
    page.locator(".pc-cards button").first.wait_for()
    found = violations(page, "Gallery")
    compressed(page, 0)
    page.wait_for_selector("#pc-bits .pc-bar")
    page.get_by_role("button", name="Difference").click()
    expect(page.locator("#pc-stage .pc-error")).to_have_attribute("alt", re.compile("levels"))
    page.get_by_role("button", name="Advanced").click()
    for tab in TABS:
        open_tab(page, tab)
        if tab == "Trade-off":
            open_plot(page)
        found |= violations(page, tab)
    page = visit(f"?stage=1&__theme={scheme}", color_scheme=scheme)
    page.wait_for_selector("#pc-show .pc-tools button")
    assert found | violations(page, "Stage") == {}
