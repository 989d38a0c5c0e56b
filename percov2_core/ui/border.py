"""Everything that comes from outside passes here: pictures, files, links, texts, numbers, requests.

From the page, from the end points for programs and from MCP alike. A file is taken from the folder
in which this process keeps uploads and from nowhere else; no address is fetched; what is too large
for a shared machine is refused before any model runs; and what is said about it is plain text.
"""

from __future__ import annotations

import contextlib
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from percov2_core import image_io
from percov2_core.bitstream import MAX_FILE_BYTES, Stream
from percov2_core.config import EFFORTS, MIN_SIDE_PX, OWN_PAINTER, check_choice, check_whole
from percov2_core.errors import BitstreamError, ConfigError, ImageError, PerCoError
from percov2_core.run_settings import RunSettings

MAX_UPLOAD_BYTES = 20 * 2**20
MAX_UPLOAD_PIXELS = 25 * 10**6
COMFORTABLE_SIDE_PX = 1024  # above it, a resize is offered
MAX_WORKING_SIDE_PX = 2048
MAX_WORKING_PIXELS = 2_600_000  # whose tokens are read in 2 s of one plain core
MAX_BEST_PIXELS = 600_000  # which the encoder's best effort takes a minute or two for, likewise
MAX_STEP_PIXELS = 50 * 10**6  # steps x pixels, about a minute on two plain cores
MAX_BODY_BYTES = 2**20  # of a request that uploads nothing: the longest link has 270 kB
MAX_UPLOADS_BYTES = 80 * 2**20  # of several files that are uploaded together
MAX_BASE64_BYTES = MAX_UPLOAD_BYTES * 4 // 3 + 2**16  # what programs send of one
MAX_CAPTION = 2000  # characters whose price is told; a file takes less
KEEP_FILES_S = 1800
KEEP_RUNS = 12  # pictures a visitor can come back to
PARAMETER, SETTINGS = "pcv2", "settings"  # of links
CARD = "/card.jpg"  # the picture of a link, for programs that show links as cards
MAX_SAID = 200  # characters of an error

CHOOSE_FIRST = "Choose a picture first: upload one, or click an example."
NOT_UPLOADED = (
    "This file did not arrive here. This page takes uploads of at most "
    f"{MAX_UPLOAD_BYTES // 2**20} MB, and no addresses or paths: upload it as a file."
)
_MAX_NAME = 80
_FILE_ADDRESS = re.compile(r"https?://[^/]+(?:/[^?#]*)?/gradio_api/file=([^?#]+)")
_FILLERS = "\u115f\u1160\u3164\uffa0"  # letters without a shape

# What the page and its end points need of gradio; it serves more: proxies, recordings, histories.
_ROUTES = {
    "GET": r"/(config/?|theme\.css|favicon\.ico|card\.jpg|manifest\.json|robots\.txt)?"
    r"|/(assets|static|svelte)/.*"
    r"|/gradio_api/(info|openapi\.json|startup-events|theme\.css|upload_progress)/?"
    r"|/gradio_api/(app_id|heartbeat/[^/]+|queue/(data|status)|call/.*|mcp(/.*)?)/?"
    r"|/gradio_api/file=(?!https?:).*",
    "POST": r"/gradio_api/(queue/join|upload|cancel|reset|run/[^/]+|api/[^/]+|call/.*|mcp(/.*)?)/?",
    "DELETE": r"/gradio_api/mcp(/.*)?",
    "OPTIONS": ".*",
}
_CARRIES_FILES = {
    re.compile(r"/gradio_api/upload\b.*"): MAX_UPLOADS_BYTES + 2**16,
    re.compile(r"/gradio_api/mcp\b.*"): MAX_BASE64_BYTES,
}

Payload = Mapping[str, Any]  # gradio's own file data, for listeners without preprocessing:
# its File leaves an empty temporary file behind, its Image fails on damaged pictures without words


def allowed_bytes(method: str, path: str) -> int:
    """How much a request may send; below 0 if there is nothing for it here."""
    method = {"HEAD": "GET"}.get(method, method)
    if method not in _ROUTES or not re.fullmatch(_ROUTES[method], path):
        return -1
    found = (most for route, most in _CARRIES_FILES.items() if route.fullmatch(path))
    return next(found, MAX_BODY_BYTES)


@contextlib.contextmanager
def shown_to_user(*, advice: str = "") -> Iterator[None]:
    """Turn the package's own errors into a toast, with what to do. Bugs keep their traceback."""
    try:
        yield
    except PerCoError as error:
        raise gr.Error(plain(str(error), advice=advice), print_exception=False) from error


def plain(said: str, *, advice: str = "") -> str:
    """Text that is safe where gradio shows HTML: escaped, short, one line of printable characters.
    Nothing in it turns the direction of writing, or hides."""
    end = f". {advice}" if advice else ""
    room, shown = MAX_SAID - len(end), ""
    for character in said:
        kind = unicodedata.category(character)
        visible = kind[0] in "LNPS" and character not in _FILLERS
        piece = escape(character, quote=False) if visible else " "
        if len(shown) + len(piece) >= room:
            return f"{shown}…{end.removeprefix('.')}"
        shown += piece
    return shown + end


def checked(value: Any, depth: int = 0) -> Any:
    """What a listener is given, before gradio looks at it: files are uploads, or refused.
    Addresses of this page's own files, as MCP clients give them, become paths.
    ImageError if a file lies elsewhere, or the value inside too many others: `depth` of them."""
    if depth > 8:
        raise ImageError("input: expected a plain value, got one inside many others")
    if isinstance(value, list):
        return [checked(one, depth + 1) for one in value]
    if not isinstance(value, dict):
        return value
    if "path" not in value and "url" not in value:
        return {name: checked(one, depth + 1) for name, one in value.items()}
    name = value.get("orig_name")
    return {
        "path": str(_uploaded(value.get("path"))),
        "orig_name": name if isinstance(name, str) else None,
        "meta": {"_type": "gradio.FileData"},
    }


class Uploaded(NamedTuple):
    """A file in the upload folder, and what its owner calls it."""

    path: Path
    name: str


def uploaded(payload: Payload | None) -> Uploaded:
    """What a listener without preprocessing gets of a file component.
    ImageError if there is no file, or it is not one that was uploaded."""
    if payload is None:
        raise ImageError(CHOOSE_FIRST)
    path = _uploaded(payload.get("path") if isinstance(payload, Mapping) else payload)
    given = payload.get("orig_name") if isinstance(payload, Mapping) else None
    name = Path(given if isinstance(given, str) else path.name).name
    return Uploaded(path, "".join(c if c.isprintable() else " " for c in name)[-_MAX_NAME:])


def _uploaded(path: object) -> Path:
    """The real path of an upload as somebody tells it, who might ask for any file."""
    if not isinstance(path, str):
        raise ImageError(NOT_UPLOADED)
    if address := _FILE_ADDRESS.fullmatch(path):
        path = unquote(address[1])
    folder = Path(get_upload_folder()).resolve()
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # absent, too long, a ring
        found = Path(path).resolve(strict=True)
        if found.is_file() and found.is_relative_to(folder):
            return found
    raise ImageError(NOT_UPLOADED)


class Working(NamedTuple):
    """A picture at the size at which it is compressed."""

    image: Image.Image
    png_bytes: int  # length of the same picture as an ordinary PNG


@dataclass(frozen=True)
class Chosen:
    """The picture that a visitor works on."""

    source: Path  # the uploaded file
    name: str  # of the file, without its ending
    kind: str  # format of the upload as Pillow calls it
    size_bytes: int  # of the upload
    image: Image.Image  # mode "RGB", no larger than this page works on

    @property
    def large(self) -> bool:
        """True if a smaller working size should be offered, and the format can hold it."""
        least = min(self.image.size) * COMFORTABLE_SIDE_PX / max(self.image.size)
        return max(self.image.size) > COMFORTABLE_SIDE_PX and round(least) >= MIN_SIDE_PX

    @cached_property
    def quick(self) -> Working:
        """The picture at a size that the model paints quickly."""
        side_px = COMFORTABLE_SIDE_PX if self.large else MAX_WORKING_SIDE_PX
        return _working(image_io.fitted(self.image, side_px))

    @cached_property
    def full(self) -> Working:
        """The picture as large as this page takes it."""
        return _working(self.image)

    def at(self, side_px: int) -> Working:
        """The picture with no side over `side_px`."""
        return self.quick if side_px <= COMFORTABLE_SIDE_PX or not self.large else self.full


def _working(image: Image.Image) -> Working:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Working(image, buffer.tell())


def read_picture(payload: Payload | None) -> Chosen:
    """Check and read an uploaded picture; ImageError in words for a visitor."""
    path, name = uploaded(payload)
    return _read(path, path.stat().st_size, path, name)


def read_data(data: bytes, path: Path, name: str) -> Chosen:
    """The same of a picture that is a part of the uploaded file."""
    return _read(data, len(data), path, name)


def _read(source: Path | bytes, size_bytes: int, path: Path, name: str) -> Chosen:
    if size_bytes > MAX_UPLOAD_BYTES:
        raise ImageError(
            f"This file has {size_bytes / 2**20:.1f} MB; the page takes at most "
            f"{MAX_UPLOAD_BYTES // 2**20} MB. Save it smaller, or use the command line."
        )
    kind, width, height = image_io.probe(source, name=name)
    if width * height > MAX_UPLOAD_PIXELS:
        raise ImageError(
            f"This picture has {width * height / 1e6:.1f} megapixels ({width} x {height}); "
            f"the page takes at most {MAX_UPLOAD_PIXELS // 10**6}. Make it smaller and try again."
        )
    largest = int(max(width, height) * (MAX_WORKING_PIXELS / (width * height)) ** 0.5)
    image = image_io.load(source, fit=min(MAX_WORKING_SIDE_PX, largest), name=name)
    return Chosen(path, Path(name).stem, kind, size_bytes, image)


def read_file(payload: Payload | None) -> Stream:
    """Parse an uploaded `.pcv2` file, however long it is.
    BitstreamError if it is none, or holds a picture that this page does not paint."""
    with uploaded(payload).path.open("rb") as file:
        return _paintable(Stream.from_bytes(file.read(MAX_FILE_BYTES + 1)))


def read_link(pasted: object) -> tuple[Stream, RunSettings | None]:
    """Parse a whole link, or only the text after `pcv2=` -> file, and settings if there are any.
    BitstreamError if there is no file in it, or one that this page does not paint; ConfigError if
    the settings are wrong."""
    pasted = words("link", pasted, MAX_BODY_BYTES).strip()
    if "=" not in pasted and "/" not in pasted:
        return _paintable(Stream.from_text(pasted)), None
    query: Mapping[str, list[str]] = {}
    with contextlib.suppress(ValueError):  # such as brackets in the wrong place
        query = parse_qs(urlsplit(pasted).query)
    if PARAMETER not in query:
        raise BitstreamError(f"link: expected one with ?{PARAMETER}=..., got {pasted[:60]!r}")
    return _paintable(Stream.from_text(query[PARAMETER][0])), read_settings(
        query.get(SETTINGS, [""])[0]
    )


def link_to(stream: Stream, address: str, settings: RunSettings | None = None) -> str:
    """An address that opens to the decoded picture. The link is the picture: nothing is stored."""
    link = f"{address}?{PARAMETER}={stream.to_text()}"
    return f"{link}&{SETTINGS}={quote(settings.to_json(), safe=':,')}" if settings else link


def read_settings(given: object) -> RunSettings | None:
    """Settings as one line of JSON; None if there is nothing. ConfigError if they are wrong."""
    said = words("settings", given).strip()
    return RunSettings.from_json(said) if said else None


def _paintable(stream: Stream) -> Stream:
    """Refuse what would keep the device for minutes, before any model has looked at it."""
    if stream.width * stream.height > MAX_WORKING_PIXELS:
        raise BitstreamError(
            f"picture: this page paints at most {MAX_WORKING_PIXELS / 1e6:.1f} megapixels, "
            f"got {stream.width}x{stream.height}: use the command line"
        )
    return stream


def check_work(width_px: int, height_px: int, steps: int) -> None:
    """Refuse to paint for minutes: ConfigError if the steps are too many for the size."""
    most = max(1, MAX_STEP_PIXELS // (width_px * height_px))
    if steps > most:
        raise ConfigError(
            f"steps: this page takes at most {most} for a picture of {width_px}x{height_px}, "
            f"got {steps}: use the command line"
        )


def check_effort(effort: str, image: Image.Image) -> str:
    """Return the effort if it takes no minutes for this picture; ConfigError if it does."""
    width, height = image.size
    if check_choice("effort", effort, EFFORTS) == "best" and width * height > MAX_BEST_PIXELS:
        raise ConfigError(
            f"effort: this page takes best up to {MAX_BEST_PIXELS / 1e6:.1f} megapixels, got "
            f"{width}x{height}: use the command line"
        )
    return effort


@dataclass(frozen=True)
class Painters:
    """Who paints on this page: the model's own painter, and a second one where it can be had."""

    source: str = ""  # of the second, as `PerCoV2.paint` takes it
    problem: str = ""  # why it cannot be had

    @property
    def second(self) -> str:
        """What visitors and programs call it, or "": of a folder, its name."""
        return "" if self.problem else Path(self.source).name

    def checked(self, value: object) -> str:
        """What `PerCoV2.paint` takes for it, and nothing else; ConfigError if it is not offered."""
        known = [OWN_PAINTER, self.second] if self.second else [OWN_PAINTER]
        name = check_choice("painter", words("painter", value), known)
        return OWN_PAINTER if name == OWN_PAINTER else self.source


def words(field: str, value: object, most: int = MAX_BODY_BYTES) -> str:
    """Text of at most `most` characters; ConfigError, as of `whole`, if it is something else."""
    if not isinstance(value, str):
        raise ConfigError(f"{field} must be text, got {value!r}")
    if len(value) > most:
        raise ConfigError(f"{field} must have at most {most} characters, got {len(value)}")
    return value


def whole(field: str, value: Any, low: int, high: int) -> int:
    """A whole number, which JSON may spell as 2.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return check_whole(field, value, low, high)


def count(value: Any) -> int:
    """A number that the page itself counts or offers: 0 or more."""
    return whole("number", value, 0, 2**31)


def told(event: gr.EventData, name: str) -> str:
    """A text that one of the page's own scripts sends along with an event."""
    data = event._data
    return words(name, data.get(name) if isinstance(data, dict) else None)
