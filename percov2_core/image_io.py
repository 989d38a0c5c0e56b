"""PIL <-> tensors, and the only place that knows how pictures are stored.

B batch (here 1), H x W pixels, H' x W' pixels after padding.

Every picture becomes 8-bit sRGB, upright, on white. Nothing is resized: pictures are padded at
the right and the bottom, and cropped back.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from percov2_core.config import MAX_SIDE_PX, MIN_SIDE_PX
from percov2_core.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 256 * 2**20  # 4096 x 4096 at 16 bits and four channels are 128 MiB

MAX_SOURCE_PIXELS = 64 * 10**6  # of a picture that is reduced while it is read

Source: TypeAlias = str | Path | bytes | BinaryIO

# Pillow can also run Ghostscript (EPS) and fetch what a file points at: not for strangers' files.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

_SIXTEEN_BIT_MAX = 65535
_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class Probe(NamedTuple):
    """What the header of a picture says.

    Attributes:
        kind: Name of the format: PNG, JPEG and so on.
        width_px: Upright, as `load` would give it without `fit`.
        height_px: Likewise.
    """

    kind: str
    width_px: int
    height_px: int


def load(source: Source, *, fit: int | None = None, name: str = "") -> Image.Image:
    """Read a picture from a path, its bytes or an open file; the first frame if it moves.

    Args:
        source: Where it is.
        fit: Longest side to reduce it to, if it is longer.
        name: What its owner calls it, for messages; that of the path if there is one.

    Returns:
        8-bit sRGB, mode "RGB", as `normalise` makes it.

    Raises:
        ImageError: if it is no picture, is damaged, or has a side outside [64, 4096].
        OSError: if the file cannot be opened.
    """
    image = _open(source, _called(source, name))
    if fit is None:
        return normalise(image)
    if image.width * image.height > MAX_SOURCE_PIXELS:
        raise ImageError(
            f"{image.width} x {image.height} pixels are too many to read: "
            f"reduce the picture to at most {MAX_SOURCE_PIXELS / 1e6:.0f} megapixels first"
        )
    check_shape(image.width, image.height, fit)
    return fitted(_normalised(image), fit)


def probe(source: Source, *, name: str = "") -> Probe:
    """What `source` is, and its size, from its header: no pixel is decoded.

    Raises:
        ImageError: if it is no picture.
        OSError: if the file cannot be opened.
    """
    image = _open(source, _called(source, name))
    return Probe(image.format or "file", *image.size)


def fitted(image: Image.Image, side_px: int) -> Image.Image:
    """`image` with its long side reduced to `side_px` if it is longer; the shape stays.

    Raises:
        ImageError: if its short side would have less than 64 pixels.
    """
    size = check_shape(image.width, image.height, side_px)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def check_shape(width_px: int, height_px: int, side_px: int) -> tuple[int, int]:
    """The size that `fitted` gives.

    Raises:
        ImageError: if a side of it has less than 64 pixels.
    """
    scale = min(1.0, side_px / max(width_px, height_px))
    width, height = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    if min(width, height) >= MIN_SIDE_PX:
        return width, height
    if scale == 1:
        raise ImageError(_small(width, height))
    raise ImageError(
        f"{width_px} x {height_px} pixels become {width} x {height} when the longest side is "
        f"reduced to {side_px}, and each side needs at least {MIN_SIDE_PX}: cut the picture first"
    )


def normalise(image: Image.Image) -> Image.Image:
    """Any picture -> mode "RGB", 8-bit sRGB, upright, transparent parts on white.

    Raises:
        ImageError: if the pixels are damaged or of an unknown kind, or a side is outside
            [64, 4096], or if it is no picture.
    """
    if not isinstance(image, Image.Image):
        raise ImageError(f"picture must be a PIL image, got {type(image).__name__}")
    check_size(image.width, image.height)
    return _normalised(image)


def _normalised(image: Image.Image) -> Image.Image:
    """`normalise` for any size."""
    try:
        image.load()
    except Exception as error:
        # Pillow's readers raise nearly anything on damaged data: OSError, SyntaxError,
        # ValueError, struct.error, zlib.error, EOFError, MemoryError and more.
        raise ImageError(
            f"the {image.format or ''} picture is damaged, cut short or of a rare kind: "
            "save it again as PNG or JPEG"
        ) from error
    image = _upright(image)
    colour, alpha = _split(image)
    rgb = _to_srgb(_to_8bit(colour), image.info.get("icc_profile"))
    if alpha is None:
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    return Image.composite(rgb, white, alpha)


def check_size(width_px: int, height_px: int) -> None:
    """Refuse a picture that the format cannot hold.

    Raises:
        ImageError: if a side is outside [64, 4096].
    """
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise ImageError(_small(width_px, height_px))
    if max(width_px, height_px) > MAX_SIDE_PX:
        check_shape(width_px, height_px, MAX_SIDE_PX)
        raise ImageError(
            f"{width_px} x {height_px} pixels: each side must be {MIN_SIDE_PX} to {MAX_SIDE_PX}; "
            f"reduce the picture, with --fit {MAX_SIDE_PX} or load(fit={MAX_SIDE_PX})"
        )


def _small(width_px: int, height_px: int) -> str:
    return (
        f"{width_px} x {height_px} pixels: each side must be {MIN_SIDE_PX} to {MAX_SIDE_PX}; "
        "choose a larger picture"
    )


def to_tensor(image: Image.Image, multiple: int) -> Tensor:
    """Mode "RGB", H x W -> (1, 3, H', W') float32 in [-1, 1].

    H' and W' are the next multiples; the last row and column are repeated to fill them.
    """
    import torch  # takes seconds to load: a wrong picture is reported before
    import torch.nn.functional as F

    pixels = torch.from_numpy(np.array(image, dtype=np.float32))  # (H, W, 3)
    tensor = pixels.movedim(-1, 0)[None] / 127.5 - 1  # (1, 3, H, W)
    right, bottom = -image.width % multiple, -image.height % multiple
    return F.pad(tensor, (0, right, 0, bottom), mode="replicate").contiguous()


def to_image(tensor: Tensor, *, size: tuple[int, int]) -> Image.Image:
    """(1, 3, H', W') float on any device -> mode "RGB" of `size` = (W, H), cropped and clamped."""
    import torch  # see above

    width, height = size
    pixels = tensor.detach()[0, :, :height, :width].float().cpu()
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.movedim(0, -1).contiguous().numpy())


def _called(source: Source, name: str) -> str:
    """A short printable name for messages."""
    if not name and isinstance(source, (str, Path)):
        name = str(source)
    name = "".join(c if c.isprintable() else "?" for c in Path(name).name)
    return name if len(name) <= 60 else f"{name[:40]}...{name[-12:]}"


def _open(source: Source, name: str) -> Image.Image:
    """Header of the picture; no pixel is decoded."""
    data = _read(source)
    if len(data) > MAX_PICTURE_BYTES:
        raise ImageError(f"picture: expected at most {MAX_PICTURE_BYTES} bytes, got more")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name or 'this file'} is not a picture that can be read here: "
            f"save it as one of {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # see `normalise`
        raise ImageError(
            f"{name or 'the picture'} is damaged, cut short or of a rare kind: "
            "save it again as PNG or JPEG"
        ) from error


def _read(source: Source) -> bytes:
    """At most one byte more than is allowed, so that an endless file ends."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as file:
            return file.read(MAX_PICTURE_BYTES + 1)
    return source.read(MAX_PICTURE_BYTES + 1)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # damaged EXIF data: every viewer shows such a picture as it lies
        logger.warning("EXIF orientation ignored: %s", error)
        return image


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour without alpha, and alpha as mode "L" or None."""
    if image.mode.startswith(("I", "F")) or not image.has_transparency_data:
        return (image.convert("RGB") if image.mode == "P" else image), None
    if image.mode in ("LA", "La"):
        image = image.convert("LA")
        return image.getchannel("L"), image.getchannel("A")
    image = image.convert("RGBA")
    return image.convert("RGB"), image.getchannel("A")


def _to_8bit(image: Image.Image) -> Image.Image:
    """Wide greyscale is scaled, where Pillow's own conversion would clip it."""
    if image.mode == "F":
        return _from_levels(np.asarray(image), highest=1.0)
    if image.mode.startswith("I"):
        return _from_levels(np.asarray(image), highest=_SIXTEEN_BIT_MAX)
    return image.convert("L") if image.mode == "1" else image


def _from_levels(levels: NDArray[np.generic], *, highest: float) -> Image.Image:
    """(H, W) in [0, highest] -> mode "L"."""
    values = levels.astype(np.float64)
    # Written so that not-a-number fails as well.
    if not (values.min() >= 0 and values.max() <= highest):
        raise ImageError(
            f"picture: greyscale levels must be 0 to {highest:g}, "
            f"got {values.min():g} to {values.max():g}"
        )
    return Image.fromarray(np.rint(values * (255 / highest)).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Apply the colour profile if there is one that fits; otherwise trust the numbers."""
    if profile:
        try:
            return _apply_profile(image, profile)
        except (ImageCms.PyCMSError, OSError, ValueError, KeyError) as error:
            logger.warning("colour profile ignored: %s", error)
    return image.convert("RGB")


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = _PROFILE_MODES[source.profile.xcolor_space]
    if image.mode == "L" and mode == "RGB":
        image = image.convert("RGB")
    if image.mode != mode:
        raise ValueError(f"made for {mode}, the picture is {image.mode}")
    target = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert converted is not None  # None only for conversions in place
    return converted
