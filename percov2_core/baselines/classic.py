"""Classic codecs by name: `avif`, or `avif/4` for a quarter of the width and height.

Pillow writes all but VVC, which goes through the ffmpeg that imageio-ffmpeg brings.
"""

from __future__ import annotations

import io
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib import metadata
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

from percov2_core.baselines import CLASSIC
from percov2_core.baselines.base import MAX_FACTOR, Baseline, resized
from percov2_core.config import check_choice
from percov2_core.errors import BitstreamError, ConfigError, ImageError, UnavailableError

# Sizes that the search for the best tries. Below a sixth or a quarter these two only repeat what
# they need for an empty picture: 300 bytes of boxes in AVIF, 190 of parameter sets in VVC.
FACTORS = (1, 2, 3, 4, 6, 8, 12, 16)
_LARGEST_FACTOR = {"avif": 6, "vvc": 4}

# The lowest rates of each codec and its neighbours: what `evaluate` runs if not told.
LADDERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(CLASSIC, (0, 10)),
    **dict.fromkeys(("jpeg2000", "j2k"), (800, 400, 200)),
    "jpeg": (1, 10),
    "vvc": (63, 60, 56, 52, 48),
}

# Exact chroma interpolation: ffmpeg's default rounds, which costs 0.05 dB at these rates.
_SCALER = ("-sws_flags", "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp")
_FFMPEG_TIMEOUT_S = 120


def _pillow(
    name: str,
    kind: str,  # Pillow's name of the format
    about: str,  # the options, in words
    library: tuple[str, str],  # what does the work, and what Pillow (or its package) is called
    qualities: Sequence[int],
    options: Mapping[str, Any],  # of `Image.save`, at every quality
) -> Baseline:
    """One of Pillow's writers; UnavailableError where this Pillow cannot write the format."""
    scale = "quality_layers" if kind == "JPEG2000" else "quality"

    def describe() -> str:
        version = (metadata if kind == "JXL" else features).version(library[1])
        return f"{about}; {library[0]} {version}, Pillow {PIL.__version__}"

    def encode(image: Image.Image, quality: int) -> bytes:
        buffer = io.BytesIO()
        _register(kind)
        how = {scale: [quality] if kind == "JPEG2000" else quality, **options}
        try:
            image.convert("RGB").save(buffer, kind, **how)
        except (KeyError, OSError) as error:
            raise UnavailableError(f"{name}: Pillow cannot write {kind}") from error
        return buffer.getvalue()

    def decode(data: bytes) -> Image.Image:
        _register(kind)
        try:
            return Image.open(io.BytesIO(data), formats=[kind]).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise BitstreamError(f"{name}: {len(data)} bytes are no {kind}") from error

    return Baseline(name, qualities, describe, encode, decode)


def _register(kind: str) -> None:
    try:
        if kind == "JXL":
            import pillow_jxl  # noqa: F401  importing it registers the format with Pillow
    except ImportError as error:
        raise UnavailableError("jxl is unavailable: pip install pillow-jxl-plugin") from error


@cache
def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UnavailableError("vvc is unavailable: pip install imageio-ffmpeg") from error
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def _run(arguments: Sequence[str], data: bytes) -> bytes:
    command = [_ffmpeg(), "-v", "error", "-threads", "1", *arguments]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=_FFMPEG_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BitstreamError(f"vvc: ffmpeg took more than {_FFMPEG_TIMEOUT_S} s") from error
    if done.returncode:
        raise BitstreamError(f"vvc: ffmpeg says {done.stderr.decode(errors='replace').strip()!r}")
    return done.stdout


def _describe_vvc(preset: str = "slow") -> str:
    banner = subprocess.check_output([_ffmpeg(), "-version"], text=True)
    return f"VVC intra 4:2:0 10 bit, libvvenc preset {preset}, ffmpeg {banner.split()[2]}"


def _encode_vvc(image: Image.Image, quality: int, preset: str = "slow") -> bytes:
    """The raw bit stream and one byte, whose bits 0 and 1 tell that the width and the height were
    odd, which 4:2:0 cannot express. ImageError if the picture is too small for the encoder."""
    pixels = np.asarray(image.convert("RGB"))
    odd_h, odd_w = pixels.shape[0] % 2, pixels.shape[1] % 2
    pixels = np.pad(pixels, ((0, odd_h), (0, odd_w), (0, 0)), mode="edge")
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", "-")
    target = ("-pix_fmt", "yuv420p10le", "-c:v", "libvvenc", "-preset", preset)
    tail = ("-qp", str(quality), "-frames:v", "1", "-f", "vvc", "-")
    try:
        stream = _run((*source, *target, *tail), pixels.tobytes())
    except BitstreamError as error:
        raise ImageError(f"vvc: libvvenc cannot code {size} pixels") from error
    return stream + bytes([odd_w | odd_h << 1])


def _decode_vvc(data: bytes) -> Image.Image:
    if len(data) < 2 or data[-1] > 3:
        raise BitstreamError("vvc: the last byte must be 0 to 3 and follow a bit stream")
    target = ("-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-")
    ppm = _run(("-f", "vvc", "-i", "-", *_SCALER, *target), data[:-1])
    try:
        image = Image.open(io.BytesIO(ppm), formats=["PPM"]).convert("RGB")
    except (OSError, ValueError) as error:
        raise BitstreamError(f"vvc: {len(data)} bytes decode to no picture") from error
    odd_w, odd_h = data[-1] & 1, data[-1] >> 1
    return image.crop((0, 0, image.width - odd_w, image.height - odd_h))


# Compression ratios, from the fewest bytes to the most; Pillow calls them quality layers.
_RATIOS = tuple(round(6400 / 2 ** (i / 8)) for i in range(73))
_WAVELET = {"quality_mode": "rates", "irreversible": True}
_TURBO, _OPENJPEG = ("libjpeg-turbo", "libjpeg_turbo"), ("OpenJPEG", "jpg_2000")
_JXL = ("pillow-jxl-plugin", "pillow-jxl-plugin")
_JP2, _CODESTREAM = ("JPEG 2000 in a JP2 file, 9/7 wavelet", "JPEG 2000 codestream, 9/7 wavelet")
_WEBP, _AVIF = ("libwebp", "webp"), ("libavif", "avif")
# Of AVIF, a fixed number of threads: the encoder decides differently with one and with several.
_SPEED = {"speed": 2, "max_threads": 4}
_HUFFMAN = "JPEG 4:2:0, optimised Huffman tables"
_CODECS = (
    _pillow("jpeg", "JPEG", _HUFFMAN, _TURBO, range(1, 96), {"optimize": True}),
    _pillow("jpeg2000", "JPEG2000", _JP2, _OPENJPEG, _RATIOS, {**_WAVELET, "no_jp2": False}),
    _pillow("j2k", "JPEG2000", _CODESTREAM, _OPENJPEG, _RATIOS, {**_WAVELET, "no_jp2": True}),
    _pillow("webp", "WEBP", "WebP lossy, method 6", _WEBP, range(101), {"method": 6}),
    _pillow("avif", "AVIF", "AVIF 4:2:0, speed 2", _AVIF, range(101), _SPEED),
    _pillow("jxl", "JXL", "JPEG XL lossy, effort 9", _JXL, range(100), {"effort": 9}),
    # The quality is the quantisation parameter.
    Baseline("vvc", tuple(range(63, 19, -1)), _describe_vvc, _encode_vvc, _decode_vvc),
)
# With quality: what the libraries do if not told otherwise, which is what people wait for.
_MEDIUM = partial(_describe_vvc, "medium"), partial(_encode_vvc, preset="medium")
USUAL = (
    (_pillow("avif", "AVIF", "AVIF 4:2:0, speed 6", _AVIF, range(101), {"speed": 6}), 75),
    (Baseline("vvc", tuple(range(63, 19, -1)), *_MEDIUM, _decode_vvc), 32),
    (_pillow("jxl", "JXL", "JPEG XL lossy, effort 7", _JXL, range(100), {"effort": 7}), 90),
    (_pillow("webp", "WEBP", "WebP lossy, method 4", _WEBP, range(101), {"method": 4}), 80),
)


def find_baseline(name: str) -> Baseline:
    """`codec` or `codec/factor` -> the codec; ConfigError if unknown, or the factor not 1 to 16."""
    family, _, factor = name.partition("/")
    check_choice("codec", family, CLASSIC)
    codec = next(codec for codec in _CODECS if codec.name == family)
    if not factor:
        return codec
    if not factor.isdecimal() or not 1 <= int(factor) <= MAX_FACTOR:
        raise ConfigError(f"codec {name!r}: factor must be 1 to {MAX_FACTOR}, got {factor!r}")
    return resized(codec, int(factor)) if int(factor) > 1 else codec


def family_at_all_sizes(family: str) -> list[Baseline]:
    """The codec at full size and at every reduced size of `FACTORS` that can help it."""
    largest = _LARGEST_FACTOR.get(family, FACTORS[-1])
    return [find_baseline(f"{family}/{factor}") for factor in FACTORS if factor <= largest]
