"""Studies, tables, figures: rows, resuming, and that the README's are what is stored."""

import json
import re
import sys
import time

import pandas as pd
import psutil
import pytest
from PIL import Image

from assets.results import tables
from percov2_core import plots
from percov2_core.baselines.classic import find_baseline
from percov2_core.cli import main
from percov2_core.errors import ConfigError, ImageError
from percov2_core.evaluation import studies
from percov2_core.evaluation.judge import Judge
from percov2_core.evaluation.protocol import Picture, find_pictures, load_512, to_tensor
from percov2_core.evaluation.rows import Row, read_log, summarise, to_frame
from percov2_core.evaluation.runner import Plan, Worker, evaluate, make_units
from percov2_core.evaluation.settings import (
    Setting,
    budget_settings,
    classic_settings,
    our_settings,
)
from percov2_core.hyper.stand_ins import STAND_INS
from percov2_core.metrics import METRICS, Scores
from percov2_core.metrics.swd import set_swd
from tests.tiny import ROOT, counted, picture, tiny_folder

CHEAP = ("psnr", "patch_swd")


@pytest.fixture
def folder(tmp_path):
    """Three small pictures, one of them in a folder below, and a file that is none."""
    data = tmp_path / "data"
    (data / "more").mkdir(parents=True)
    picture(96, 64, seed=1).save(data / "a.png")
    picture(64, 80, seed=2).save(data / "b.png")
    picture(72, 72, seed=3).save(data / "more" / "c.png")
    (data / "broken.png").write_bytes(b"no picture")
    return data


def plan(tmp_path, **changes):
    values = {"out": tmp_path / "out", "data": tmp_path / "data", "metrics": CHEAP}
    return Plan(**{**values, **changes})


def test_every_picture_of_a_setting_becomes_a_row_and_a_broken_one_an_error(folder, tmp_path):
    settings = classic_settings(["jpeg@1+10", "webp@0"])
    pictures = find_pictures(folder, square=False)
    frame = evaluate(pictures, settings, plan(tmp_path))
    assert len(frame) == 4 * 3
    broken = frame[frame["picture"] == "broken.png"]
    assert broken["error"].str.contains("not a picture").all()
    good = frame[frame["picture"] != "broken.png"]
    assert good["error"].isna().all()
    expected = 8 * good["size_bytes"] / (good["width"] * good["height"])
    assert good["bpp"].to_list() == pytest.approx(expected.to_list())
    assert summarise(frame)[["pictures", "errors"]].to_numpy().tolist() == [[3, 1]] * 3
    # Rows of another protocol or folder are not mixed in.
    with pytest.raises(ConfigError, match="have square False, the new ones True: choose another"):
        evaluate(find_pictures(folder), settings, plan(tmp_path))
    with pytest.raises(ConfigError, match=r"have data '.*/data', the new ones '.*/more'"):
        evaluate(pictures, settings, plan(tmp_path, data=folder / "more"))


def test_an_interrupted_run_goes_on_without_repeating_finished_rows(folder, tmp_path, monkeypatch):
    pictures, settings = find_pictures(folder), classic_settings(["jpeg@1+10"])
    log = tmp_path / "out" / "log"
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        counted(context, Worker, "run", most=3)
        evaluate(pictures, settings, plan(tmp_path))
    kept = list(read_log(log))
    assert len(kept) == 3
    again = counted(monkeypatch, Worker, "run")
    assert len(evaluate(pictures, settings, plan(tmp_path))) == 8
    assert len(again) == 8 - 3 and list(read_log(log))[:3] == kept
    # A line that was cut off is run again.
    path = sorted(log.iterdir())[0]
    path.write_text(path.read_text()[:-40])
    assert len(evaluate(pictures, settings, plan(tmp_path))) == 8
    assert len(again) == 8 - 3 + 1


def test_two_processes_give_the_same_numbers_as_one(folder, tmp_path):
    pictures, settings = find_pictures(folder), classic_settings(["jpeg@1"])
    one = evaluate(pictures, settings, plan(tmp_path, out=tmp_path / "one"))
    csv, parquet = (tmp_path / "one" / f"rows.{kind}" for kind in ("csv", "parquet"))
    assert list(pd.read_csv(csv)) == list(pd.read_parquet(parquet)) == list(one)
    two = evaluate(pictures, settings, plan(tmp_path, out=tmp_path / "two"), processes=2)
    assert len(list(tmp_path.glob("two/log/*.jsonl"))) == 2
    assert one["psnr"].to_list() == pytest.approx(two["psnr"].to_list(), nan_ok=True)


def test_workers_leave_when_their_parent_is_killed(folder, tmp_path):
    words = command(folder, tmp_path / "out", "--processes", "2", "--codecs", "vvc@63+56+48+40")
    parent = psutil.Popen([sys.executable, "-m", "percov2_core", *words])
    while len(list(tmp_path.glob("out/log/*.jsonl"))) < 2:
        assert parent.poll() is None
        time.sleep(0.1)
    workers = parent.children()
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(workers, 60)
    assert len(gone) >= 2 and not alive
    assert len(list(read_log(tmp_path / "out" / "log"))) < 16


def test_every_bit_of_our_files_is_told(folder, tmp_path):
    settings = our_settings(["ultra-low"], steps=[1])
    settings += our_settings(["hybrid"], steps=[1], guidance=[1.0], tokens=[1])
    pictures = find_pictures(folder, square=False)[:2]
    frame = evaluate(pictures, settings, plan(tmp_path, model=str(tiny_folder())))
    parts = frame["header_bits"] + frame["caption_bits"] + frame["token_bits"]
    assert (parts == 8 * frame["size_bytes"]).all()
    assert frame["caption_text"].all()


def test_what_stands_for_tokens_not_sent_changes_the_picture_and_not_the_file(folder, tmp_path):
    settings = our_settings(["hybrid"], tokens=[1], stand_ins=tuple(STAND_INS))
    assert len({s.key for s in settings}) == 5 and len({s.encoding for s in settings}) == 1
    settings += our_settings(["hybrid"], tokens=[1])
    pictures = find_pictures(folder, square=False)[:1]
    frame = evaluate(pictures, settings, plan(tmp_path, model=str(tiny_folder())))
    psnr = frame.set_index(frame["stand_in"].fillna("own"))["psnr"]
    assert frame["size_bytes"].nunique() == 1 and psnr.drop("own").nunique() == 5
    assert psnr["own"] == psnr["expected"]


def test_settings_with_different_meaning_have_different_keys(folder):
    settings = our_settings(["extreme", "hybrid"], steps=[1, 2], guidance=[1.0, 2.0])
    settings += classic_settings(["all"]) + budget_settings(["avif"], [100, 200])
    assert len({s.key for s in settings}) == len(settings)
    first = "percov2 mode=extreme schedule=qlds steps=1 guidance=1.0 caption=describer"
    assert settings[0].key == first
    # A file is encoded once for all ways to decode it.
    units = make_units(find_pictures(folder)[:1], settings[:4], done={("a.png", first)})
    assert [len(unit.settings) for unit in units] == [3]


def test_the_judge_says_what_it_cannot_measure_and_sees_what_codecs_take(monkeypatch, tmp_path):
    monkeypatch.delenv("PERCOV2_SQUEEZENET_WEIGHTS", raising=False)
    judge = Judge(["psnr", "ms_ssim", "feature_distance"])
    reference = judge.see(picture())
    with pytest.raises(ImageError, match="decoded size must be 160x96, got 96x160"):
        judge.score(reference, picture(96, 160))
    assert "PERCOV2_SQUEEZENET_WEIGHTS" in judge.unavailable["feature_distance"]
    scores = judge.score(reference, picture(seed=1))
    assert scores.psnr is not None
    assert scores.feature_distance is None and scores.ms_ssim is None  # 96 px are too few
    picture(5000, 3000).save(tmp_path / "large.jpg", quality=30)
    (native,) = find_pictures(tmp_path, square=False)
    assert native.open().size == (4096, 2458)
    assert load_512(tmp_path).shape == (1, 3, 512, 512)


def command(folder, out, *words):
    return ["evaluate", str(folder), "-o", str(out), "--metrics", "psnr", *words]


def test_pictures_of_one_stem_are_rows_and_files_of_their_own(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    names = ["p.jpg", "p.jpeg", "p.png", "x/p.png", "y/p.png"]
    originals = []
    for seed, name in enumerate(names):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        picture(96, 96, seed=seed).save(data / name)
        originals.append(to_tensor(Image.open(data / name)))
    assert main(command(data, out, "set_swd", "fid", "--native", "--codecs", "jpeg@1")) == 0
    printed = capsys.readouterr().out
    assert "jpeg quality=1" in printed and "FID and KID need 50 pictures a side, got 5" in printed
    assert (out / "report.html").stat().st_size > 10**6
    rows = pd.read_csv(out / "rows.csv").set_index("picture")
    assert sorted(rows.index) == sorted(names)
    assert len(list(out.glob("decoded/*/*.png"))) == len(set(rows["thumbnail"])) == 5
    codec = find_baseline("jpeg")
    decoded = [codec.decode(codec.encode(Image.open(data / name), 1)) for name in names]
    expected = set_swd(originals, [to_tensor(image) for image in decoded]).item()
    assert pd.read_csv(out / "sets.csv")["set_swd"].item() == pytest.approx(expected, rel=1e-4)


def test_a_broken_picture_is_named_and_the_others_are_measured(folder, tmp_path, capsys):
    assert main(command(folder, tmp_path / "out", "--codecs", "jpeg@1+10")) == 1
    said, end = capsys.readouterr().err.splitlines()[-2:]
    assert said.startswith("broken.png: ") and "(2 settings)" in said
    assert end == "percov2: 1 of 4 pictures could not be measured in full, see above"
    assert pd.read_csv(tmp_path / "out" / "rows.csv")["psnr"].count() == 6


def test_a_study_writes_rows_means_and_the_command(folder, tmp_path):
    words = ["classic", "--data", str(folder), "-o", str(tmp_path / "results")]
    words += ["--work", str(tmp_path / "work"), "--codecs", "jpeg", "--budgets", "900", "10"]
    (folder / "broken.png").unlink()
    assert studies.main(words) == 0  # that JPEG cannot do 10 bytes is a result
    rows = pd.read_csv(tmp_path / "results" / "classic.csv")
    assert rows["size_bytes"].max() <= 900 and rows["error"].count() == 3
    assert set(rows["error"].dropna()) == {"jpeg cannot do it in 10 bytes"}
    report = json.loads((tmp_path / "results" / "classic.json").read_text())
    assert report["command"].endswith("classic --data KODAK --codecs jpeg --budgets 900 10")
    assert [row["pictures"] for row in report["means"]] == [0, 3]
    assert str(tmp_path) not in json.dumps(report)


MEASURED = dict.fromkeys((*METRICS, "bpp", "size_bytes"), 1.0) | {"pictures": 24, "errors": 0}


def store(folder, study, *rows):
    (folder / f"{study}.json").write_text(json.dumps({"means": [MEASURED | r for r in rows]}))


def test_the_readme_shows_the_stored_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.fill(text, ROOT / "assets" / "results") == text


def test_rivals_follow_the_size_that_they_had(tmp_path):
    ours = [(124, "vivid"), (430, "vivid"), (430, "faithful"), (24, "faithful"), (90, "vivid")]
    store(tmp_path, "sizes", *({"budget_bytes": size, "preset": name} for size, name in ours))
    jpeg = {"codec": "jpeg", "budget_bytes": 430, "ms_ssim": 0.5}
    vvc = {"codec": "vvc", "budget_bytes": 430, "ms_ssim": 0.7, "pictures": 22, "errors": 2}
    store(tmp_path, "classic", jpeg, vvc, {**vvc, "budget_bytes": 124, "psnr": None})
    names = [line.split(" | ")[0] for line in tables.sizes_table(tmp_path).splitlines()[2:]]
    mine = ["| **430 bytes**, faithful", "| **430 bytes**, vivid"]
    first = ["| **24 bytes**, faithful", "| **124 bytes**, vivid"]  # 90 is for the curve
    assert names == [*first, *mine, "| VVC intra, 22 of 24", "| JPEG"]


def test_savings_are_against_uniform(tmp_path):
    bits = {"uniform": 512, "checkerboard": 384, "quincunx": 512, "qlds": 256, "var": 512}
    rows = [{"schedule": name, "token_bits": value} for name, value in bits.items()]
    modes = ({"mode": "ultra-low"}, {"mode": "extreme"})
    store(tmp_path, "schedules", *(mode | row for mode in modes for row in rows))
    assert "| `qlds` | 256 | 50.0 % | 256 | 50.0 % |" in tables.schedule_table(tmp_path)


def test_a_missing_study_or_mark_is_named(tmp_path):
    with pytest.raises(ConfigError, match="run the study presets first"):
        tables.presets_table(tmp_path)
    with pytest.raises(ConfigError, match="expected '<!-- table sizes -->'"):
        tables.fill("no marks", tmp_path)


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


def test_figures_hold_means_and_single_rows(frame):
    (line,) = (line for line in plots.rate_distortion(frame).data if line.name == "jpeg")
    assert list(line.x) == pytest.approx([90 / 32768, 300 / 32768]) and list(line.y) == [21, 30]
    points = plots.distortion_perception(frame, perception="picorank").data[0]
    labelled = dict(zip(points.text, points.x, strict=True))
    assert (labelled["faithful"], labelled["vivid"]) == (24.5, 22.5)
    rows = [
        point for line in plots.per_picture(frame, y="picorank").data for point in line.customdata
    ]
    assert len(rows) == 10 and {row[0] for row in rows} == {"x.png", "<y>.png"}
    bars = {bar.name: list(bar.y) for bar in plots.schedule_bars(frame).data}
    assert bars == {"token": [700], "caption": [44], "header": [56]}


def test_curves_have_a_line_over_bytes_for_each_codec_and_preset_in_every_panel():
    scores = ("psnr", "ms_ssim", "meaning", "label_kept", "patch_swd", "feature_distance")
    points = [
        {"label": "percov2 hybrid", "preset": preset, "budget_bytes": size}
        for preset in ("faithful", "vivid")
        for size in (240, 24)
    ]
    points += [{"label": "webp", "budget_bytes": 240}]
    points += [{"label": "percov2 extreme", "preset": "vivid", "budget_bytes": None}]
    table = pd.DataFrame(
        {"size_bytes": i, **point, **{name: i + k / 10 for k, name in enumerate(scores)}}
        for i, point in enumerate(points, start=1)
    )
    drawn = [trace for trace in plots.curves(table).data if trace.x is not None and len(trace.x)]
    lines = [trace for trace in drawn if trace.mode == "lines+markers"]
    (vivid,) = (t for t in lines if t.xaxis == "x" and t.name == "PerCoV2 vivid")
    assert list(vivid.x) == [4, 3] and list(vivid.y) == [4.1, 3.1]  # by bytes asked for
    names = sorted(trace.name for trace in drawn if trace.xaxis == "x6")  # over PSNR
    assert names == ["PerCoV2 faithful", "PerCoV2 vivid", "PerCoV2 vivid", "WebP"]
    assert len(drawn) == 6 * 4 and sum(trace.showlegend for trace in lines) == 3


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
