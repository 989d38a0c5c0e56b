"""Figures and the report, from rows written by hand."""

import re

import pytest

from percov2_core import plots
from percov2_core.errors import ConfigError
from percov2_core.evaluation.protocol import Picture
from percov2_core.evaluation.rows import Row, to_frame
from percov2_core.evaluation.settings import Setting
from percov2_core.metrics import Scores
from tests.tiny import picture


def row(name, setting, *, psnr, picorank, size_bytes=100, **values):
    values |= {"scores": Scores(psnr=psnr, picorank=picorank), "bpp": size_bytes / 32768}
    return Row(picture=name, setting=setting, size_bytes=size_bytes, **values).flat()


def ours(mode="extreme", **changes):
    return Setting(codec="percov2", mode=mode, schedule="qlds", **changes)


@pytest.fixture
def frame():
    rows = []
    for i, name in enumerate(("x.png", "<y>.png")):
        for preset, psnr in (("faithful", 24.0), ("vivid", 22.0)):
            bits = {"header_bits": 56, "caption_bits": 44, "token_bits": 700}
            values = {"psnr": psnr + i, "picorank": psnr / 100 - i, **bits}
            rows.append(row(name, ours(preset=preset), **values))
        hybrid = ours("hybrid", tokens=8, preset="balanced")
        rows.append(row(name, hybrid, psnr=18.0 + i, picorank=0.9, size_bytes=40))
        for quality, size in ((1, 90), (10, 300)):
            setting = Setting(codec="jpeg", quality=quality)
            rows.append(row(name, setting, psnr=20.0 + quality, picorank=1.0, size_bytes=size))
    setting = Setting(codec="jpeg", quality=1)
    rows.append(Row(picture="broken.png", setting=setting, error="not a picture").flat())
    return to_frame(rows)


def trace(figure, name):
    return next(t for t in figure.data if t.name == name)


def test_figures_hold_means_and_single_rows(frame):
    line = trace(plots.rate_distortion(frame), "jpeg")
    assert list(line.x) == pytest.approx([90 / 32768, 300 / 32768]) and list(line.y) == [21, 30]
    points = plots.distortion_perception(frame).data[0]
    labelled = dict(zip(points.text, points.x, strict=True))
    assert (labelled["faithful"], labelled["vivid"]) == (24.5, 22.5)
    rows = [point for line in plots.per_picture(frame).data for point in line.customdata]
    assert len(rows) == 10 and {row[0] for row in rows} == {"x.png", "<y>.png"}
    bars = {bar.name: list(bar.y) for bar in plots.schedule_bars(frame).data}
    assert bars == {"token": [700], "caption": [44], "header": [56]}


def test_only_what_was_measured_is_drawn(frame):
    titles = [figure.layout.title.text for figure in plots.report_figures(frame)]
    assert "Rate and psnr" in titles and "Rate and lpips" not in titles
    with pytest.raises(ConfigError, match="figure: no row has a value for 'lpips'"):
        plots.rate_distortion(frame, metric="lpips")


def test_the_report_loads_nothing_and_escapes_names(frame, tmp_path):
    (tmp_path / "t").mkdir()
    picture(64, 64).save(tmp_path / "t" / "small.webp")
    picture(96, 64).save(tmp_path / "y.png")
    shown = frame.assign(thumbnail=frame["thumbnail"].where(frame["psnr"].isna(), "t/small.webp"))
    originals = [Picture(name="<y>.png", path=tmp_path / "y.png", square=False)]
    page = plots.write_report(shown, tmp_path, originals, ["lpips: <none>"]).read_text()
    ours = page[page.index("</script></head>") :]
    assert "&lt;none&gt;" in ours and "&lt;y&gt;.png" in ours
    assert "not a picture" in ours
    sources = re.findall(r'<(?:img|script|link|iframe)[^>]* (?:src|href)="([^"]*)"', page)
    assert sources and all(s == "" or s.startswith("data:image/") for s in sources)
