"""The page's parts without a browser."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.config import MODES, PRESETS, SCHEDULES
from percov2_core.errors import BitstreamError, ConfigError, ImageError
from percov2_core.evaluation.judge import Scores
from percov2_core.ui import (
    bits,
    budget,
    compare,
    html,
    intake,
    invented,
    painting,
    runs,
    share,
    text,
)
from percov2_core.ui.limits import MAX_UPLOAD_BYTES
from percov2_core.ui.painting import Look, Painted, paint
from percov2_core.ui.tradeoff import Measurements, figure, run_of, runs_csv, runs_table
from tests.tiny import picture, tiny_codec

ADDRESS = "https://example.org/space"


@pytest.fixture(scope="module")
def stream() -> Stream:
    return tiny_codec().encode(picture(), "ultra-low")


def a_run(stream: Stream, number: int = 1, **scores: float) -> runs.Measured:
    painted = Painted(picture(), 0.1)
    run = runs.Run("sea", "the sea", stream, Look(2, 1.5), "<b>", painted, picture(), number)
    return runs.Measured(run, Scores(**scores))


def test_the_page_offers_every_mode_schedule_and_preset() -> None:
    assert set(text.MODES.values()) == set(MODES)
    assert set(text.SCHEDULES.values()) == set(SCHEDULES)
    assert set(text.PRESETS.values()) == set(PRESETS)


def test_a_link_holds_the_whole_file(stream: Stream) -> None:
    link = share.link(stream, ADDRESS)
    assert link.startswith(f"{ADDRESS}?pcv2=")
    assert share.read_link(f" {link}\n") == stream
    assert share.read_link(stream.to_text()) == stream


def test_a_link_without_a_file_says_what_was_expected() -> None:
    with pytest.raises(BitstreamError, match=r"expected one with \?pcv2="):
        share.read_link("https://example.org/?q=1")


def test_the_address_is_the_page_of_the_visitor() -> None:
    headers = {"referer": "https://a.example/x/?pcv2=old#top", "host": "internal:7860"}
    assert share.page_address(headers) == "https://a.example/x/"
    assert share.page_address({"host": "127.0.0.1:7860"}) == "http://127.0.0.1:7860/"


def test_only_a_short_link_becomes_a_qr_code(stream: Stream) -> None:
    assert "<svg" in (share.qr_svg(share.link(stream, ADDRESS)) or "")
    assert share.qr_svg("x" * 3000) is None


def test_a_ratio_is_rounded_to_two_digits() -> None:
    assert html.one_in(469_123, 68) == "1/6,900"
    assert html.one_in(170, 68) == "1/2.5"


def test_the_parts_of_the_bar_add_up_to_the_file(stream: Stream) -> None:
    contents = tiny_codec().read(stream)
    shown = bits.bar(contents)
    assert sum(contents.bits) == 8 * len(stream.to_bytes())
    assert all(f"<td>{count:,}</td>" in shown for count in (*contents.bits, sum(contents.bits)))


@pytest.mark.parametrize("least", [0, 8, 20, 40])
def test_a_target_size_is_used_and_kept(stream: Stream, least: int) -> None:
    codec, wanted = tiny_codec(), len(stream.truncate(0).to_bytes()) + least
    found = budget.encode_within(
        codec, picture(), size_bytes=wanted, caption=codec.read(stream).caption,
        schedule="qlds", seed=0,
    )  # fmt: skip
    assert len(found.to_bytes()) <= wanted
    if found.tokens_sent < found.tokens_total:
        longer = codec.truncate(stream, tokens=found.tokens_sent + 1)
        assert len(longer.to_bytes()) > wanted


def test_a_target_below_the_caption_says_so(stream: Stream) -> None:
    with pytest.raises(ConfigError, match=r"caption alone makes \d+ bytes, got 5"):
        budget.longest_part(tiny_codec(), stream, size_bytes=5)


def test_only_uploads_are_taken_from_a_paste(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    inside = tmp_path / "files" / "abc" / "image.png"
    assert intake.uploaded(str(inside)) == inside
    for other in ("", str(tmp_path / "image.png"), str(inside / "../../../image.png")):
        with pytest.raises(ImageError, match="did not arrive"):
            intake.uploaded(other)


def test_painting_ends_with_the_decoded_picture(stream: Stream) -> None:
    codec = tiny_codec()
    frames = [f for f in paint(codec, stream, Look(3, 1.0), cancel=threading.Event()) if f]
    assert [frame.finished for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert [frame.step for frame in frames] == sorted(frame.step for frame in frames)
    assert frames[-1].picture == codec.decode(stream, steps=3, guidance=1.0)


def test_previews_are_painted_when_they_are_due(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(painting, "FIRST_PREVIEW_S", -1.0)
    monkeypatch.setattr(painting, "PREVIEW_SHARE", math.inf)
    frames: list[painting.Frame] = []
    painting._work(tiny_codec(), stream, Look(3, 1.0), threading.Event(), frames.append)
    sizes = [frame.picture and frame.picture.size for frame in frames]
    assert sizes == [(stream.width, stream.height)] * 2 + [None, (stream.width, stream.height)]
    monkeypatch.setattr(painting, "FIRST_PREVIEW_S", math.inf)
    painting._work(tiny_codec(), stream, Look(2, 1.0), threading.Event(), frames.append)
    assert [frame.picture is None for frame in frames[4:]] == [True, True, False]


def test_painting_says_at_once_that_it_is_cancelled(stream: Stream) -> None:
    cancel = threading.Event()
    frames = paint(tiny_codec(), stream, Look(100, 1.0), cancel=cancel)
    assert next(frames)
    cancel.set()
    assert next(frames) is None
    assert list(frames) == []


def test_an_error_while_painting_reaches_the_visitor(stream: Stream) -> None:
    damaged = replace(stream, check=stream.check ^ 1)
    with pytest.raises(BitstreamError, match="check value"):
        list(paint(tiny_codec(), damaged, Look(1, 1.0), cancel=threading.Event()))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((5200, 5000), "26.0 megapixels"),
        ((40, 900), "40 x 900 pixels; each side needs at least 64"),
    ],
)
def test_a_picture_of_a_wrong_size_is_refused_in_words(
    tmp_path: Path, size: tuple[int, int], message: str
) -> None:
    Image.new("1", size).save(tmp_path / "odd.png")
    with pytest.raises(ImageError, match=message):
        intake.read_upload(tmp_path / "odd.png", "odd.png")


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(MAX_UPLOAD_BYTES + 1)
    with pytest.raises(ImageError, match=r"20.0 MB; the page takes at most 20 MB"):
        intake.read_upload(tmp_path / "big.png", "big.png")


def test_a_large_picture_is_offered_smaller(tmp_path: Path) -> None:
    picture(3000, 1500).save(tmp_path / "wide.jpg")
    chosen = intake.read_upload(tmp_path / "wide.jpg", "wide.jpg")
    assert chosen.large and chosen.kind == "JPEG"
    assert chosen.at(1024).image.size == (1024, 512)
    assert chosen.at(2048).image.size == (2048, 1024)


def test_a_turned_large_photo_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(3000, 1500).save(tmp_path / "turned.jpg", exif=exif)
    assert intake.read_upload(tmp_path / "turned.jpg", "t.jpg").image.size == (1024, 2048)


def test_a_strangers_caption_cannot_bring_its_own_html(stream: Stream) -> None:
    evil = tiny_codec().encode(picture(), "ultra-low", caption='"><img src=x onerror=alert(1)>')
    contents = tiny_codec().read(evil)
    shown = compare.single(picture(), tag="1 byte", caption=contents.caption)
    assert "<img src=x" not in shown + bits.bits_panel(evil, contents, picture())


def test_equal_pictures_disagree_nowhere() -> None:
    spread = invented.disagreement([picture()] * 3)
    assert not spread.any()
    assert invented.heat(spread).getextrema() == ((20, 20), (12, 12), (80, 80))
    black, white = (Image.new("RGB", (4, 4), colour) for colour in ("black", "white"))
    assert np.allclose(invented.disagreement([black, white]), 127.5)


def test_own_runs_are_drawn_and_found_again(stream: Stream, tmp_path: Path) -> None:
    history = [a_run(stream, psnr=20.0, picorank=0.5), a_run(stream, 2, psnr=21.0)]
    drawn = figure(Measurements(tmp_path), history, x="bpp", y="psnr")
    keys = [point[1] for point in drawn.data[0].customdata]
    assert [run_of(key, history) for key in keys] == history
    assert figure(Measurements(tmp_path), [], x="bpp", y="psnr") is None


def test_published_values_stay_off_axes_that_they_do_not_fit(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "assets" / "results" / "reference_points.json"
    (tmp_path / source.name).write_bytes(source.read_bytes())
    stored = Measurements(tmp_path)
    names = [trace.name for trace in figure(stored, [], x="bpp", y="psnr").data]
    assert sorted(names) == sorted([text.REFERENCE, text.PUBLISHED])
    assert [t.name for t in figure(stored, [], x="bpp", y="ms_ssim").data] == [text.REFERENCE]
    assert figure(stored, [], x="bpp", y="lpips") is None


def test_a_stored_point_gives_its_steps_and_guidance(tmp_path: Path) -> None:
    key = "percov2 mode=extreme schedule=qlds steps=4 guidance=1.5 caption=describer"
    row = {"picture": "a", "key": key, "label": "percov2 extreme", "codec": "percov2"}
    row |= {"mode": "extreme", "steps": 4, "guidance": 1.5, "bpp": 0.02, "psnr": 22.0}
    row["size_bytes"] = 655
    pd.DataFrame([row]).to_csv(tmp_path / "sweep.csv", index=False)
    found = Measurements(tmp_path).find(key)
    assert found == {"mode": "extreme", "steps": 4.0, "guidance": 1.5}
    (point,) = figure(Measurements(tmp_path), [], x="bpp", y="psnr").data
    assert point.name == "PerCoV2 Extreme"
    expected = "4 steps, guidance 1.5<br>655 bytes, mean of 1 Kodak pictures"
    assert point.customdata[0][0] == expected
    assert Measurements(tmp_path).find("jpeg quality=1") == {}


def test_the_table_of_runs_downloads_as_csv(stream: Stream) -> None:
    history = [a_run(stream, psnr=20.0), a_run(stream, psnr=21.5, ms_ssim=0.7)]
    lines = runs_csv(history).splitlines()
    assert lines[0] == "picture,mode,schedule,tokens,steps,guidance,bytes,bpp,psnr,ms_ssim,caption"
    assert len(lines) == 3
    assert "percov2-runs.csv" in runs_table(history)
    assert text.EMPTY_RUNS in runs_table([])
