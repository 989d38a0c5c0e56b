"""What every baseline looks like, and the search for the best one in N bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from PIL import Image

from percov2_core.errors import ImageError


class Baseline(Protocol):
    """A codec at its own quality scale. Rate is the length of what `encode` returns."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str:
        """The codec, its options and the version of the library behind it."""
        ...

    @property
    def qualities(self) -> tuple[int, ...]:
        """Every quality, from the fewest bytes to the most."""
        ...

    def encode(self, image: Image.Image, quality: int) -> bytes: ...

    def decode(self, data: bytes) -> Image.Image:
        """RGB, with exactly the size of the picture that was encoded."""
        ...


class Fit(NamedTuple):
    """A codec's answer to a budget."""

    codec: Baseline
    quality: int
    data: bytes


class Remembered:
    """A codec that keeps what it encoded, so that several budgets share the work."""

    def __init__(self, codec: Baseline) -> None:
        self._codec = codec
        self._files: dict[tuple[int, int], bytes] = {}
        self._images: list[Image.Image] = []  # alive, so that no two share an id
        self.name, self.description = codec.name, codec.description
        self.qualities, self.decode = codec.qualities, codec.decode

    def encode(self, image: Image.Image, quality: int) -> bytes:
        key = (id(image), quality)
        if key not in self._files:
            self._images.append(image)
            self._files[key] = self._codec.encode(image, quality)
        return self._files[key]


def largest_within(codec: Baseline, image: Image.Image, *, size_bytes: int) -> Fit | None:
    """The highest quality whose file has at most `size_bytes`.

    Takes sizes to rise with quality; where a codec breaks that by a few bytes the answer is
    still within the budget, perhaps one quality short of the best.

    Returns:
        None if no quality fits, or if the codec cannot code a picture of this size.
    """
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


def best_within(
    codecs: Iterable[Baseline],
    image: Image.Image,
    *,
    size_bytes: int,
    score: Callable[[Image.Image, Image.Image], float],
) -> Fit | None:
    """The fit with the highest `score(image, decoded)` over several codecs or sizes."""
    fits = [largest_within(codec, image, size_bytes=size_bytes) for codec in codecs]
    return max(
        (fit for fit in fits if fit is not None),
        key=lambda fit: score(image, fit.codec.decode(fit.data)),
        default=None,
    )
