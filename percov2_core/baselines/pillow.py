"""JPEG, JPEG 2000, WebP, AVIF and JPEG XL, all through Pillow."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import PIL
from PIL import Image, features

from percov2_core.errors import BitstreamError, UnavailableError

# Compression ratios, from the fewest bytes to the most; Pillow calls them quality layers.
_RATIOS = tuple(round(6400 / 2 ** (i / 8)) for i in range(73))


@dataclass(frozen=True, slots=True, kw_only=True)
class PillowCodec:
    """One of Pillow's writers.

    Attributes:
        name: What the command line calls it.
        kind: Pillow's name of the format.
        library: Which library does the work, with its version.
        options: Quality -> keyword arguments of `Image.save`.
        qualities: Every quality, from the fewest bytes to the most.
        about: The fixed options, in words.
    """

    name: str
    kind: str
    library: str
    options: Callable[[int], dict[str, Any]]
    qualities: tuple[int, ...]
    about: str

    @property
    def description(self) -> str:
        return f"{self.about}; {self.library}, Pillow {PIL.__version__}"

    def encode(self, image: Image.Image, quality: int) -> bytes:
        """Raises UnavailableError where this Pillow cannot write the format."""
        buffer = io.BytesIO()
        _register(self.kind)
        try:
            image.convert("RGB").save(buffer, self.kind, **self.options(quality))
        except (KeyError, OSError) as error:
            raise UnavailableError(f"{self.name}: Pillow cannot write {self.kind}") from error
        return buffer.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        _register(self.kind)
        try:
            return Image.open(io.BytesIO(data), formats=[self.kind]).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise BitstreamError(f"{self.name}: {len(data)} bytes are no {self.kind}") from error


def _register(kind: str) -> None:
    if kind == "JXL":
        try:
            import pillow_jxl  # noqa: F401  importing it registers the format with Pillow
        except ImportError as error:
            raise UnavailableError("jxl: install pillow-jxl-plugin") from error


def _version(feature: str) -> str:
    return str(features.version(feature) or "not built in")


def _jxl_version() -> str:
    try:
        return importlib.metadata.version("pillow-jxl-plugin")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _jpeg2000(name: str, *, container: bool) -> PillowCodec:
    return PillowCodec(
        name=name,
        kind="JPEG2000",
        library=f"OpenJPEG {_version('jpg_2000')}",
        options=lambda ratio: {
            "quality_mode": "rates",
            "quality_layers": [ratio],
            "irreversible": True,
            "no_jp2": not container,
        },
        qualities=_RATIOS,
        about=f"JPEG 2000 {'in a JP2 file' if container else 'codestream'}, 9/7 wavelet",
    )


def pillow_codecs() -> Mapping[str, PillowCodec]:
    """Every format that Pillow writes, by name. Building the mapping encodes nothing."""
    codecs = (
        PillowCodec(
            name="jpeg",
            kind="JPEG",
            library=f"libjpeg-turbo {_version('libjpeg_turbo')}",
            options=lambda quality: {"quality": quality, "optimize": True},
            qualities=tuple(range(1, 96)),
            about="JPEG 4:2:0, optimised Huffman tables",
        ),
        _jpeg2000("jpeg2000", container=True),
        _jpeg2000("j2k", container=False),
        PillowCodec(
            name="webp",
            kind="WEBP",
            library=f"libwebp {_version('webp')}",
            options=lambda quality: {"quality": quality, "method": 6},
            qualities=tuple(range(101)),
            about="WebP lossy, method 6",
        ),
        PillowCodec(
            name="avif",
            kind="AVIF",
            library=f"libavif {_version('avif')}",
            # A fixed number: the encoder decides differently with one thread and with several.
            options=lambda quality: {"quality": quality, "speed": 2, "max_threads": 4},
            qualities=tuple(range(101)),
            about="AVIF 4:2:0, speed 2",
        ),
        PillowCodec(
            name="jxl",
            kind="JXL",
            library=f"pillow-jxl-plugin {_jxl_version()}",
            options=lambda quality: {"quality": quality, "effort": 9},
            qualities=tuple(range(100)),
            about="JPEG XL lossy, effort 9",
        ),
    )
    return MappingProxyType({codec.name: codec for codec in codecs})
