"""The README's tables are what the stored results say."""

import json
from pathlib import Path

import pytest

from assets.results import tables
from percov2_core.errors import ConfigError
from percov2_core.metrics import METRICS

ROOT = Path(__file__).parents[1]
MEASURED = dict.fromkeys((*METRICS, "bpp", "size_bytes"), 1.0) | {"pictures": 24, "errors": 0}


def store(folder, study, *rows):
    (folder / f"{study}.json").write_text(json.dumps({"means": [MEASURED | r for r in rows]}))


def test_the_readme_shows_the_stored_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.fill(text, ROOT / "assets" / "results") == text


def test_rivals_follow_the_size_that_they_had(tmp_path):
    ours = [(124, "vivid"), (430, "vivid"), (430, "faithful"), (90, "faithful")]
    store(tmp_path, "sizes", *({"budget_bytes": size, "preset": name} for size, name in ours))
    jpeg = {"codec": "jpeg", "budget_bytes": 430, "ms_ssim": 0.5}
    vvc = {"codec": "vvc", "budget_bytes": 430, "ms_ssim": 0.7, "pictures": 22, "errors": 2}
    store(tmp_path, "classic", jpeg, vvc, {**vvc, "budget_bytes": 124, "psnr": None})
    names = [line.split(" | ")[0] for line in tables.sizes_table(tmp_path).splitlines()[2:]]
    mine = ["| **430 bytes**, faithful", "| **430 bytes**, vivid"]
    first = ["| **90 bytes**, faithful", "| **124 bytes**, vivid"]
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
