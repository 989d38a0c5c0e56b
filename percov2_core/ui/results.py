"""What comes out of a run, as HTML: headline, compare slider, bits, numbers, runs.

Whatever a file or a visitor says is escaped here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd
from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.config import COARSE, FINE
from percov2_core.contents import Contents
from percov2_core.metrics import Scores, bits_per_pixel
from percov2_core.ui import text
from percov2_core.ui.border import Chosen
from percov2_core.ui.device import Frame, Look
from percov2_core.ui.text import bytes_in_words, data_uri, empty, one_in, png_uri, scale_bar

_PARTS = {
    "header": "size, model, check value",
    "caption": "one line of text",
    "tokens": "the grid",
}
COLUMNS = {
    "psnr": ("PSNR", "dB, higher is closer", ".2f"),
    "ms_ssim": ("MS-SSIM", "of 1, higher is closer", ".3f"),
    "lpips": ("LPIPS", "AlexNet, lower is closer", ".3f"),
    "picorank": ("PicoRank", "stands in for LPIPS, lower is closer", ".3f"),
    "feature_distance": ("Feature distance", "SqueezeNet, lower; our model trained with it", ".3f"),
}
_ZOOM = """
  <span class="pc-gap"></span>
  <span class="pc-group">
   <button type="button" onclick="percov.zoom(this, 0.5)" aria-label="Zoom out">&minus;</button>
   <output class="pc-zoom">1&times;</output>
   <button type="button" onclick="percov.zoom(this, 2)" aria-label="Zoom in">+</button>
  </span>
  <button type="button" onclick="percov.full(this)">Full screen</button>
  <button type="button" onclick="percov.save(this)">Save PNG</button>"""


@dataclass(frozen=True)
class Run:
    """One file and the picture that came out of it.
    `number` is the visitor's press of Compress that began it, 0 for an opened file."""

    name: str
    contents: Contents
    look: Look
    headline: str
    decoded: Image.Image
    step_s: float
    original: Image.Image | None = None
    number: int = 0

    @property
    def stream(self) -> Stream:
        return self.contents.stream

    @property
    def size_bytes(self) -> int:
        return sum(self.stream.sizes)

    @property
    def bpp(self) -> float:
        return bits_per_pixel(self.size_bytes, self.stream.width, self.stream.height)


@dataclass(frozen=True)
class Entry:
    """One codec's answer; `note` says at which setting."""

    label: str
    note: str
    size_bytes: int
    picture: Image.Image
    scores: Scores


def headline(stream: Stream, chosen: Chosen, png_bytes: int) -> str:
    """'68 bytes: 1/6,900 of the PNG, 1/310 of the JPEG you uploaded'."""
    size_bytes = sum(stream.sizes)
    parts = [f"<b>{one_in(png_bytes, size_bytes)}</b> of the picture as PNG"]
    if chosen.kind != "PNG":
        share = one_in(chosen.size_bytes, size_bytes)
        parts.append(f"<b>{share}</b> of the {escape(chosen.kind)} you chose")
    bpp = bits_per_pixel(size_bytes, stream.width, stream.height)
    return _headline(
        f'<strong id="pc-bytes" data-bytes="{size_bytes}">{bytes_in_words(size_bytes)}</strong>',
        f"{', '.join(parts)} <small>{bpp:.4f} bits per pixel, mode {stream.mode}</small>",
    )


def file_headline(stream: Stream) -> str:
    """Of a file whose original nobody here has."""
    return _headline(
        f"<strong>{bytes_in_words(sum(stream.sizes))}</strong>",
        f"A picture of <b>{stream.width} x {stream.height}</b> pixels, without its original"
        f"<small>mode {stream.mode}, schedule {stream.schedule}</small>",
    )


def plain_headline(big: str = text.EMPTY_HEADLINE, note: str = text.EMPTY_HEADLINE_NOTE) -> str:
    """Where there is no file."""
    return _headline(f"<strong>{escape(big)}</strong>", escape(note), "pc-quiet")


def _headline(big: str, note: str, kind: str = "") -> str:
    return f'<div class="pc-headline {kind}">{big}<span>{note}</span></div>'


def table(kind: str, heads: Iterable[str], rows: str) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in heads)
    return (
        f'<table class="pc-table {kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def wide_table(kind: str, label: str, heads: Iterable[str], rows: str) -> str:
    """A table that scrolls sideways where it does not fit."""
    inside = table(kind, heads, rows)
    return f'<div class="pc-scroll" tabindex="0" role="region" aria-label="{label}">{inside}</div>'


def compare(
    original: Image.Image | None,
    decoded: Image.Image,
    *,
    tag: str,
    caption: str,
    left: str = "Original",
) -> str:
    """Original on the left, decoded on the right of a movable edge; decoded alone without it.
    The edge is a native range input, so that every keyboard and every screen reader can use it."""
    edge, buttons, label, split = "", "", "Result", 0
    if original is not None:
        label, split = "Original and result", 50
        edge = f"""
   <img class="pc-original" src="{png_uri(original)}" alt="{escape(left)}">
   <span class="pc-tag pc-left">{escape(left)}</span>
   <span class="pc-edge"></span>
   <input class="pc-range" type="range" min="0" max="100" step="1" value="50"
    aria-label="Compare: how much of the original is shown, in percent"
    aria-valuetext="50 percent original"
    oninput="percov.split(this, this.value)">"""
        buttons = f"""
  <button type="button" onclick="percov.split(this, 100)">{escape(left)}</button>
  <button type="button" onclick="percov.split(this, 50)">Both</button>
  <button type="button" onclick="percov.split(this, 0)">From the file</button>"""
    return f"""
<figure class="pc-compare" style="--ratio:{decoded.width / decoded.height:.5f};--split:{split}">
 <div class="pc-view" tabindex="0" role="region" aria-label="{label}">
  <div class="pc-frame">
   <img class="pc-decoded" src="{png_uri(decoded)}" alt="Decoded picture: {escape(caption)}">
   <span class="pc-tag pc-right">{escape(tag)}</span>{edge}
  </div>
 </div>
 <div class="pc-tools" role="group" aria-label="View">{buttons}{_ZOOM}
 </div>
</figure>"""


def compare_run(run: Run) -> str:
    """A run's picture beside its original, or alone where there is none."""
    tag = bytes_in_words(run.size_bytes)
    return compare(run.original, run.decoded, tag=tag, caption=run.contents.caption)


def painting(size: tuple[int, int], *, frame: Frame | None = None, note: str = "") -> str:
    """The place of the result before it is there: same size, so that nothing jumps."""
    done, shown = 0.0, ""
    if frame:
        done = frame.step / frame.total
        note = f"Step {frame.step} of {frame.total}, {frame.step_s:.2f} s each"
        if frame.preview:
            shown = f'<img class="pc-decoded" src="{png_uri(frame.preview)}" alt="">'
    return f"""
<figure class="pc-compare pc-busy" style="--ratio:{size[0] / size[1]:.5f}" aria-busy="true">
 <div class="pc-view"><div class="pc-frame">{shown}<div class="pc-shimmer"></div></div></div>
 <div class="pc-tools"><progress max="1" value="{done:.3f}" aria-label="Painting…"></progress>
 <span role="status">{note}</span></div>
</figure>"""


def bits_panel(run: Run) -> str:
    """Where the bits went: an itemised bar, the file's own words, the cost of every token."""
    return f"""
<div class="pc-bits">
 <div class="pc-bits-text">{bits_bar(run.contents)}{_facts(run)}</div>{_token_map(run)}
</div>"""


def bits_bar(contents: Contents) -> str:
    """Header, caption and tokens; the parts add up to the file."""
    bits = contents.bits._asdict()
    total = sum(bits.values())
    segments = "".join(
        f'<span class="pc-{part}" style="flex-grow:{count}"></span>' for part, count in bits.items()
    )
    rows = "".join(
        f'<tr><th scope="row"><i class="pc-{part}"></i>{part}</th><td>{count:,}</td>'
        f"<td>{count / 8:,.1f}</td><td>{escape(_PARTS[part])}</td></tr>"
        for part, count in bits.items()
    )
    rows += (
        f'<tr class="pc-total"><th scope="row">file</th><td>{total:,}</td>'
        f"<td>{total // 8:,}</td><td>everything</td></tr>"
    )
    bar = f'<div class="pc-bar" aria-hidden="true">{segments}</div>'
    return bar + table("", ("part", "bits", "bytes", "what it is"), rows)


def _facts(run: Run) -> str:
    stream = run.stream
    rows = {
        "caption": f"“{run.contents.caption}”",
        "picture": f"{stream.width} x {stream.height} pixels",
        "mode": f"{stream.mode}, schedule {stream.schedule}",
        "tokens": f"{stream.tokens_sent} of {sum(stream.tokens_total)} sent",
        "file": f"{bytes_in_words(run.size_bytes)}, {run.bpp:.5f} bits per pixel",
        "model": f"fingerprint {stream.fingerprint:02x}, check value {stream.check:04x}",
    }
    said = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in rows.items())
    return f'<dl class="pc-facts">{said}</dl>'


def _token_map(run: Run) -> str:
    """The picture with a canvas over it; page.js paints costs and stages."""
    contents, stream = run.contents, run.stream
    # The level that the file ends in.
    shown, kind = (contents.fine, FINE) if stream.sent.fine else (contents.coarse, COARSE)
    assert shown is not None
    sent = shown.bits[shown.sent]
    summary = "no token was sent"
    if sent.size:
        summary = f"{sent.min():.1f} to {sent.max():.1f} bits a token, {sent.mean():.2f} on average"
    rows, columns = shown.tokens.shape
    stride = kind.token_stride
    data = {
        "rows": rows,
        "columns": columns,
        # Width and height of the picture as shares of the padded grid's.
        "cover": [stream.width / (columns * stride), stream.height / (rows * stride)],
        "bits": [round(float(b), 2) for b in shown.bits.ravel()],
        "sent": shown.sent.ravel().astype(int).tolist(),
        "stages": shown.stages.ravel().tolist(),
    }
    last = int(shown.stages.max()) + 1
    most = float(shown.bits.max())
    scale = scale_bar("0 bits", f"{most:.1f} bits a token") if sent.size else ""
    return f"""
<figure class="pc-tokens" data-tokens="{escape(json.dumps(data, separators=(",", ":")))}">
 <div class="pc-map" style="aspect-ratio:{stream.width}/{stream.height}">
  <img src="{png_uri(run.decoded)}" alt="" onload="percov.tokens(this)">
  <canvas role="img" aria-label="Cost of every token: {summary}"></canvas>
 </div>
 {scale}
 <figcaption><output class="pc-token-note">{summary}</output></figcaption>
 <div class="pc-tools">
  <label>Stage <input type="range" min="0" max="{last}" value="{last}" step="1"
   aria-label="Stages shown" oninput="percov.stage(this)"></label>
  <button type="button" onclick="percov.play(this)">Play the order</button>
 </div>
</figure>"""


def numbers_panel(entries: Sequence[Entry], *, pending: bool) -> str:
    """A table; the first entry is ours. Every picture is one click away."""
    ours = entries[0]
    shown = [name for name in COLUMNS if getattr(ours.scores, name) is not None]
    heads = [f"{title}<small>{note}</small>" for title, note, _ in map(COLUMNS.__getitem__, shown)]
    rows = "".join(_numbers_row(entry, shown, ours) for entry in entries)
    notes = [note for name, note in text.MISSING.items() if getattr(ours.scores, name) is None]
    if all(entry.size_bytes > ours.size_bytes for entry in entries[1:]):
        notes.insert(0, text.none_as_small(ours.size_bytes))
    below = "".join(f'<p class="pc-note">{escape(note)}</p>' for note in notes)
    if pending:
        below = '<p class="pc-note" role="status">Measuring the classic codecs…</p>'
    heads = ["codec", "bytes", *heads, "picture"]
    return wide_table("pc-numbers", "Measurements", heads, rows) + below


def _numbers_row(entry: Entry, shown: Sequence[str], ours: Entry) -> str:
    values = ((getattr(entry.scores, name), COLUMNS[name][2]) for name in shown)
    cells = "".join(f"<td>{'' if one is None else format(one, how)}</td>" for one, how in values)
    times, mark = f"<small>{entry.size_bytes / ours.size_bytes:.1f} x ours</small>", ""
    if entry is ours:
        times, mark = "", ' class="pc-ours"'
    tag = escape(f"{entry.label}: {bytes_in_words(entry.size_bytes)}")
    return (
        f'<tr{mark}><th scope="row">{escape(entry.label)}<small>{escape(entry.note)}</small></th>'
        f'<td>{entry.size_bytes:,}{times}</td>{cells}<td><button type="button" class="pc-show" '
        f'data-tag="{tag}" aria-label="Show {tag}" onclick="percov.show(this)">'
        f'<img src="{png_uri(entry.picture)}" alt="" width="44" height="44"></button></td></tr>'
    )


def runs_table(keys: Sequence[str], runs: pd.DataFrame) -> str:
    """Every run, newest first, and the same as a CSV file. `keys`: what their buttons tell."""
    if runs.empty:
        return empty("Every picture that you compress is listed here, to save as CSV.")
    titles = [COLUMNS.get(name, (name.replace("_", " "),))[0] for name in runs]
    body = ""
    for key, values in zip(keys, runs.itertuples(index=False), strict=True):
        first, *others = (_cell(value) for value in values)
        button = (
            f'<button type="button" class="pc-back" data-key="{key}" '
            f'title="Bring this picture back">{first}</button>'
        )
        body = f"<tr>{''.join(f'<td>{cell}</td>' for cell in (button, *others))}</tr>{body}"
    uri = data_uri(runs_csv(runs).encode(), "text/csv")
    link = (
        f'<a class="pc-button" id="pc-csv" download="percov2-runs.csv" href="{uri}">Save as CSV</a>'
    )
    return f"{wide_table('pc-runs', 'Your runs', titles, body)}<p>{link}</p>"


def runs_csv(runs: pd.DataFrame) -> str:
    return str(runs.to_csv(index=False, lineterminator="\n"))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return escape(str(value))
