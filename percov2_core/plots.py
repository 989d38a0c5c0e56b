"""Figures from rows: pure functions of a table as `evaluation.rows.to_frame` makes it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import plotly.offline
from plotly.subplots import make_subplots

from percov2_core.baselines import CLASSIC
from percov2_core.config import PRESETS
from percov2_core.errors import ConfigError
from percov2_core.evaluation.rows import summarise
from percov2_core.metrics import AXES, STARRED

if TYPE_CHECKING:
    from percov2_core.evaluation.protocol import Picture

# Those that the model was not trained with come first.
PERCEPTION = ("lpips", "dists", "patch_swd", "feature_distance", "picorank")

# Ours in warm and full colours, the others in cool ones, so that a legend is not needed twice.
_COLOURS = {
    "percov2 ultra-low": "#d62728",
    "percov2 extreme": "#ff7f0e",
    "percov2 hybrid": "#c218a8",
    "jpeg": "#7f7f7f",
    "jpeg2000": "#8c6d31",
    "j2k": "#bd9e39",
    "webp": "#2ca02c",
    "avif": "#1f77b4",
    "jxl": "#17a2a2",
    "vvc": "#393b79",
}
_SYMBOLS = {"percov2 ultra-low": "circle", "percov2 extreme": "diamond", "percov2 hybrid": "square"}
_LAYOUT = {
    "template": "plotly_white",
    "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
    "legend": {"orientation": "h", "y": -0.2, "title": {"text": ""}},
    "hoverlabel": {"align": "left"},
}
_PLACES = {"faithful": "top right", "balanced": "middle left", "vivid": "bottom right"}
_TICKS_BYTES = (13, 30, 60, 120, 240, 720, 2000, 8000)
WALL_PER_LABEL = 3  # settings of one codec that the picture wall shows


def colour(label: str) -> str:
    """The colour of a codec, the same in every figure; sizes share their codec's."""
    return _COLOURS.get(label.partition("/")[0], "#444444")


def _drawn(kind: Any, table: pd.DataFrame, x: str, y: str, **options: Any) -> go.Figure:
    """A trace per label, by `px.line` or `px.scatter`; each codec has its colour."""
    table = table.sort_values("label", kind="stable")
    colours = {label: colour(label) for label in table["label"].unique()}
    options |= {"color": "label", "color_discrete_map": colours, "log_x": x == "bpp"}
    return kind(table, x=x, y=y, labels=AXES, render_mode="svg", **options)


def rate_distortion(frame: pd.DataFrame, *, metric: str = "psnr") -> go.Figure:
    """Mean metric over mean rate, a line per codec and mode."""
    table = _means(frame, "bpp", metric).sort_values("bpp")
    told = ["key", "size_bytes"]
    figure = _drawn(px.line, table, "bpp", metric, markers=True, custom_data=told)
    figure.for_each_trace(lambda t: t.update(line_dash="dot" if "/" in t.name else "solid"))
    hover = "%{customdata[0]}<br>%{customdata[1]:.0f} bytes, %{x:.4f} bpp"
    figure.update_traces(
        marker_size=8, hovertemplate=f"{hover}<br>{metric} %{{y:.4g}}<extra></extra>"
    )
    return figure.update_layout(title=f"Rate and {metric}", **_LAYOUT)


def distortion_perception(
    frame: pd.DataFrame, *, distortion: str = "psnr", perception: str = "patch_swd"
) -> go.Figure:
    """A point per setting; presets are labelled, colour is the rate."""
    table = _means(frame, distortion, perception)
    told, shown = ["key", "bpp", "label"], {"color": "bpp", "color_continuous_scale": "Viridis"}
    figure = px.scatter(table, x=distortion, y=perception, labels=AXES, custom_data=told, **shown)
    figure.update_traces(
        mode="markers+text",
        text=table["preset"].fillna("") if "preset" in table else "",
        textposition="top center",
        marker={"size": 11, "symbol": table["label"].map(_SYMBOLS).fillna("cross")},
        hovertemplate="%{customdata[0]}<br>%{customdata[1]:.4f} bpp"
        f"<br>{distortion} %{{x:.4g}}, {perception} %{{y:.4g}}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed")
    title = "Distortion and perception: up and right is better"
    return figure.update_layout(title=title, coloraxis_colorbar_title="bpp", **_LAYOUT)


def per_picture(frame: pd.DataFrame, *, x: str = "bpp", y: str = "patch_swd") -> go.Figure:
    """A point per row, with `customdata`: the picture, the setting's key, the thumbnail's path."""
    rows = frame.dropna(subset=[x, y])
    _require(rows, x, y)
    figure = _drawn(px.scatter, rows, x, y, custom_data=["picture", "key", "thumbnail"])
    figure.update_traces(
        marker={"size": 7, "opacity": 0.7},
        hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>"
        f"{x} %{{x:.4g}}, {y} %{{y:.4g}}<extra></extra>",
    )
    return figure.update_layout(title=f"Every picture: {x} and {y}", **_LAYOUT)


def trade_off(table: pd.DataFrame, *, x: str, y: str) -> go.Figure:
    """A point per line of `table`, its colour by bytes, presets by name. Of each codec a full line
    over steps at the least guidance there is, a dotted one over guidance at the fewest steps, and
    a dashed one over bytes for each preset. `customdata` of a point: words, key, picture."""
    rows = table.dropna(subset=[x, y])
    _require(rows, x, y)
    rows = rows.assign(digits=np.log10(pd.to_numeric(rows["size_bytes"])))
    figure = go.Figure()
    groups = list(rows.groupby("label", sort=True))
    for label, mine in groups:
        lines = [
            (mine[mine[fixed] == mine[fixed].min()].sort_values(over), dash)
            for over, fixed, dash in (("steps", "guidance", "solid"), ("guidance", "steps", "dot"))
        ]
        sized = mine[mine["budget_bytes"].notna()].sort_values("budget_bytes")
        lines += [(line, "dash") for _, line in sized.groupby("preset", dropna=False)]
        for line, dash in lines:
            if len(line) > 1:
                style = {"color": colour(str(label)), "dash": dash, "width": 1.5}
                look = {"line": style, "showlegend": False, "hoverinfo": "skip", "name": label}
                figure.add_scatter(x=line[x], y=line[y], mode="lines", **look)
    for label, mine in groups:
        told = mine[["picture", "key", "thumbnail"]]
        marker: dict[str, Any] = {"symbol": _SYMBOLS.get(str(label), "x"), "size": 10}
        if mine["digits"].notna().all():
            marker |= {"color": mine["digits"], "coloraxis": "coloraxis"}
        presets = mine["preset"].astype(object).where(mine["budget_bytes"].isna(), "").fillna("")
        # They are close together.
        places = [_PLACES.get(name, "top center") for name in presets]
        named = {"text": presets, "textposition": places}
        points = {"mode": "markers+text", "marker": marker, "customdata": told, **named}
        figure.add_scatter(x=mine[x], y=mine[y], name=str(label), **points)
    shown: dict[str, Any] = {
        "title": "bytes",
        "tickvals": np.log10(_TICKS_BYTES),
        "ticktext": _TICKS_BYTES,
    }
    # Below: a phone has no room beside the plot.
    shown |= {"orientation": "h", "y": -0.2, "yanchor": "top", "thickness": 12}
    colours = {"colorscale": "Viridis", "colorbar": shown}
    figure.update_layout(xaxis_title=AXES[x], yaxis_title=AXES[y], coloraxis=colours, **_LAYOUT)
    return figure.update_xaxes(type="log" if x == "bpp" else "linear")


def curves(table: pd.DataFrame) -> go.Figure:
    """Means of each metric over bytes, and distortion against perception: a line per codec over
    `budget_bytes`, of ours per preset; what has none is a point."""
    panels = [("size_bytes", m) for m in ("ms_ssim", "meaning", "label_kept", "patch_swd")]
    panels += [("size_bytes", "feature_distance"), ("psnr", "patch_swd")]
    titles = [f"{AXES[y]}<br>over {'bytes' if x == 'size_bytes' else AXES[x]}" for x, y in panels]
    spaces = {"horizontal_spacing": 0.06, "vertical_spacing": 0.16}
    figure = make_subplots(2, 3, subplot_titles=titles, **spaces)
    table = table.assign(preset=table["preset"].astype(object).fillna(""))
    for place, (x, y) in enumerate(panels):
        cell = {"row": place // 3 + 1, "col": place % 3 + 1}
        for (label, preset), mine in table.dropna(subset=[x, y]).groupby(["label", "preset"]):
            name = f"{CLASSIC.get(label, 'PerCoV2')} {preset}".strip()
            sized = mine["budget_bytes"].notna()
            look = {"color": colour(label), "dash": "dot" if preset == PRESETS[0] else "solid"}
            line = mine[sized].sort_values("budget_bytes")
            if len(line):
                once = {"name": name, "legendgroup": name, "showlegend": not place, "line": look}
                figure.add_scatter(x=line[x], y=line[y], mode="lines+markers", **once, **cell)
            marker = {"color": colour(label), "size": 9, "symbol": _SYMBOLS.get(label, "x")}
            alone = {"name": name, "marker": marker, "showlegend": False}
            figure.add_scatter(
                x=mine[~sized][x], y=mine[~sized][y], mode="markers", **alone, **cell
            )
        if x == "size_bytes":
            ticks = {"tickvals": _TICKS_BYTES, "ticktext": _TICKS_BYTES}
            figure.update_xaxes(type="log", **ticks, **cell)
    legend = {"legend_y": -0.08, "margin_t": 70}
    return figure.update_layout({**_LAYOUT, **legend})


def schedule_bars(frame: pd.DataFrame) -> go.Figure:
    """Mean bits of header, caption and tokens in a file, per mode and schedule."""
    rows = frame[frame["token_bits"].notna()]
    _require(rows, "token_bits")
    table = rows.groupby(["mode", "schedule"], sort=False).mean(numeric_only=True)
    names = [list(table.index.get_level_values(i)) for i in (0, 1)]
    figure = go.Figure()
    for part, shade in (("token", "#ff7f0e"), ("caption", "#1f77b4"), ("header", "#7f7f7f")):
        figure.add_bar(x=names, y=table[f"{part}_bits"], name=part, marker_color=shade)
    figure.update_yaxes(title="bits per picture")
    return figure.update_layout(title="Where the bits go", barmode="stack", **_LAYOUT)


def _means(frame: pd.DataFrame, *needed: str) -> pd.DataFrame:
    _require(frame, *needed)
    return summarise(frame).dropna(subset=list(needed))


def _require(frame: pd.DataFrame, *needed: str) -> None:
    for name in needed:
        if name not in frame or frame[name].isna().all():
            raise ConfigError(f"figure: no row has a value for {name!r}")


def write_report(
    frame: pd.DataFrame, out: Path, pictures: Iterable[Picture], notes: Sequence[str]
) -> Path:
    """Write `out/report.html`: all figures that the rows allow, `notes`, a table, a picture wall.
    The file loads nothing from anywhere; its thumbnails are looked for below `out`."""
    # Responsive: the grid's columns are narrower once the page has its scroll bar.
    drawn = {"include_plotlyjs": False, "full_html": False, "config": {"responsive": True}}
    errors = frame.loc[frame["error"].notna(), ["picture", "key", "error"]]
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    page = jinja2.Template(template, autoescape=True).render(
        script=plotly.offline.get_plotlyjs(),
        notes=notes,
        table=summarise(frame)
        .rename(columns=STARRED)
        .to_html(index=False, na_rep="", float_format="%.4g", border=0),
        figures=[figure.to_html(**drawn) for figure in report_figures(frame)],
        wall=_wall(frame, out, pictures),
        errors=errors.to_html(index=False, border=0),
        error_count=len(errors),
    )
    (path := out / "report.html").write_text(page, encoding="utf-8")
    return path


def report_figures(frame: pd.DataFrame) -> list[go.Figure]:
    """All figures for which the rows hold values."""
    present = [m for m in AXES if m != "bpp" and m in frame and frame[m].notna().any()]
    perception = [m for m in PERCEPTION if m in present]
    figures = [rate_distortion(frame, metric=metric) for metric in present]
    if "psnr" in present:
        figures += [distortion_perception(frame, perception=name) for name in perception[:2]]
    if present:
        figures.append(per_picture(frame, y=(perception or present)[0]))
    if frame["token_bits"].notna().any():
        figures.append(schedule_bars(frame))
    return figures


def _wall(
    frame: pd.DataFrame, out: Path, pictures: Iterable[Picture]
) -> list[list[dict[str, str]]]:
    """A line of tiles per picture: the original, then its decoded versions."""
    originals = {picture.name: picture for picture in pictures}
    shown = frame[frame["thumbnail"].notna()]
    keys = shown.drop_duplicates("key").groupby("label").head(WALL_PER_LABEL)["key"]
    lines = []
    from percov2_core.evaluation.runner import save_thumbnail  # loads torch: no figure needs it

    for name, rows in shown[shown["key"].isin(set(keys))].groupby("picture"):
        webp = io.BytesIO()
        if name in originals:  # else it is of an earlier run over more pictures
            save_thumbnail(originals[str(name)].open(), webp)
        line = [{"source": _uri(webp.getvalue()), "text": str(name), "name": "original"}]
        for row in rows.itertuples():
            text = f"{row.key}, {row.size_bytes:.0f} bytes"
            source = _uri((out / row.thumbnail).read_bytes())
            line.append({"source": source, "text": text, "name": row.thumbnail})
        lines.append(line)
    return lines


def _uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}" if webp else ""
