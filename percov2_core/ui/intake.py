"""What a visitor uploaded -> a picture that the codec takes, or a sentence that says why not."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from gradio.utils import get_upload_folder
from PIL import Image

from percov2_core import image_io
from percov2_core.bitstream import MAX_FILE_BYTES, Stream
from percov2_core.config import MIN_SIDE_PX
from percov2_core.errors import ImageError
from percov2_core.ui import text
from percov2_core.ui.limits import (
    COMFORTABLE_SIDE_PX,
    MAX_UPLOAD_BYTES,
    MAX_UPLOAD_PIXELS,
    MAX_WORKING_SIDE_PX,
)


class Working(NamedTuple):
    """A picture at the size at which it is compressed."""

    image: Image.Image
    png_bytes: int  # length of the same picture as an ordinary PNG


@dataclass(frozen=True)
class Chosen:
    """The picture that a visitor works on.

    Attributes:
        source: The uploaded file.
        name: File name without its ending.
        kind: Format of the upload as Pillow calls it.
        size_bytes: Length of the upload.
        image: Mode "RGB", no side over 2048 px.
    """

    source: Path
    name: str
    kind: str
    size_bytes: int
    image: Image.Image

    @property
    def large(self) -> bool:
        """True if a smaller working size should be offered."""
        return max(self.image.size) > COMFORTABLE_SIDE_PX

    @cached_property
    def quick(self) -> Working:
        """The picture at a size that the model paints quickly."""
        return _working(fitted(self.image, COMFORTABLE_SIDE_PX))

    @cached_property
    def full(self) -> Working:
        """The picture as large as this page takes it."""
        return _working(self.image)

    def at(self, side_px: int) -> Working:
        """The picture with no side over `side_px`."""
        return self.quick if side_px <= COMFORTABLE_SIDE_PX or not self.large else self.full


Payload = Mapping[str, Any]  # gradio's own file data, for listeners without preprocessing:
# its File leaves an empty temporary file behind, its Image fails on damaged pictures without words


class Uploaded(NamedTuple):
    """A file in gradio's cache, and what its owner calls it."""

    path: Path
    name: str


def file_of(payload: Payload | None) -> Uploaded:
    """What a listener without preprocessing gets of a file component.

    Raises:
        ImageError: if there is no file.
    """
    if payload is None:
        raise ImageError(text.CHOOSE_FIRST)
    path = Path(payload["path"])
    return Uploaded(path, payload.get("orig_name") or path.name)


def uploaded(path: str) -> Path:
    """The path of an upload as the browser tells it, who might ask for any file.

    Raises:
        ImageError: if it is empty, as after an upload that failed, or not that of an upload.
    """
    found = Path(path).resolve()
    if not path or not found.is_relative_to(Path(get_upload_folder()).resolve()):
        raise ImageError(text.PASTE_FAILED)
    return found


def read_stream(path: Path) -> Stream:
    """Parse an uploaded `.pcv2` file, however long it is.

    Raises:
        BitstreamError: if it is none.
    """
    with path.open("rb") as file:
        return Stream.from_bytes(file.read(MAX_FILE_BYTES + 1))


def read_upload(path: Path, name: str) -> Chosen:
    """Check and read an uploaded file.

    Raises:
        ImageError: in words for a visitor.
    """
    size_bytes = path.stat().st_size
    if size_bytes > MAX_UPLOAD_BYTES:
        raise ImageError(text.too_many_bytes(size_bytes))
    kind, size = _look(path, name)
    if size[0] * size[1] > MAX_UPLOAD_PIXELS:
        raise ImageError(text.too_many_pixels(*size))
    if min(size) < MIN_SIDE_PX:
        raise ImageError(text.too_small(*size, MIN_SIDE_PX))
    return Chosen(path, Path(name).stem, kind, size_bytes, _load(path, name))


def fitted(image: Image.Image, side_px: int) -> Image.Image:
    """`image` with its long side reduced to `side_px` if it is longer."""
    if max(image.size) <= side_px:
        return image
    scale = side_px / max(image.size)
    width, height = (max(MIN_SIDE_PX, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _working(image: Image.Image) -> Working:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Working(image, buffer.tell())


def _look(path: Path, name: str) -> tuple[str, tuple[int, int]]:
    """Format and size from the file's header; no pixel is decoded."""
    try:
        with Image.open(path, formats=image_io.FORMATS) as image:
            return image.format or "file", image.size
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data
        raise ImageError(text.not_a_picture(name)) from error


def _load(path: Path, name: str) -> Image.Image:
    """Decode; sides over the format's limit are reduced before anything else sees them."""
    try:
        image: Image.Image = Image.open(path, formats=image_io.FORMATS)
        image.load()
        if max(image.size) > MAX_WORKING_SIDE_PX:
            profile, exif = image.info.get("icc_profile"), image.getexif()
            image = fitted(_plain(image), MAX_WORKING_SIDE_PX)
            image.info["icc_profile"], image.info["exif"] = profile, exif.tobytes()
        return image_io.normalise(image)
    except Exception as error:
        raise ImageError(text.not_a_picture(name)) from error


def _plain(image: Image.Image) -> Image.Image:
    """A mode that resizes well: palettes and bilevel pictures do not."""
    if image.mode in ("P", "1"):
        return image.convert("RGBA")
    return image
