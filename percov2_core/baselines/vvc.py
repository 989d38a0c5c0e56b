"""VVC intra: one picture as one H.266 frame, through the ffmpeg that imageio-ffmpeg brings."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from percov2_core.errors import BitstreamError, ImageError, UnavailableError

# Exact chroma interpolation: ffmpeg's default rounds, which costs 0.05 dB at these rates.
_SCALER = ("-sws_flags", "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp")
_TIMEOUT_S = 120


@cache
def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UnavailableError("vvc: install imageio-ffmpeg") from error
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def _run(arguments: Sequence[str], data: bytes) -> bytes:
    command = [_ffmpeg(), "-v", "error", "-threads", "1", *arguments]
    done = subprocess.run(command, input=data, capture_output=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        raise BitstreamError(f"vvc: ffmpeg says {done.stderr.decode(errors='replace').strip()!r}")
    return done.stdout


class Vvc:
    """libvvenc, preset slow, 4:2:0 in 10 bits.

    The file is the raw bit stream and one byte: bit 0 and bit 1 tell that the width and the
    height were odd, which 4:2:0 cannot express.
    """

    name = "vvc"
    qualities = tuple(range(63, 19, -1))  # quantisation parameters

    @property
    def description(self) -> str:
        banner = subprocess.run(
            [_ffmpeg(), "-version"], capture_output=True, text=True, check=True
        ).stdout
        found = re.match(r"ffmpeg version (\S+)", banner)
        return f"VVC intra 4:2:0 10 bit, libvvenc preset slow, ffmpeg {found and found[1]}"

    def encode(self, image: Image.Image, quality: int) -> bytes:
        """`quality` is the quantisation parameter, 63 (fewest bytes) to 20.

        Raises:
            ImageError: if the picture is too small for the encoder.
        """
        pixels = np.asarray(image.convert("RGB"))
        odd_h, odd_w = pixels.shape[0] % 2, pixels.shape[1] % 2
        pixels = np.pad(pixels, ((0, odd_h), (0, odd_w), (0, 0)), mode="edge")
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", "-")
        target = ("-pix_fmt", "yuv420p10le", "-c:v", "libvvenc", "-preset", "slow")
        tail = ("-qp", str(quality), "-frames:v", "1", "-f", "vvc", "-")
        try:
            stream = _run((*source, *target, *tail), pixels.tobytes())
        except BitstreamError as error:
            raise ImageError(f"vvc: libvvenc cannot code {size} pixels") from error
        return stream + bytes([odd_w | odd_h << 1])

    def decode(self, data: bytes) -> Image.Image:
        """Raises BitstreamError if `data` is not what `encode` wrote."""
        if len(data) < 2 or data[-1] > 3:
            raise BitstreamError("vvc: the last byte must be 0 to 3 and follow a bit stream")
        target = ("-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-")
        ppm = _run(("-f", "vvc", "-i", "-", *_SCALER, *target), data[:-1])
        header = re.match(rb"P6\s(\d+)\s(\d+)\s255\s", ppm)
        if header is None:
            raise BitstreamError(f"vvc: {len(data)} bytes decode to no picture")
        image = Image.frombytes("RGB", (int(header[1]), int(header[2])), ppm[header.end() :])
        odd_w, odd_h = data[-1] & 1, data[-1] >> 1
        return image.crop((0, 0, image.width - odd_w, image.height - odd_h))
