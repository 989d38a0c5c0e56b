"""The page's parts without a browser."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from percov2_core.config import MODES, PRESETS, SCHEDULES
from percov2_core.errors import BitstreamError, ConfigError
from percov2_core.metrics import AXES, Scores
from percov2_core.run_settings import RunSettings
from percov2_core.ui import border, compress, invented, open_file, results, text
from percov2_core.ui.device import Look
from percov2_core.ui.stored import Measurements
from percov2_core.ui.tradeoff import Measured, figure, runs_frame
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
    assert "<svg" in (compress.qr_svg(link) or "")
    assert compress.qr_svg("x" * 3000) is None  # too long for a QR code


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
    assert invented.heat(spread).getextrema() == ((20, 20), (12, 12), (80, 80))
    black, white = (Image.new("RGB", (4, 4), colour) for colour in ("black", "white"))
    assert np.allclose(invented.disagreement([black, white]), 127.5)


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
    tokens = "schedule,coarse,fine,steps"
    assert first == f"picture,mode,{tokens},guidance,bytes,bpp,psnr,picorank,caption,settings"
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
        assert len(points.marker.color) == len(points.x) and points.marker.coloraxis == "coloraxis"
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
