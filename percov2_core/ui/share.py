"""A file to take away: the file itself, its link, its QR code, and the card of a shared link."""

from __future__ import annotations

import asyncio
import io
import re
import threading
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import segno
from segno.encoder import DataOverflowError
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from percov2_core import image_io
from percov2_core.bitstream import SUFFIX, Stream
from percov2_core.errors import PerCoError
from percov2_core.ui import border
from percov2_core.ui.device import Turns
from percov2_core.ui.host import has_shared_gpu, page_address
from percov2_core.ui.results import Run
from percov2_core.ui.text import data_uri, piece

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2

CARD_SIDE_PX = 1200
MAX_CARD_PIXELS = 1_100_000  # of a file that is painted for whoever only looks at a link
_META = re.compile(r'<meta\s[^>]*(?:property="og:|name="twitter:)[^>]*>')


def qr_svg(content: str) -> str | None:
    """Scalable QR code, black on white in every theme; None if no QR code holds that much."""
    try:
        code = segno.make_qr(content, error="l", boost_error=False)
    except DataOverflowError:
        return None
    # A border of 4 modules is the white margin that scanners expect.
    svg: str = code.svg_inline(border=4, omitsize=True, dark="#000", light="#fff", svgclass="pc-qr")
    return svg


def share_panel(run: Run, *, address: str) -> str:
    """Download button, link and QR code of one file."""
    link = border.link_to(run.stream, address, run.settings)
    data = data_uri(run.stream.to_bytes(), "application/octet-stream")
    size, file = run.size_bytes, f"{run.name}{SUFFIX}"
    # The code is to be scanned from across a room: the picture alone.
    code, settings = qr_svg(border.link_to(run.stream, address)), run.settings.to_json()
    said = {"link": link, "code": code, "settings": settings}
    return piece("share", file=file, size_bytes=size, data=data, **said)


class Cards:
    """Title, size and picture of a shared link, for programs that show links as cards."""

    def __init__(self, codec: PerCoV2, turns: Turns) -> None:
        self.codec, self.turns = codec, turns
        self._painting = threading.Lock()

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app`, with a head of its own for every shared link, and the pictures of cards."""
        return partial(self._answer, app)

    async def _answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        stream = _shared(scope)
        if stream is None:
            await app(scope, receive, send)
        elif scope["path"].endswith(border.CARD):
            answer = await asyncio.to_thread(self._picture, stream)
            await answer(scope, receive, send)
        else:
            headers = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
            page: list[Message] = []

            async def keep(message: Message) -> None:
                page.append(message)

            await app({**scope, "headers": headers}, receive, keep)
            html = b"".join(message.get("body", b"") for message in page).decode()
            address = page_address(Headers(raw=headers))
            said = {"stream": stream, "address": address, "link": border.link_to(stream, address)}
            said["picture"] = self._paints(stream)
            head = f"<head>{piece('card', **said)}"
            html = _META.sub("", html).replace("<head>", head, 1)
            await HTMLResponse(html, page[0]["status"])(scope, receive, send)

    def _paints(self, stream: Stream) -> bool:
        small = stream.width * stream.height <= MAX_CARD_PIXELS
        return small and stream.fingerprint == self.codec.fingerprint and not has_shared_gpu()

    def _picture(self, stream: Stream) -> Response:
        """Visitors come first: one card at a time, and none while somebody waits."""
        if not self._paints(stream):
            return Response(status_code=404)
        if self.turns.before("") or not self._painting.acquire(blocking=False):
            return Response(status_code=503, headers={"retry-after": "60"})
        try:
            picture = image_io.fitted(self.codec.decode(stream), CARD_SIDE_PX)
        except PerCoError:  # a file of another model, or a damaged one
            return Response(status_code=404)
        finally:
            self._painting.release()
        picture.save(buffer := io.BytesIO(), "JPEG", quality=88)
        kept = {"cache-control": "public, max-age=86400"}
        return Response(buffer.getvalue(), media_type="image/jpeg", headers=kept)


def _shared(scope: Scope) -> Stream | None:
    """The file in the address that is asked for, if there is one."""
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return None
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    query = parse_qs(scope["query_string"].decode("latin-1"))
    if path not in ("/", border.CARD) or border.PARAMETER not in query:
        return None
    try:
        return border.read_link(query[border.PARAMETER][0])[0]
    except PerCoError:
        return None
