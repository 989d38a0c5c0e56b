"""Figures from rows: pure functions of a table as `evaluation.rows.to_frame` makes it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

import pandas as pd
import plotly.graph_objects as go
import plotly.offline

from percov2_core.errors import ConfigError
from percov2_core.evaluation.protocol import Picture
from percov2_core.evaluation.rows import summarise
from percov2_core.evaluation.runner import save_thumbnail
from percov2_core.metrics import AXES

PERCEPTION = ("lpips", "picorank", "feature_distance", "patch_swd")

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
    "legend": {"orientation": "h", "y": -0.2},
    "hoverlabel": {"align": "left"},
}
WALL_PER_LABEL = 3  # settings of one codec that the picture wall shows


def colour(label: str) -> str:
    """The colour of a codec, the same in every figure; sizes share their codec's."""
    return _COLOURS.get(label.partition("/")[0], "#444444")


def rate_distortion(frame: pd.DataFrame, *, metric: str = "psnr") -> go.Figure:
    """Mean metric over mean rate, a line per codec and mode."""
    figure, table = go.Figure(), _means(frame, "bpp", metric)
    for label, points in table.groupby("label"):
        points = points.sort_values("bpp")
        figure.add_scatter(
            x=points["bpp"],
            y=points[metric],
            name=str(label),
            mode="lines+markers",
            marker={"color": colour(str(label)), "size": 8},
            line={"dash": "dot" if "/" in str(label) else "solid"},
            customdata=points[["key", "size_bytes"]],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]:.0f} bytes, %{x:.4f} bpp"
            f"<br>{metric} %{{y:.4g}}<extra></extra>",
        )
    figure.update_xaxes(title=AXES["bpp"], type="log")
    figure.update_yaxes(title=AXES[metric])
    return figure.update_layout(title=f"Rate and {metric}", **_LAYOUT)


def distortion_perception(
    frame: pd.DataFrame, *, distortion: str = "psnr", perception: str = "picorank"
) -> go.Figure:
    """A point per setting; presets are labelled, colour is the rate."""
    table = _means(frame, distortion, perception)
    figure = go.Figure(
        go.Scatter(
            x=table[distortion],
            y=table[perception],
            mode="markers+text",
            text=table["preset"].fillna("") if "preset" in table else "",
            textposition="top center",
            marker={
                "color": table["bpp"],
                "colorscale": "Viridis",
                "colorbar": {"title": "bpp"},
                "size": 11,
                "symbol": table["label"].map(_SYMBOLS).fillna("cross"),
            },
            customdata=table[["key", "bpp", "label"]],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]:.4f} bpp"
            f"<br>{distortion} %{{x:.4g}}, {perception} %{{y:.4g}}<extra></extra>",
        )
    )
    figure.update_xaxes(title=AXES[distortion])
    figure.update_yaxes(title=AXES[perception], autorange="reversed")
    title = "Distortion and perception: up and right is better"
    return figure.update_layout(title=title, **_LAYOUT)


def per_picture(frame: pd.DataFrame, *, x: str = "bpp", y: str = "picorank") -> go.Figure:
    """A point per row. `customdata` holds the picture, the setting's key and the thumbnail's
    path, for a page that shows the picture while the pointer is on its point."""
    rows = frame.dropna(subset=[x, y])
    _require(rows, x, y)
    figure = go.Figure()
    for label, points in rows.groupby("label"):
        figure.add_scatter(
            x=points[x],
            y=points[y],
            name=str(label),
            mode="markers",
            marker={"color": colour(str(label)), "size": 7, "opacity": 0.7},
            customdata=points[["picture", "key", "thumbnail"]].astype(object),
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>"
            f"{x} %{{x:.4g}}, {y} %{{y:.4g}}<extra></extra>",
        )
    figure.update_xaxes(title=AXES[x], type="log" if x == "bpp" else "linear")
    figure.update_yaxes(title=AXES[y])
    return figure.update_layout(title=f"Every picture: {x} and {y}", **_LAYOUT)


def schedule_bars(frame: pd.DataFrame) -> go.Figure:
    """Mean bits of header, caption and tokens in a file, per mode and schedule."""
    rows = frame[frame["token_bits"].notna()]
    _require(rows, "token_bits")
    table = rows.groupby(["mode", "schedule"], sort=False).mean(numeric_only=True)
    names = [list(table.index.get_level_values(i)) for i in (0, 1)]
    figure = go.Figure()
    for part, shade in (("token", "#ff7f0e"), ("caption", "#1f77b4"), ("header", "#7f7f7f")):
        values = table[f"{part}_bits"]
        figure.add_bar(x=names, y=values, name=part, marker_color=shade)
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
    """Write `out/report.html`: every figure that the rows allow, the table, a picture wall.
    The file loads nothing from anywhere; its thumbnails are looked for below `out`. `notes` are
    sentences to show above the table, such as metrics that cannot be had."""
    # Responsive: the grid's columns are narrower once the page has its scroll bar.
    drawn = {"include_plotlyjs": False, "full_html": False, "config": {"responsive": True}}
    figures = "\n".join(
        f'<div class="figure">{figure.to_html(**drawn)}</div>' for figure in report_figures(frame)
    )
    errors = frame[frame["error"].notna()]
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    page = Template(template).substitute(
        script=plotly.offline.get_plotlyjs(),
        notes="".join(f"<li>{html.escape(note)}</li>" for note in notes),
        table=summarise(frame).to_html(index=False, na_rep="", float_format="%.4g", border=0),
        figures=figures,
        wall=_wall(frame, out, pictures),
        errors=errors[["picture", "key", "error"]].to_html(index=False, border=0),
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


def _wall(frame: pd.DataFrame, out: Path, pictures: Iterable[Picture]) -> str:
    originals = {picture.name: picture for picture in pictures}
    shown = frame[frame["thumbnail"].notna()]
    keys = shown.drop_duplicates("key").groupby("label").head(WALL_PER_LABEL)["key"]
    shown = shown[shown["key"].isin(set(keys))]
    lines = []
    for picture, rows in shown.groupby("picture"):
        # None where it is of an earlier run over more pictures.
        original = originals.get(str(picture))
        tiles = [_tile(_reduced(original) if original else b"", str(picture), "original")]
        for row in rows.itertuples():
            text = f"{row.key}, {row.size_bytes:.0f} bytes"
            tiles.append(_tile((out / row.thumbnail).read_bytes(), text, row.thumbnail))
        lines.append(f'<div class="line">{"".join(tiles)}</div>')
    return "\n".join(lines)


def _tile(webp: bytes, text: str, name: str) -> str:
    caption = html.escape(text)
    source = f"data:image/webp;base64,{base64.b64encode(webp).decode()}" if webp else ""
    return (
        f'<figure><img src="{source}" alt="{caption}" '
        f'data-thumbnail="{html.escape(name)}"><figcaption>{caption}</figcaption></figure>'
    )


def _reduced(picture: Picture) -> bytes:
    save_thumbnail(picture.open(), buffer := io.BytesIO())
    return buffer.getvalue()
