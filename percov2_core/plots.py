"""Figures from rows: pure functions of a table as `evaluation.rows.to_frame` makes it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from types import MappingProxyType

import pandas as pd
import plotly.graph_objects as go
import plotly.offline
from PIL import Image, ImageOps
from plotly.subplots import make_subplots

from percov2_core.errors import ConfigError
from percov2_core.evaluation.axes import AXES
from percov2_core.evaluation.protocol import centre_square
from percov2_core.evaluation.rows import summarise
from percov2_core.evaluation.worker import THUMBNAIL_PX

EQUAL_METRICS = ("psnr", "ms_ssim", "feature_distance", "picorank", "patch_swd")
PERCEPTION = ("lpips", "picorank", "feature_distance", "patch_swd")

# Ours in warm and full colours, the others in cool ones, so that a legend is not needed twice.
_COLOURS: Mapping[str, str] = MappingProxyType(
    {
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
)
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
    table = _means(frame, "bpp", metric)
    figure = go.Figure()
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
            text=[str(p) if isinstance(p, str) else "" for p in _column(table, "preset")],
            textposition="top center",
            marker={
                "color": table["bpp"],
                "colorscale": "Viridis",
                "colorbar": {"title": "bpp"},
                "size": 11,
                "symbol": [_symbol(label) for label in table["label"]],
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


def equal_bytes(ours: pd.DataFrame, classic: pd.DataFrame, *, mode: str) -> go.Figure:
    """One panel per metric: our presets, and classic codecs in as many bytes.

    Args:
        ours: Rows of the study `presets`.
        classic: Rows of the study `equal`.
        mode: Key into `config.MODES`.
    """
    mine = ours[ours["mode"] == mode]
    rivals = classic[(classic["match"] == mode) & classic["bpp"].notna()]
    _require(mine, *EQUAL_METRICS)
    bars = [(f"{mode}, {p}", f"percov2 {mode}", rows) for p, rows in mine.groupby("preset")]
    bars += [(str(codec), str(codec), rows) for codec, rows in rivals.groupby("codec")]
    figure = make_subplots(rows=1, cols=len(EQUAL_METRICS), shared_yaxes=True)
    for i, metric in enumerate(EQUAL_METRICS, start=1):
        values = [rows[metric].mean() for *_, rows in bars]
        figure.add_bar(
            x=values,
            y=[name for name, *_ in bars],
            orientation="h",
            marker_color=[colour(label) for _, label, _ in bars],
            text=[f"{v:.3g}" for v in values],
            showlegend=False,
            row=1,
            col=i,
        )
        name, _, better = AXES[metric].removesuffix(")").partition(" (")
        figure.update_xaxes(title=f"{name}<br>{better}", row=1, col=i)
    figure.update_yaxes(autorange="reversed")
    size = mine["size_bytes"].mean()
    title = f"{mode}: Kodak at equal bytes, {size:.0f} a picture on average"
    return figure.update_layout(title=title, **{**_LAYOUT, "margin": {"l": 130, "r": 20, "b": 80}})


def schedule_bars(frame: pd.DataFrame) -> go.Figure:
    """Mean bits of header, caption and tokens in a file, per mode and schedule."""
    rows = frame[frame["token_bits"].notna()]
    _require(rows, "token_bits")
    table = rows.groupby(["mode", "schedule"], sort=False)[
        ["header_bits", "caption_bits", "token_bits"]
    ].mean()
    names = [list(table.index.get_level_values(i)) for i in (0, 1)]
    figure = go.Figure()
    for part, shade in (("token", "#ff7f0e"), ("caption", "#1f77b4"), ("header", "#7f7f7f")):
        values = table[f"{part}_bits"]
        figure.add_bar(x=names, y=values, name=part, marker_color=shade)
    figure.update_yaxes(title="bits per picture")
    return figure.update_layout(title="Where the bits go", barmode="stack", **_LAYOUT)


def hybrid_curve(frame: pd.DataFrame, *, metric: str = "psnr") -> go.Figure:
    """Hybrid mode: a metric over the number of tokens sent."""
    rows = frame[frame["mode"] == "hybrid"].dropna(subset=["tokens", metric])
    _require(rows, metric)
    table = rows.groupby("tokens")[[metric, "size_bytes"]].mean().reset_index()
    figure = go.Figure(
        go.Scatter(
            x=table["tokens"],
            y=table[metric],
            mode="lines+markers",
            marker={"color": colour("percov2 hybrid"), "size": 9},
            customdata=table[["size_bytes"]],
            hovertemplate="%{x} tokens, %{customdata[0]:.0f} bytes<br>"
            f"{metric} %{{y:.4g}}<extra></extra>",
        )
    )
    figure.update_xaxes(title="tokens sent")
    figure.update_yaxes(title=AXES[metric])
    return figure.update_layout(title=f"Hybrid mode: {metric} over tokens sent", **_LAYOUT)


def _column(table: pd.DataFrame, name: str) -> Sequence[object]:
    return list(table[name]) if name in table else [None] * len(table)


def _symbol(label: str) -> str:
    return {
        "percov2 ultra-low": "circle",
        "percov2 extreme": "diamond",
        "percov2 hybrid": "square",
    }.get(label, "cross")


def _means(frame: pd.DataFrame, *needed: str) -> pd.DataFrame:
    _require(frame, *needed)
    return summarise(frame).dropna(subset=list(needed))


def _require(frame: pd.DataFrame, *needed: str) -> None:
    for name in needed:
        if name not in frame or frame[name].isna().all():
            raise ConfigError(f"figure: no row has a value for {name!r}")


def write_report(
    frame: pd.DataFrame, out: Path, originals: Mapping[str, Path], notes: Sequence[str]
) -> Path:
    """Write `out/report.html`: every figure that the rows allow, the table, a picture wall.

    Args:
        frame: Rows; thumbnails are looked for below `out`.
        originals: Picture name -> its file.
        notes: Sentences to show above the table, such as metrics that cannot be had.

    Returns:
        The file. It loads nothing from anywhere.
    """
    figures = "\n".join(
        f'<div class="figure">{_fragment(figure)}</div>' for figure in report_figures(frame)
    )
    errors = frame[frame["error"].notna()]
    page = _PAGE.substitute(
        script=plotly.offline.get_plotlyjs(),
        notes="".join(f"<li>{html.escape(note)}</li>" for note in notes),
        table=summarise(frame).to_html(index=False, na_rep="", float_format="%.4g", border=0),
        figures=figures,
        wall=_wall(frame, out, originals),
        errors=errors[["picture", "key", "error"]].to_html(index=False, border=0),
        error_count=len(errors),
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _fragment(figure: go.Figure) -> str:
    # Responsive: the grid's columns are narrower once the page has its scroll bar.
    text: str = figure.to_html(include_plotlyjs=False, full_html=False, config={"responsive": True})
    return text


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


def _wall(frame: pd.DataFrame, out: Path, originals: Mapping[str, Path]) -> str:
    shown = frame[frame["thumbnail"].notna()]
    keys = shown.drop_duplicates("key").groupby("label").head(WALL_PER_LABEL)["key"]
    shown = shown[shown["key"].isin(set(keys))]
    lines = []
    for picture, rows in shown.groupby("picture"):
        tiles = [_tile(_original(originals.get(str(picture))), str(picture), "original")]
        for row in rows.itertuples():
            source = _data_uri((out / str(row.thumbnail)).read_bytes())
            tiles.append(_tile(source, f"{row.key}, {row.size_bytes:.0f} bytes", row.thumbnail))
        lines.append(f'<div class="line">{"".join(tiles)}</div>')
    return "\n".join(lines)


def _tile(source: str, text: str, name: object) -> str:
    caption = html.escape(text)
    return (
        f'<figure><img src="{source}" alt="{caption}" '
        f'data-thumbnail="{html.escape(str(name))}"><figcaption>{caption}</figcaption></figure>'
    )


def _original(path: Path | None) -> str:
    if path is None:
        return ""
    with Image.open(path) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
    small = centre_square(small, THUMBNAIL_PX)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return _data_uri(buffer.getvalue())


def _data_uri(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>PerCoV2 evaluation</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1rem; }
.figure { border: 1px solid #ddd; border-radius: 6px; height: 460px; min-width: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e5e5e5; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.line { display: flex; gap: .6rem; overflow-x: auto; padding: .4rem 0; }
figure { margin: 0; flex: 0 0 192px; } figure img { width: 192px; display: block; }
figcaption { font-size: 11px; overflow-wrap: anywhere; color: #555; }
#hover { position: fixed; display: none; pointer-events: none; border: 2px solid #222; z-index: 9; }
</style>
<script>$script</script></head><body>
<h1>PerCoV2 evaluation</h1>
<p>Rate is the length of the real file, header included. Means are over pictures.
The embedded model was trained with the SqueezeNet feature distance as one of its losses:
read that column beside the others.</p>
<ul>$notes</ul>
<div class="figures">$figures</div>
<h2>Means</h2><div class="scroll">$table</div>
<h2>Pictures</h2>$wall
<h2>Errors ($error_count)</h2><div class="scroll">$errors</div>
<img id="hover" alt="">
<script>
const hover = document.getElementById("hover");
for (const plot of document.querySelectorAll(".plotly-graph-div")) {
  Plotly.Plots.resize(plot);  // the first ones were drawn while the page was still growing
  plot.on("plotly_hover", (event) => {
    const data = event.points[0].customdata;
    const name = data && data.length > 2 ? data[2] : null;
    const tile = name && [...document.querySelectorAll("img[data-thumbnail]")]
      .find((image) => image.dataset.thumbnail === name);
    if (!tile) return;
    hover.src = tile.src;
    hover.style.left = Math.min(event.event.clientX + 20, innerWidth - 210) + "px";
    hover.style.top = Math.max(event.event.clientY - 240, 0) + "px";
    hover.style.display = "block";
  });
  plot.on("plotly_unhover", () => { hover.style.display = "none"; });
}
</script></body></html>
""")
