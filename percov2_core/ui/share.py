"""The file as a link and as a QR code. The link is the picture: nothing is stored for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from urllib.parse import parse_qs, urlsplit, urlunsplit

import segno
from segno.encoder import DataOverflowError

from percov2_core.bitstream import SUFFIX, Stream
from percov2_core.errors import BitstreamError
from percov2_core.ui.html import bytes_in_words, data_uri

PARAMETER = "pcv2"
PREFIX_VARIABLE = "GRADIO_ROOT_PATH"  # set by hosts that serve the page below a path
QUIET_MODULES = 4  # the white margin that scanners expect


def page_address(headers: Mapping[str, str]) -> str:
    """Where this page is, as the visitor's browser sees it, without query and fragment.

    Browsers that do not say it leave the host's word: its forwarded name, and its path prefix in
    the environment.
    """
    if seen := headers.get("referer"):
        parts = urlsplit(seen)
        return urlunsplit((parts.scheme, parts.netloc, parts.path or "/", "", ""))
    prefix = os.environ.get(PREFIX_VARIABLE, "").strip("/")
    if "://" in prefix:
        return f"{prefix}/"
    origin = headers.get("origin", "null")
    if origin == "null":  # what browsers send from inside some frames
        host = _first(headers.get("x-forwarded-host")) or headers.get("host", "")
        origin = f"{_first(headers.get('x-forwarded-proto')) or 'http'}://{host}"
    return f"{origin}/{prefix}/" if prefix else f"{origin}/"


def _first(listed: str | None) -> str:
    """What the outermost of several proxies said."""
    return (listed or "").partition(",")[0].strip()


def link(stream: Stream, address: str) -> str:
    """An address that opens to the decoded picture."""
    return f"{address}?{PARAMETER}={stream.to_text()}"


def read_link(pasted: str) -> Stream:
    """A whole link, or only the text after `pcv2=`.

    Raises:
        BitstreamError: if there is no file in it.
    """
    pasted = pasted.strip()
    if "=" not in pasted and "/" not in pasted:
        return Stream.from_text(pasted)
    found = parse_qs(urlsplit(pasted).query).get(PARAMETER)
    if not found:
        raise BitstreamError(f"link: expected one with ?{PARAMETER}=..., got {pasted[:60]!r}")
    return Stream.from_text(found[0])


def qr_svg(content: str) -> str | None:
    """Scalable QR code, black on white in every theme; None if no QR code holds that much."""
    try:
        code = segno.make_qr(content, error="l", boost_error=False)
    except DataOverflowError:
        return None
    svg: str = code.svg_inline(
        border=QUIET_MODULES, omitsize=True, dark="#000", light="#fff", svgclass="pc-qr"
    )
    return svg


def share_panel(stream: Stream, *, address: str, name: str) -> str:
    """Download button, link and QR code of one file."""
    data, whole = stream.to_bytes(), link(stream, address)
    file = escape(f"{name}{SUFFIX}", quote=True)
    return f"""
<div class="pc-share">
 <div class="pc-share-text">
  <a class="pc-button" id="pc-download" download="{file}"
   href="{data_uri(data, "application/octet-stream")}">Save {file} ({bytes_in_words(len(data))})</a>
  <label class="pc-label" for="pc-link">A link that contains the whole picture</label>
  <div class="pc-copy"><input id="pc-link" type="text" readonly value="{escape(whole)}"
   onfocus="this.select()"><button type="button" onclick="percov.copy(this)">Copy</button></div>
  <p class="pc-note">{len(whole):,} characters. Whoever opens it sees the picture; this page keeps
   nothing.</p>
 </div>
 {_qr_figure(whole)}
</div>"""


def _qr_figure(content: str) -> str:
    svg = qr_svg(content)
    if svg is None:
        return '<p class="pc-note">Too much for a QR code: use Ultra-low or Hybrid.</p>'
    return (
        f'<figure class="pc-qr-box"><div role="img" aria-label="QR code of the link">{svg}</div>'
        "<figcaption>The picture itself, as a QR code</figcaption></figure>"
    )
