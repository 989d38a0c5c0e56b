"""What every baseline looks like, any of them at a reduced size, and the best one in N bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from percov2_core.errors import BitstreamError, ImageError

MAX_FACTOR = 16


@dataclass(frozen=True, slots=True)
class Baseline:
    """A codec at its own quality scale. Rate is the length of what `encode` returns."""

    name: str  # what the command line calls it
    qualities: Sequence[int]  # from the fewest bytes to the most
    describe: Callable[[], str]  # the codec, its options and the version of the library behind it
    encode: Callable[[Image.Image, int], bytes]
    decode: Callable[[bytes], Image.Image]  # RGB, with exactly the size of what was encoded


def resized(codec: Baseline, factor: int) -> Baseline:
    """`codec` at 1 / `factor` of the size: Lanczos down, bicubic back. The file is the inner file
    and one byte: how many columns (low four bits) and rows the enlarged picture is too large."""
    name = f"{codec.name}/{factor}"

    def encode(image: Image.Image, quality: int) -> bytes:
        w, h = -(-image.width // factor), -(-image.height // factor)
        extra_w, extra_h = w * factor - image.width, h * factor - image.height
        small = image.convert("RGB").resize((w, h), Image.Resampling.LANCZOS)
        return codec.encode(small, quality) + bytes([extra_w | extra_h << 4])

    def decode(data: bytes) -> Image.Image:
        if not data or max(data[-1] & 15, data[-1] >> 4) >= factor:
            wanted, got = f"two numbers below {factor}", data[-1:].hex() or "an empty file"
            raise BitstreamError(f"{name}: the last byte must hold {wanted}, got {got}")
        small = codec.decode(data[:-1])
        extra_w, extra_h = data[-1] & 15, data[-1] >> 4
        size = (small.width * factor - extra_w, small.height * factor - extra_h)
        # The box leaves out what the encoder added, so that nothing shifts.
        box = (0.0, 0.0, size[0] / factor, size[1] / factor)
        return small.resize(size, Image.Resampling.BICUBIC, box=box)

    def describe() -> str:
        return f"{codec.describe()}; at 1/{factor} size, Lanczos down, bicubic up"

    return Baseline(name, codec.qualities, describe, encode, decode)


def remembered(codec: Baseline, image: Image.Image) -> Baseline:
    """`codec` keeping the files of this one picture, so that several budgets share the work."""
    encode = cache(partial(codec.encode, image))
    return replace(codec, encode=lambda _, quality: encode(quality))


class Fit(NamedTuple):
    """A codec's answer to a budget."""

    codec: Baseline
    quality: int
    data: bytes


def largest_within(codec: Baseline, image: Image.Image, *, size_bytes: int) -> Fit | None:
    """The highest quality whose file has at most `size_bytes`; None if there is none, or if the
    codec cannot code a picture of this size. Takes sizes to rise with quality; where a codec breaks
    that by a few bytes the answer is still within the budget, perhaps one quality short."""
    best, low, step = None, 0, 1
    high = len(codec.qualities)
    while low < high:
        # Doubling steps first: budgets are small, and high qualities are slow to encode.
        middle = (low + high) // 2
        if high == len(codec.qualities):
            middle = min(middle, low + step - 1)
        try:
            data = codec.encode(image, codec.qualities[middle])
        except ImageError:
            return None
        if len(data) <= size_bytes:
            best, low, step = Fit(codec, codec.qualities[middle], data), middle + 1, 2 * step
        else:
            high = middle
    return best


def best_within(codecs: Iterable[Baseline], image: Image.Image, *, size_bytes: int) -> Fit | None:
    """The fit with the least squared error over several codecs or sizes."""
    fits = (largest_within(codec, image, size_bytes=size_bytes) for codec in codecs)
    pixels = np.asarray(image.convert("RGB"), np.float64)

    def error(fit: Fit) -> float:
        return float(np.square(pixels - np.asarray(fit.codec.decode(fit.data))).mean())

    return min((fit for fit in fits if fit is not None), key=error, default=None)
