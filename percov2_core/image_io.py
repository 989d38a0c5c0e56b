"""The one intake: any picture -> 8-bit sRGB, upright, on white; and PIL <-> tensors.
H x W pixels, H' x W' pixels after padding; batches are of one.

Pillow decodes, behind `picture_file`, which hides from it what it stumbles over and knows what it
does not tell: pyvips, OpenImageIO and imagecodecs bring 20 to 80 MB and gaps of their own. HEIC
needs pi-heif (LGPL; its sibling pillow-heif carries x265 under the GPL), JPEG XL pillow-jxl-plugin.
"""

from __future__ import annotations

import importlib
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin

from percov2_core import picture_file
from percov2_core.config import MAX_SIDE_PX, MIN_SIDE_PX
from percov2_core.errors import ImageError
from percov2_core.picture_file import Stored

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 256 * 2**20  # 4096 x 4096 at 16 bits and four channels are 128 MiB
MAX_SOURCE_PIXELS = 64 * 10**6  # of a picture that is reduced while it is read

Source: TypeAlias = str | Path | bytes | BinaryIO

# What Pillow calls a format, and the package that has to be there.
_OPTIONAL = {"HEIC": ("HEIF", "pi_heif.HeifImagePlugin"), "JPEG XL": ("JXL", "pillow_jxl")}
_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_TURN = Image.Transpose
_TURNS = (
    *(None, None, _TURN.FLIP_LEFT_RIGHT, _TURN.ROTATE_180, _TURN.FLIP_TOP_BOTTOM),
    *(_TURN.TRANSPOSE, _TURN.ROTATE_270, _TURN.TRANSVERSE, _TURN.ROTATE_90),
)  # by the orientation
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_SIDES = f"each side must have {MIN_SIDE_PX} to {MAX_SIDE_PX}"
_STRIP_ROWS = 64  # converted at a time, so that memory stays small


class Probe(NamedTuple):
    """What the header of a picture says: name of the format, and its size when upright."""

    kind: str
    width_px: int
    height_px: int


def load(source: Source, *, fit: int | None = None, name: str = "") -> Image.Image:
    """Read a picture, or the first frame of one that moves -> mode "RGB", as `normalise` makes it.
    `fit` is the longest side to reduce it to, `name` what its owner calls it. ImageError if it is
    none, is damaged, or a side is outside [64, 4096] after fitting; OSError if it does not open."""
    with _about(_called(source, name)):
        stored, image = _open(source)
        size = _checked(stored.size or image.size, fit)
        return _finished(_decoded(stored, image, size), stored, size)


def probe(source: Source, *, name: str = "") -> Probe:
    """What `source` is, from its header: no pixel is decoded.
    ImageError if it is no picture; OSError if the file cannot be opened."""
    with _about(_called(source, name)):
        stored, image = _open(source)
        width, height = stored.size or image.size
        return Probe(stored.kind, *((height, width) if stored.orientation > 4 else (width, height)))


def normalise(image: Image.Image) -> Image.Image:
    """Any picture -> mode "RGB", 8-bit sRGB, upright, transparent parts on white.
    ImageError if it is none, is damaged or of an unknown kind, or a side is outside [64, 4096]."""
    if not isinstance(image, Image.Image):
        raise ImageError(f"picture must be a PIL image, got {type(image).__name__}")
    with _about("the picture"):
        size = _checked(image.size, None)
        if type(image) is Image.Image and image.mode == "RGB" and not image.info:
            return image  # as this module made it: nothing is done twice
        turned = picture_file.exif_orientation(image.info.get("exif"))
        stored = Stored(image.format or "picture", orientation=turned)
        return _finished(_decoded(stored, image, size), stored, size)


def fitted(image: Image.Image, side_px: int) -> Image.Image:
    """`image` with its long side reduced to `side_px` if it is longer; the shape stays.
    ImageError if its short side would have less than 64 pixels."""
    with _about("the picture"):
        return image.resize(_reduced(image.size, side_px), Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image, multiple: int) -> Tensor:
    """Mode "RGB", H x W -> (1, 3, H', W') float32 in [-1, 1].
    H' and W' are the next multiples; the last row and column are repeated to fill them."""
    import torch  # takes seconds to load: a wrong picture is reported before
    import torch.nn.functional as F

    pixels = torch.from_numpy(np.array(image)).movedim(-1, 0)[None].contiguous()  # (1, 3, H, W)
    tensor = pixels.float().div_(127.5).sub_(1)  # a large picture has no room for copies
    right, bottom = -image.width % multiple, -image.height % multiple
    return F.pad(tensor, (0, right, 0, bottom), mode="replicate") if right or bottom else tensor


def to_image(tensor: Tensor, *, size: tuple[int, int]) -> Image.Image:
    """(1, 3, H', W') float on any device -> mode "RGB" of `size` = (W, H), cropped and clamped."""
    import torch  # see above

    pixels = tensor.detach()[0, :, : size[1], : size[0]].float().cpu()
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.movedim(0, -1).contiguous().numpy())


@contextmanager
def _about(name: str) -> Iterator[None]:
    """What is wrong gets the name of what it is wrong with."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name} {error}") from error


def _called(source: Source, name: str) -> str:
    """A short printable name for messages."""
    if not name and isinstance(source, (str, Path)):
        name = str(source)
    name = "".join(c if c.isprintable() else "?" for c in Path(name).name)
    return (name if len(name) <= 60 else f"{name[:40]}...{name[-12:]}") or "this file"


def _checked(size: tuple[int, int], fit: int | None) -> tuple[int, int]:
    """The size that comes out; refuses what is too large to read or to code."""
    width, height = size
    small = _reduced(size, fit or MAX_SIDE_PX)
    if width * height > MAX_SOURCE_PIXELS:
        raise ImageError(
            f"has {width} x {height} pixels, more than can be read here: "
            f"reduce it to {MAX_SOURCE_PIXELS // 10**6} megapixels or fewer"
        )
    if fit is None and small != size:
        raise ImageError(
            f"has {width} x {height} pixels, and {_SIDES}: "
            f"reduce it, with --fit {MAX_SIDE_PX} or load(fit={MAX_SIDE_PX})"
        )
    return small


def _reduced(size: tuple[int, int], side_px: int) -> tuple[int, int]:
    """`size` in the same shape with no side over `side_px`; refuses what is too narrow."""
    scale = min(1.0, side_px / max(*size, 1))
    width, height = (max(1, round(side * scale)) for side in size)
    if min(*size, width, height) >= MIN_SIDE_PX:
        return width, height
    wrong = f"and {_SIDES}: choose a larger one"
    if scale < 1:
        wrong = f"which become {width} x {height} when reduced, and each side must have at least "
        wrong += f"{MIN_SIDE_PX}: cut it to a less extreme shape"
    raise ImageError(f"has {size[0]} x {size[1]} pixels, {wrong}")


def _open(source: Source) -> tuple[Stored, Image.Image]:
    """The file and its header; no pixel is decoded."""
    stored = picture_file.take_apart(_read(source))
    if stored.size:
        _checked(stored.size, MAX_SIDE_PX)
    image = _header(stored)
    # The JPEG inside a JPEG XL is not turned by its decoder.
    if stored.orientation == 0 or getattr(image, "jpeg", False):
        stored = replace(stored, orientation=picture_file.exif_orientation(image.info.get("exif")))
    return stored, image


def _read(source: Source) -> bytes:
    """At most one byte more than is allowed, so that an endless file ends."""
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as file:
            return _read(file)
    data = source if isinstance(source, bytes) else source.read(MAX_PICTURE_BYTES + 1)
    if len(data) > MAX_PICTURE_BYTES:
        raise ImageError(f"has more than {MAX_PICTURE_BYTES} bytes: save it smaller")
    return data


def _header(stored: Stored, ending: bytes = b"") -> Image.Image:
    Image.init()
    known, package = _OPTIONAL.get(stored.kind, (stored.kind.upper().replace(" ", ""), ""))
    try:
        if package:
            importlib.import_module(package)
    except ImportError as error:
        raise ImageError(
            f"is a {stored.kind} picture, and the package that reads those is not installed: "
            "run pip install percov2-core[photos], or save it as PNG or JPEG"
        ) from error
    with picture_file.translated(stored.kind):
        # Not `Image.open`, which warns of a large picture before it tells the size.
        return Image.OPEN[known][0](io.BytesIO(stored.data + ending), "")


def _decoded(stored: Stored, image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """8-bit pixels, turned and profiled as they are in the file; `size` will be made of them."""
    with picture_file.translated(stored.kind):
        if not stored.ended:
            # Whole if what might follow makes no difference to the pixels.
            image, other = (_header(stored, b * 64 + b"\xff\xd9") for b in (b"\x55", b"\xa6"))
            if image.tobytes() != other.tobytes():
                raise ValueError("the pixels are not all there")
        elif stored.kind == "JPEG" and isinstance(image, JpegImagePlugin.JpegImageFile):
            # Decodes a half, a quarter or an eighth of the size where that is enough.
            image.draft(None, (min(2 * size[0], image.width), min(2 * size[1], image.height)))
        image.load()
        info, levels = image.info, None
        if image.mode.startswith("I;16"):
            levels = np.asarray(image)[..., None]
        elif stored.pairs:
            levels = np.asarray(image).view(">u2")
        elif stored.bits == 16 and isinstance(low := _header(stored), PngImagePlugin.PngImageFile):
            # Pillow keeps the upper half of each level, and so the lower one in the other order.
            low.tile = [tile._replace(args=f"{image.mode};16L") for tile in low.tile]
            levels = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)
        elif stored.key or stored.colour:
            levels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
        if levels is not None:
            image = _from_levels(levels, stored)
            image.info["icc_profile"] = info.get("icc_profile")
        if stored.place:
            assert stored.size is not None
            whole = Image.new("RGBA", stored.size)
            whole.paste(image.convert("RGBA"), stored.place)
            return whole
    return image


def _from_levels(levels: NDArray[np.generic], stored: Stored) -> Image.Image:
    """(H, W, C) of 8 or 16 bits -> 8 bits, mode by C; in sRGB if the file says its colours."""
    top = 255 if levels.dtype == np.uint8 else 65535
    depth = 2**stored.bits - 1  # of the file
    light = _to_srgb_of(stored.colour, top) if stored.colour else None
    strips = []
    for row in range(0, len(levels), _STRIP_ROWS):
        strip = levels[row : row + _STRIP_ROWS].astype(np.uint32)
        colour = strip[..., : strip.shape[2] - 1 + strip.shape[2] % 2]
        alpha = strip[..., colour.shape[2] :]
        if stored.key:
            key = [(level & depth) * top // depth for level in stored.key]
            alpha = np.where((colour == key).all(-1, keepdims=True), 0, top)
        if stored.bits == 12:
            colour = np.minimum(colour * 65535 // 4095, 65535)
        if stored.negative:
            colour = top - colour
        rgb = light(colour) if light else (colour * 255 + top // 2) // top
        parts = [rgb, (alpha * 255 + top // 2) // top]
        strips.append(np.concatenate(parts, axis=2, dtype=np.uint8, casting="unsafe"))
    pixels = np.concatenate(strips)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _to_srgb_of(colour: picture_file.Colour, top: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Levels from 0 to `top` -> sRGB from 0 to 255, through light."""
    light = _light(np.arange(top + 1) / top, colour.transfer).astype(np.float32)
    matrix = np.linalg.inv(_to_xyz(picture_file.SRGB_PRIMARIES)) @ _to_xyz(colour.primaries)
    edges = _light((np.arange(255) + 0.5) / 255, "srgb")  # between one level and the next
    srgb = np.searchsorted(edges, np.arange(65536) / 65535)

    def convert(levels: NDArray[Any]) -> NDArray[Any]:
        seen = light[levels]
        if levels.shape[2] == 3:
            seen = seen @ matrix.T.astype(np.float32)
        return np.asarray(srgb[np.rint(seen.clip(0, 1) * 65535).astype(np.intp)])

    return convert


def _light(levels: NDArray[Any], transfer: float | str) -> NDArray[Any]:
    """Levels in [0, 1] -> light in [0, 1]."""
    if transfer == "srgb":
        return np.where(levels < 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return levels ** float(transfer)


def _to_xyz(primaries: tuple[float, ...]) -> NDArray[Any]:
    """Light in these primaries -> XYZ as seen under the white of D65."""
    x, y = np.array(primaries[::2]), np.array(primaries[1::2])
    places = np.array([x, y, 1 - x - y]) / y  # columns: white, red, green, blue
    white, corners = places[:, 0], places[:, 1:]
    seen = _BRADFORD @ [0.3127 / 0.329, 1, 0.3583 / 0.329] / (_BRADFORD @ white)
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(seen) @ _BRADFORD
    return np.asarray(adapted @ corners * np.linalg.solve(corners, white))


def _finished(image: Image.Image, stored: Stored, size: tuple[int, int]) -> Image.Image:
    """8-bit sRGB, upright, of `size` (as it lies in the file), on white."""
    with picture_file.translated(stored.kind):
        image = _plain(image).resize(size, Image.Resampling.LANCZOS)
        if (turn := _TURNS[stored.orientation]) is not None:
            image = image.transpose(turn)
        profile = None if stored.colour else stored.profile or image.info.get("icc_profile")
        clear = image.mode in ("LA", "RGBA")
        colour = _to_srgb(image.convert(image.mode[:-1]) if clear else image, profile)
        if clear:
            white = Image.new("RGB", colour.size, "white")
            colour = Image.composite(colour, white, image.getchannel("A"))
        colour.info = {}  # it says nothing any more that is still to be done
        return colour


def _plain(image: Image.Image) -> Image.Image:
    """8 bits, without palettes, with transparency as a channel of its own."""
    if image.mode.startswith(("F", "I")):
        return _scaled(image, highest=1.0 if image.mode == "F" else 65535)
    mode = {"1": "L", "P": "RGB", "La": "LA"}.get(image.mode, image.mode)
    if image.has_transparency_data and mode not in ("LA", "RGBA"):
        mode = "LA" if image.mode == "L" else "RGBA"
    return image if mode == image.mode else image.convert(mode)


def _scaled(image: Image.Image, *, highest: float) -> Image.Image:
    """Wide greyscale -> mode "L", where Pillow's own conversion would clip it."""
    values = np.asarray(image).astype(np.float64)
    if not (values.min() >= 0 and values.max() <= highest):  # not-a-number fails as well
        raise ImageError(
            f"has greyscale levels from {values.min():g} to {values.max():g}, and they must be "
            f"0 to {highest:g}: save it with 8 or 16 bits"
        )
    return Image.fromarray(np.rint(values * (255 / highest)).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Apply the colour profile if there is one that fits; otherwise trust the numbers."""
    if profile:
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            mode = _PROFILE_MODES.get(source.profile.xcolor_space)
            fitting = image.convert("RGB") if (image.mode, mode) == ("L", "RGB") else image
            if fitting.mode == mode:
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(fitting, source, target, outputMode="RGB")
                assert converted is not None  # None only for conversions in place
                return converted
        logger.warning("colour profile ignored: it is damaged or for another kind of picture")
    return image.convert("RGB")
