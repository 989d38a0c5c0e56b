"""Distortion against perception: stored measurements, published points and the visitor's runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from percov2_core.config import MODES
from percov2_core.evaluation.axes import AXES
from percov2_core.evaluation.rows import summarise, to_frame
from percov2_core.ui import text
from percov2_core.ui.html import data_uri, empty
from percov2_core.ui.runs import Measured, Run

RESULTS_DIR = Path(__file__).parents[2] / "assets" / "results"
_STUDIES = ("sweep", "presets", "protocol", "classic")
# Published LPIPS values use several backbones: they fit no axis of ours.
_PUBLISHED_AXES = frozenset({"bpp", "psnr"})
_RUN_KEY = "run:"
_REFERENCE_SOURCE = "mean of 24 Kodak pictures, 512 x 512"
_COLUMNS = ("label", "picture", "key", "thumbnail")
_GRID = "rgba(128,140,155,.25)"
_HOVER = (
    "<b>%{fullData.name}</b><br>%{customdata[0]}<br>across %{x:.4g}, up %{y:.4g}<extra></extra>"
)
_CLASSIC_MARKER = {"size": 10, "symbol": "diamond"}
_MARKERS = {
    text.REFERENCE: {"size": 10, "symbol": "x", "color": "#7b8794", "line": {"width": 0}},
    text.PUBLISHED: {"size": 11, "symbol": "star-open", "color": "#7b8794"},
    text.YOUR_RUNS: {"size": 17, "symbol": "star", "color": "#0f9d8f"},
}


class Measurements:
    """The stored tables, read once."""

    def __init__(self, folder: Path = RESULTS_DIR) -> None:
        files = [folder / f"{name}.csv" for name in _STUDIES]
        tables = [pd.read_csv(file, low_memory=False) for file in files if file.is_file()]
        self.means = pd.DataFrame(columns=list(_COLUMNS))
        if tables:
            self.means = summarise(to_frame(pd.concat(tables).to_dict("records")))
            self.means["picture"] = [_setting(row) for row in self.means.to_dict("records")]
        reference = folder / "reference_points.json"
        self.reference: dict[str, Any] = {}
        if reference.is_file():
            self.reference = json.loads(reference.read_text(encoding="utf-8"))

    def find(self, key: str) -> dict[str, Any]:
        """Mode, preset, steps, guidance, tokens of a stored point of ours; empty if it is none."""
        found = self.means[self.means["key"] == key]
        if found.empty or found.iloc[0].get("mode") not in MODES:
            return {}
        names = ("mode", "preset", "steps", "guidance", "tokens")
        wanted = {name: found.iloc[0].get(name) for name in names}
        return {name: value for name, value in wanted.items() if pd.notna(value)}


def figure(stored: Measurements, history: Sequence[Measured], *, x: str, y: str) -> Any | None:
    """A Plotly figure; None if no point has both axes. The second entry of a point's
    `customdata` is its key."""
    # Only now: Plotly takes half a second, for which the first page need not wait.
    from percov2_core import plots

    points = pd.concat(
        [stored.means, _reference_rows(stored.reference, x=x, y=y), _run_rows(history)],
        ignore_index=True,
    ).reindex(columns=[*_COLUMNS, *AXES])
    if points.dropna(subset=[x, y]).empty:
        return None
    return _dressed(plots.per_picture(points, x=x, y=y))


def _dressed(drawn: Any) -> Any:
    """For a page of any width, light or dark; one entry in the legend per codec."""
    drawn.update_layout(
        height=560,
        title=None,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 14},
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemwidth": 30},
    )
    drawn.update_xaxes(gridcolor=_GRID, zeroline=False)
    drawn.update_yaxes(gridcolor=_GRID, zeroline=False)
    marker = {"size": 11, "opacity": 0.9, "line": {"width": 1, "color": "rgba(255,255,255,.7)"}}
    drawn.update_traces(marker=marker, hovertemplate=_HOVER)
    named: set[str] = set()
    for trace in drawn.data:
        ours = trace.name.startswith("percov2")
        trace.marker.update(_MARKERS.get(trace.name, {} if ours else _CLASSIC_MARKER))
        name = text.codec_name(trace.name)
        trace.update(name=name, legendgroup=name, showlegend=name not in named)
        named.add(name)
    return drawn


def _setting(row: Mapping[str, Any]) -> str:
    """A stored point in words."""
    words = str(row["key"])
    if row.get("mode") in MODES:
        preset = row.get("preset")
        steps, guidance = row.get("steps"), row.get("guidance")
        words = f"preset {preset}"
        if steps is not None and pd.notna(steps) and pd.notna(guidance):
            words = f"{text.steps(int(steps))}, guidance {guidance:g}"
        if pd.notna(tokens := row.get("tokens")):
            words += f", {tokens:.0f} tokens"
    return f"{words}<br>{row['size_bytes']:,.0f} bytes, mean of {row['pictures']} Kodak pictures"


def _reference_rows(reference: Mapping[str, Any], *, x: str, y: str) -> pd.DataFrame:
    """Reference points; the published ones only where the axes mean the same."""
    kinds = {text.REFERENCE: "measured_kodak_512_centre"}
    if {x, y} <= _PUBLISHED_AXES:
        kinds[text.PUBLISHED] = "published_kodak"
    return pd.DataFrame(
        {
            **{axis: point.get(axis) for axis in AXES},
            "label": label,
            "picture": f"{point['codec']}<br>{point.get('source', _REFERENCE_SOURCE)}",
            "key": "",
        }
        for label, kind in kinds.items()
        for point in reference.get(kind, {}).get("points", [])
    )


def _run_rows(history: Sequence[Measured]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **row.values,
            "label": text.YOUR_RUNS,
            "key": f"{_RUN_KEY}{row.run.number}",
            "picture": f"{row.run.name}, {row.run.stream.mode}<br>{row.run.size_bytes:,} bytes, "
            f"{text.steps(row.run.look.steps)}, guidance {row.run.look.guidance:g}",
        }
        for row in history
    )


def run_of(key: str, history: Sequence[Measured]) -> Measured | None:
    """The visitor's run behind a point, if the point is one."""
    if not key.startswith(_RUN_KEY):
        return None
    number = key.removeprefix(_RUN_KEY)
    return next((row for row in history if str(row.run.number) == number), None)


def row_of(run: Run | None, history: Sequence[Measured]) -> Measured | None:
    """The row of a run that was measured before."""
    return next((row for row in history if row.run is run), None)


def runs_table(history: Sequence[Measured]) -> str:
    """Every run, newest first, and the same as a CSV file."""
    if not history:
        return empty(text.EMPTY_RUNS)
    columns = _columns(history)
    head = "".join(f'<th scope="col">{escape(_title(name))}</th>' for name in columns)
    body = "".join(_line(row, columns) for row in reversed(history))
    uri = data_uri(runs_csv(history).encode(), "text/csv")
    return f"""
<div class="pc-scroll" tabindex="0" role="region" aria-label="Your runs">
<table class="pc-table pc-runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p><a class="pc-button" id="pc-csv" download="percov2-runs.csv" href="{uri}">Save as CSV</a></p>"""


def _line(row: Measured, columns: Sequence[str]) -> str:
    first, *others = (_cell(row.values[name]) for name in columns)
    button = (
        f'<button type="button" class="pc-back" data-key="{_RUN_KEY}{row.run.number}" '
        f'title="{text.BRING_BACK}">{first}</button>'
    )
    return f"<tr><td>{button}</td>{''.join(f'<td>{cell}</td>' for cell in others)}</tr>"


def _title(column: str) -> str:
    return text.COLUMNS.get(column, column.replace("_", " "))


def runs_csv(history: Sequence[Measured]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=_columns(history), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: m.values[name] for name in _columns(history)} for m in history)
    return buffer.getvalue()


def _columns(history: Sequence[Measured]) -> list[str]:
    """Those that any run has a value for: not every metric can be had everywhere."""
    return [name for name in history[0].values if any(m.values[name] is not None for m in history)]


def _cell(value: object) -> str:
    return (
        f"{value:.4g}" if isinstance(value, float) else escape("" if value is None else str(value))
    )
