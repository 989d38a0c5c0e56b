"""Where the bits of a file went: an itemised bar, and the cost of every token over the picture."""

from __future__ import annotations

import json
from html import escape

from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.codec import Contents
from percov2_core.config import MODES, RATES
from percov2_core.metrics.rate import bits_per_pixel
from percov2_core.ui.html import bytes_in_words, png_uri, scale_bar

_PARTS = {
    "header": "size, model, check value",
    "caption": "one line of text",
    "tokens": "the grid",
}


def bits_panel(stream: Stream, contents: Contents, decoded: Image.Image) -> str:
    """The bar, the file's own words, and the token map."""
    return f"""
<div class="pc-bits">
 <div class="pc-bits-text">{bar(contents)}{_facts(stream, contents)}</div>
 {_token_map(contents, decoded, stream)}
</div>"""


def bar(contents: Contents) -> str:
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
    return f"""
<div class="pc-bar" aria-hidden="true">{segments}</div>
<table class="pc-table"><thead><tr><th scope="col">part</th><th scope="col">bits</th>
<th scope="col">bytes</th><th scope="col">what it is</th></tr></thead><tbody>{rows}
<tr class="pc-total"><th scope="row">file</th><td>{total:,}</td><td>{total // 8:,}</td>
<td>everything</td></tr></tbody></table>"""


def _facts(stream: Stream, contents: Contents) -> str:
    size_bytes = sum(stream.sizes)
    bpp = bits_per_pixel(size_bytes, stream.width, stream.height)
    rows = {
        "caption": f"“{contents.caption}”",
        "picture": f"{stream.width} x {stream.height} pixels",
        "mode": f"{stream.mode}, schedule {stream.schedule}",
        "tokens": f"{stream.tokens_sent} of {stream.tokens_total} sent",
        "file": f"{bytes_in_words(size_bytes)}, {bpp:.5f} bits per pixel",
        "model": f"fingerprint {stream.fingerprint:02x}, check value {stream.check:04x}",
    }
    return (
        '<dl class="pc-facts">'
        + "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in rows.items())
        + "</dl>"
    )


def _token_map(contents: Contents, decoded: Image.Image, stream: Stream) -> str:
    """The picture with a canvas over it; page.js paints costs and stages."""
    sent = contents.token_bits[contents.sent]
    summary = "no token was sent"
    if sent.size:
        summary = f"{sent.min():.1f} to {sent.max():.1f} bits a token, {sent.mean():.2f} on average"
    rows, columns = contents.tokens.shape
    data = {
        "rows": rows,
        "columns": columns,
        # Share of the padded grid that the picture covers.
        "cover": _cover(stream, rows, columns),
        "bits": [round(float(b), 2) for b in contents.token_bits.ravel()],
        "sent": contents.sent.ravel().astype(int).tolist(),
        "stages": contents.stages.ravel().tolist(),
    }
    last = int(contents.stages.max()) + 1
    most = float(contents.token_bits.max())
    scale = scale_bar("0 bits", f"{most:.1f} bits a token") if sent.size else ""
    return f"""
<figure class="pc-tokens" data-tokens="{escape(json.dumps(data, separators=(",", ":")))}">
 <div class="pc-map" style="aspect-ratio:{decoded.width}/{decoded.height}">
  <img src="{png_uri(decoded)}" alt="" onload="percov.tokens(this)">
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


def _cover(stream: Stream, rows: int, columns: int) -> list[float]:
    """Width and height of the picture as shares of the token grid's."""
    stride = RATES[MODES[stream.mode].rate].token_stride
    return [stream.width / (columns * stride), stream.height / (rows * stride)]
