"""The README's tables, made from the results beside this file:

    python assets/results/tables.py [README.md]

prints them, or writes them between the marks of the file that is named.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from percov2_core.baselines import CLASSIC
from percov2_core.config import EFFORTS, PRESETS, SCHEDULES
from percov2_core.errors import ConfigError
from percov2_core.hyper.stand_ins import STAND_INS
from percov2_core.metrics import RELATED, STAR

Rows = list[dict[str, Any]]

MODE_ORDER = ("extreme", "ultra-low", "hybrid")
SIZES_BYTES = (24, 62, 124, 240, 430, 722)  # of those that the study has
# Those that need weights stand where a study had them.
_COLUMNS = {
    "size_bytes": ("bytes", 0),
    "lpips": ("LPIPS", 3),
    "dists": ("DISTS", 3),
    "ms_ssim": ("MS-SSIM", 3),
    "label_kept": ("label kept", 2),
    "meaning": ("semantic cosine", 3),
    "patch_swd": ("patch SWD", 0),
    "psnr": ("PSNR dB", 2),
    "feature_distance": ("feature distance", 3),
    "picorank": ("PicoRank", 3),
}


def read_means(results: Path, study: str) -> Rows:
    """The means of one study; ConfigError if the study has not run."""
    path = results / f"{study}.json"
    if not path.is_file():
        raise ConfigError(f"tables: no results at {str(path)!r}: run the study {study} first")
    rows: Rows = json.loads(path.read_text(encoding="utf-8"))["means"]
    return rows


def presets_table(results: Path) -> str:
    """Our modes at their presets."""
    rows, lines = read_means(results, "presets"), []
    for mode in MODE_ORDER:
        mine = [r for r in rows if r["mode"] == mode]
        for row in sorted(mine, key=lambda r: PRESETS.index(r["preset"])):
            sent = " (caption alone)" if mode == "hybrid" else ""
            lines.append((f"**{mode}**{sent}, {row['preset']}", row))
    return _measured("mode", lines)


def sizes_table(results: Path) -> str:
    """Our files of one encoding by size, each size followed by the classic codecs in its bytes."""
    ours, classic = read_means(results, "sizes"), read_means(results, "classic")
    lines = []
    for size in SIZES_BYTES:
        mine = [r for r in ours if r["budget_bytes"] == size]
        for row in sorted(mine, key=lambda r: PRESETS.index(r["preset"])):
            lines.append((f"**{size} bytes**, {row['preset']}", row))
        rivals = [r for r in classic if r["budget_bytes"] == size and r.get("psnr") is not None]
        lines += [(_rival(row), row) for row in sorted(rivals, key=lambda r: -r["ms_ssim"])]
    return _measured("at most", lines)


def orders_table(results: Path) -> str:
    """Which fine tokens to send first, at a few sizes, balanced."""
    rows = read_means(results, "orders")
    rows = sorted(rows, key=lambda r: (r["budget_bytes"], SCHEDULES.index(r["schedule"])))
    lines = [(f"{row['budget_bytes']:.0f} bytes, `{row['schedule']}`", row) for row in rows]
    return _measured("at most", lines)


def stand_ins_table(results: Path) -> str:
    """What stands for fine tokens that were not sent."""
    rows = read_means(results, "stand-ins")
    order = [(preset, stand_in) for preset in PRESETS for stand_in in STAND_INS]
    rows.sort(key=lambda r: (r["budget_bytes"], order.index((r["preset"], r["stand_in"]))))
    said = "{budget_bytes:.0f} bytes, **{stand_in}**, {preset}"
    return _measured("at most", [(said.format(**row), row) for row in rows])


def effort_table(results: Path) -> str:
    """What the encoder's search gains."""
    order = [(effort, preset) for effort in EFFORTS for preset in PRESETS]
    rows = read_means(results, "effort")

    def place(row: Mapping[str, Any]) -> tuple[float, int]:
        return row.get("budget_bytes") or 0.0, order.index((row["effort"], row["preset"]))

    lines = []
    for row in sorted(rows, key=place):
        what = f"at most {most:.0f} bytes" if (most := row.get("budget_bytes")) else row["mode"]
        lines.append((f"{what}, **{row['effort']}**, {row['preset']}", row))
    return _measured("effort", lines)


def protocol_table(results: Path) -> str:
    """Classic codecs at the settings of the protocol."""
    rows = sorted(read_means(results, "protocol"), key=lambda r: r["bpp"])
    return _measured("codec", [(_setting(row), row) for row in rows])


def schedule_table(results: Path) -> str:
    """Bits of the tokens under each schedule, and the saving against `uniform`."""
    bits = {(r["mode"], r["schedule"]): r["token_bits"] for r in read_means(results, "schedules")}
    lines = []
    for schedule in SCHEDULES:
        cells = [f"`{schedule}`"]
        for mode in ("ultra-low", "extreme"):
            spent, full = bits[mode, schedule], bits[mode, "uniform"]
            cells += [f"{spent:.0f}", f"{100 * (1 - spent / full):.1f} %"]
        lines.append(cells)
    head = ("schedule", "ultra-low: bits", "saving", "extreme: bits", "saving")
    return _markdown(head, lines)


TABLES = {
    "sizes": sizes_table,
    "presets": presets_table,
    "effort": effort_table,
    "protocol": protocol_table,
    "schedules": schedule_table,
    "orders": orders_table,
    "stand-ins": stand_ins_table,
}


def fill(text: str, results: Path) -> str:
    """`text` with every table between `<!-- table NAME -->` and `<!-- end -->` made anew.
    ConfigError if a mark is missing."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table {name} -->\n", "<!-- end -->"
        before, mark, after = text.partition(begin)
        _, close, rest = after.partition(end)
        if not (mark and close):
            raise ConfigError(f"tables: expected {begin.strip()!r} and {end!r} in the text")
        text = f"{before}{mark}{make(results)}{close}{rest}"
    return text


def _measured(first: str, lines: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """A line per setting; what is related to the training loss is marked."""
    had = {
        n: told for n, told in _COLUMNS.items() if any(row.get(n) is not None for _, row in lines)
    }
    head = [f"{title} {STAR}" if name in RELATED else title for name, (title, _) in had.items()]

    def cell(row: Mapping[str, Any], name: str, digits: int) -> str:
        return "" if row.get(name) is None else f"{row[name]:.{digits}f}"

    cells = [[said, *(cell(row, n, d) for n, (_, d) in had.items())] for said, row in lines]
    return _markdown((first, *head), cells)


def _rival(row: Mapping[str, Any]) -> str:
    partly = f", {row['pictures']} of {row['pictures'] + row['errors']}" if row["errors"] else ""
    return CLASSIC[row["codec"]] + partly


def _setting(row: Mapping[str, Any]) -> str:
    family, _, factor = row["codec"].partition("/")
    reduced = f" at 1/{factor} size" if factor else ""
    return f"{CLASSIC[family]}{reduced}, quality {row['quality']:.0f}"


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main(argv: Sequence[str]) -> int:
    results = Path(__file__).parent
    try:
        if argv:
            path = Path(argv[0])
            text = fill(path.read_text(encoding="utf-8"), results)
            path.write_text(text, encoding="utf-8")
        else:
            print("\n".join(make(results) for make in TABLES.values()))
    except (ConfigError, OSError) as error:
        print(f"tables: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
