"""The page's parts without a browser."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from starlette.responses import HTMLResponse
from starlette.testclient import TestClient

from percov2_core.config import MODES, PRESETS, SCHEDULES
from percov2_core.errors import BitstreamError, ConfigError
from percov2_core.evaluation.judge import Judge
from percov2_core.metrics import AXES, Scores
from percov2_core.run_settings import RunSettings
from percov2_core.ui import border, difference, gallery, invented, open_file, results, share, text
from percov2_core.ui.device import Look, Turns
from percov2_core.ui.stored import Measurements
from percov2_core.ui.tradeoff import Measured, figure, runs_frame
from tests.gallery import MAX_PREVIEW_BYTES, PICTURES, preview
from tests.tiny import picture, tiny_codec

ADDRESS = "https://example.org/space"


@pytest.fixture(scope="module")
def stream():
    return tiny_codec().encode(picture(), "ultra-low")


def a_run(stream, number=1, **scores):
    contents, look = tiny_codec().read(stream), Look(2, 1.5)
    run = results.Run("sea", contents, look, "<b>", picture(), 0.1, picture(), number)
    return Measured(run, Scores(**scores))


def test_the_page_offers_every_mode_schedule_and_preset():
    assert set(text.MODES.values()) == set(MODES)
    assert set(text.SCHEDULES.values()) == set(SCHEDULES)
    assert set(text.PRESETS.values()) == set(PRESETS)
    assert text.one_in(469_123, 68) == "1/6,900" and text.one_in(170, 68) == "1/2.5"


def test_a_link_holds_the_whole_file(stream):
    link = border.link_to(stream, ADDRESS)
    assert link.startswith(f"{ADDRESS}?pcv2=")
    assert border.read_link(f" {link}\n") == (stream, None)
    assert border.read_link(stream.to_text()) == (stream, None)
    settings = RunSettings(size=60, caption='sea & sky + 100 % "grün" #1', guidance=1.5)
    assert border.read_link(border.link_to(stream, ADDRESS, settings)) == (stream, settings)
    with pytest.raises(ConfigError, match="settings: unknown key 'x', expected mode, tokens"):
        border.read_link(f"{link}&settings=%7B%22x%22:1%7D")
    with pytest.raises(BitstreamError, match=r"expected one with \?pcv2="):
        border.read_link("https://example.org/?q=1")
    assert "<svg" in (share.qr_svg(link) or "")
    assert share.qr_svg("x" * 3000) is None  # too long for a QR code


def test_the_parts_of_the_bar_add_up_to_the_file_and_no_caption_brings_html():
    for tokens in (0, 4, 6, 30):
        stream = tiny_codec().encode(picture(), "hybrid", tokens=tokens)
        shown = results.bits_panel(a_run(stream).run)
        found = re.findall(r"<td>([\d,]+)</td>\s*<td>[\d,.]+</td>", shown)
        *parts, total = (int(count.replace(",", "")) for count in found)
        assert sum(parts) == total == 8 * len(stream.to_bytes()) and len(parts) == 4
        assert tuple(parts[:2]) == tiny_codec().read(stream).bits[:2]
        assert [count > 0 for count in parts[2:]] == [tokens > 0, tokens > 6]
        assert f"coarse {min(tokens, 6)} of 6" in " ".join(shown.split())
    evil = tiny_codec().encode(picture(), "ultra-low", caption='"><img src=x onerror=alert(1)>')
    run = a_run(evil).run
    assert "<img src=x" not in results.compare_run(run) + results.bits_panel(run)


def test_equal_pictures_disagree_nowhere():
    spread = invented.disagreement([picture()] * 3)
    assert not spread.any()
    shown = difference.heat(spread, most=difference.brightest(spread)).convert("RGB")
    assert shown.getextrema() == ((20, 20), (12, 12), (80, 80))
    black, white = (Image.new("RGB", (4, 4), colour) for colour in ("black", "white"))
    assert np.allclose(invented.disagreement([black, white]), 127.5)


def test_the_colours_of_maps_get_lighter_evenly_and_legends_have_the_same():
    linear = [[(v / 255 + 0.055) ** 2.4 / 1.055**2.4 for v in stop] for stop in difference.STOPS]
    luminance = np.array(linear) @ [0.2126, 0.7152, 0.0722]
    steps = np.diff(116 * np.cbrt(luminance) - 16)  # CIE 1976 lightness
    assert steps.min() > 25 and steps.max() < 1.15 * steps.min()
    css = (Path(border.__file__).with_name("page.css")).read_text()
    (legend,) = re.findall(r"--pc-heat: linear-gradient\(90deg, (.+?)\); }", css)
    assert legend == ", ".join(f"rgb{stop}" for stop in difference.STOPS)


def test_a_difference_is_told_in_levels_and_in_units_of_the_distance(stream):
    original, other = picture(), Image.eval(picture(), lambda v: min(255, v + 7))
    found = difference.differences(original, other)
    error = np.abs(np.subtract(original, other, dtype=float)).mean()
    assert found["pc-error"].about == f"Absolute error, {error:.1f} of 255 levels on average"
    assert found["pc-error"].most == "7 of 255 or more"
    judge = Judge(["picorank"])
    distance = judge.score(judge.see(original), other).picorank
    told = float(re.findall(r"sees, (\S+) on", found["pc-feature"].about)[0])
    assert told == pytest.approx(distance, abs=0.02)
    same = difference.differences(original, original)["pc-feature"].picture.convert("RGB")
    assert same.getextrema() == ((20, 20), (12, 12), (80, 80))


def test_the_gallery_holds_files_of_this_model_and_what_they_look_like(shipped):
    samples = gallery.read_samples(shipped, gallery.GALLERY_DIR)
    sizes = [sample.size_bytes for sample in samples.values()]
    assert len(samples) == len(PICTURES) == 9 and sizes == sorted(sizes)
    assert (min(sizes), max(sizes)) == (13, 722)
    for key, sample in samples.items():
        contents = shipped.read(sample.stream)
        assert contents.caption and int(key[:4]) == sample.size_bytes
        assert sample.original.size == (sample.stream.width, sample.stream.height)
        path = (gallery.GALLERY_DIR / key).with_suffix(gallery.PREVIEW_SUFFIX)
        assert path.stat().st_size <= MAX_PREVIEW_BYTES
    with Image.open(path) as shown:  # of the largest
        made = preview(shipped, sample.stream)
        assert np.abs(np.subtract(shown.convert("RGB"), made, dtype=float)).mean() < 6
    assert not gallery.read_samples(tiny_codec(), gallery.GALLERY_DIR)


def test_a_shared_link_has_a_card_with_title_size_and_picture(stream):
    async def page(scope, receive, send):
        html = '<head><meta property="og:title" content="Gradio" /><title>x</title></head>'
        await HTMLResponse(html)(scope, receive, send)

    turns = Turns()
    app, proxy = share.Cards(tiny_codec(), turns).around(page), {"x-forwarded-proto": "https"}
    client = TestClient(app, base_url="http://example.org", headers=proxy)
    link = f"/?pcv2={stream.to_text()}"
    head = client.get(link).text
    assert f'"og:title" content="A photo in {sum(stream.sizes)} bytes"' in head
    assert "Gradio" not in head and "<title>x</title>" in head
    (address,) = re.findall(r'"og:image" content="([^"]+)"', head)
    assert address == f"https://example.org/card.jpg?pcv2={stream.to_text()}"
    card = client.get(address)
    assert Image.open(io.BytesIO(card.content)).size == (stream.width, stream.height)
    for other in ("/", "/?pcv2=rubbish", "/config?pcv2=" + stream.to_text()):
        assert "Gradio" in client.get(other).text
    foreign = replace(stream, fingerprint=stream.fingerprint ^ 1)
    assert "og:image" not in client.get(f"/?pcv2={foreign.to_text()}").text
    turns.press("somebody", 1)  # visitors come first
    assert client.get(address).status_code == 503


def test_a_seed_draws_the_coarse_tokens_that_a_file_does_not_hold(stream):
    codec = tiny_codec()
    assert invented.seeded(codec, whole := codec.read(stream), 5) is whole
    part = codec.read(codec.encode(picture(), "hybrid", tokens=2))
    (one, sent, *_), (two, *_) = (invented.seeded(codec, part, seed).coarse for seed in (1, 2))
    assert sent.sum() == 2 and (one[sent] == two[sent]).all() and (one != two).any()
    drawn = codec.read(codec.encode(picture(), "hybrid", tokens=2, seed=1)).coarse.tokens
    assert (one == drawn).all()


def test_a_cut_goes_from_the_caption_to_the_whole_file(stream):
    codec = tiny_codec()
    for whole in (stream, *(codec.encode(picture(), m, seed=300) for m in ("hybrid", "extreme"))):
        slider, least = open_file.cuts(codec, a_run(whole).run), codec.truncate(whole, tokens=0)
        assert slider.interactive == (whole.tokens_sent > 0) and slider.maximum == sum(whole.sizes)
        assert slider.minimum == sum(least.sizes) - (not slider.interactive)


def test_own_runs_are_drawn_found_again_and_downloaded(stream, tmp_path):
    history = [a_run(stream, psnr=20.0, picorank=0.5), a_run(stream, 2, psnr=21.0)]
    drawn = figure(Measurements(tmp_path), history, x="bpp", y="psnr")
    keys = [point[1] for point in drawn.data[0].customdata]
    assert keys == [row.key for row in history]
    assert figure(Measurements(tmp_path), [], x="bpp", y="psnr") is None
    table = runs_frame(history)
    first, *lines = table.to_csv(index=False).splitlines()
    told = "schedule,coarse,fine,steps,guidance,painter"
    assert first == f"picture,mode,{told},bytes,bpp,psnr,picorank,caption,settings"
    assert len(lines) == 2 and "percov2-runs.csv" in results.runs_table(["run:1", "run:2"], table)
    assert "is listed here" in results.runs_table([], runs_frame([]))


def test_published_values_stay_off_axes_that_they_do_not_fit(tmp_path):
    source = Path(__file__).parents[1] / "assets" / "results" / "reference_points.json"
    (tmp_path / source.name).write_bytes(source.read_bytes())
    stored = Measurements(tmp_path)
    names = [trace.name for trace in figure(stored, [], x="bpp", y="psnr").data]
    assert sorted(names) == sorted([text.REFERENCE, text.PUBLISHED])
    assert [t.name for t in figure(stored, [], x="bpp", y="ms_ssim").data] == [text.REFERENCE]
    assert figure(stored, [], x="bpp", y="lpips") is None


def test_a_stored_point_gives_its_steps_and_guidance(tmp_path):
    key = "percov2 mode=extreme schedule=qlds steps=4 guidance=1.5 caption=describer"
    row = {"picture": "a", "key": key, "label": "percov2 extreme", "codec": "percov2"}
    row |= {"mode": "extreme", "steps": 4, "guidance": 1.5, "bpp": 0.02, "size_bytes": 655}
    row["psnr"] = 22.0
    pd.DataFrame([row]).to_csv(tmp_path / "sweep.csv", index=False)
    found = Measurements(tmp_path).find(key)
    assert found == {
        "key": key,
        "mode": "extreme",
        "steps": 4.0,
        "guidance": 1.5,
        "size_bytes": 655,
    }
    (point,) = figure(Measurements(tmp_path), [], x="bpp", y="psnr").data
    assert point.name == "PerCoV2 Extreme"
    expected = "4 steps, guidance 1.5<br>655 bytes, mean of 1 Kodak pictures"
    assert point.customdata[0][0] == expected
    assert Measurements(tmp_path).find("jpeg quality=1") == {}


def test_each_mode_has_a_line_over_steps_and_one_over_guidance_and_its_presets_names():
    stored = Measurements()
    drawn = figure(stored, [], x="psnr", y="patch_swd")
    lines = [trace for trace in drawn.data if trace.mode == "lines"]
    for mode in MODES:
        name, ours = text.codec_name(f"percov2 {mode}"), pd.DataFrame(stored.ours())
        swept = ours[(ours["mode"] == mode) & ours["steps"].notna()].set_index("key")
        means = stored.means.set_index("key").loc[swept.index]
        for over, fixed in (("steps", "guidance"), ("guidance", "steps")):
            wanted = means[means[fixed] == 1].sort_values(over)["patch_swd"].tolist()
            assert len(wanted) > 3
            assert wanted in [list(line.y) for line in lines if line.name == name]
        (points,) = (t for t in drawn.data if t.name == name and t.mode != "lines")
        assert {word for word in points.text if word} == set(PRESETS)
        assert sum(map(bool, points.text)) == len(PRESETS)  # not at every size
        assert len(points.marker.color) == len(points.x) and points.marker.coloraxis == "coloraxis"
    sized = stored.means[stored.means["mode"].notna() & stored.means["budget_bytes"].notna()]
    assert sized.groupby("preset").ngroups == 2
    for _, mine in sized.groupby("preset"):
        wanted = mine.sort_values("budget_bytes")["patch_swd"].tolist()
        assert wanted in [list(line.y) for line in lines if line.line.dash == "dash"]
    assert {row["pictures"] for row in stored.means.to_dict("records")} == {len(stored.pictures)}


def test_what_is_related_to_the_training_loss_is_marked_everywhere():
    marked = {name for name, label in AXES.items() if label.endswith("*")}
    assert marked == {"psnr", "ms_ssim", "label_kept", "meaning", "feature_distance", "picorank"}
    assert {name for name, (title, *_) in results.COLUMNS.items() if title.endswith("*")} < marked
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    for line in readme.splitlines():
        if "| PicoRank" in line:
            assert [cell.strip() for cell in line.split("|") if "*" in cell] == [
                "MS-SSIM *", "label kept *", "semantic cosine *", "PSNR dB *",
                "feature distance *", "PicoRank *",
            ]  # fmt: skip
    scores = {"psnr": 20.0, "picorank": 0.5}
    stream = tiny_codec().encode(picture(), "ultra-low")
    entry = a_run(stream, **scores).entry
    missing = ["LPIPS is not shown: put <file> into"]
    shown = results.numbers_panel([entry], pending=False, missing=missing)
    assert "PSNR *" in shown and "related to the training loss" in shown
    assert "put &lt;file&gt; into" in shown and "DISTS" not in shown
