"""Photos -> training crops. Photos are unpacked once into one memory-mapped file.

Letters: B batch, H x W pixels of a crop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from percov2_core.errors import ConfigError
from percov2_core.evaluation.protocol import list_pictures


def _read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@dataclass(frozen=True)
class Photos:
    """Photos as one flat uint8 array on disk.

    Attributes:
        pixels: (N,) uint8, all pictures one after another, row-major RGB.
        shapes: (P, 2) height and width of each picture.
        offsets: (P,) where each picture starts in `pixels`.
    """

    pixels: NDArray[np.uint8]
    shapes: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 view of picture `index`."""
        h, w = (int(v) for v in self.shapes[index])
        start = int(self.offsets[index])
        return self.pixels[start : start + h * w * 3].reshape(h, w, 3)


def open_photos(folder: Path, cache: Path) -> Photos:
    """Unpack `folder` into `cache` (once) and map it."""
    blob, index = cache / "photos.u8", cache / "photos_index.npz"
    if not index.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            arrays = list(pool.map(_read, list_pictures(folder)))
        shapes = np.array([a.shape[:2] for a in arrays], dtype=np.int64)
        ends = np.cumsum([a.size for a in arrays])
        with blob.open("wb") as out:
            for array in arrays:
                array.tofile(out)
        np.savez(index, shapes=shapes, offsets=np.concatenate([[0], ends[:-1]]))
    with np.load(index) as table:
        return Photos(
            np.memmap(blob, dtype=np.uint8, mode="r"),
            table["shapes"].astype(np.int64),
            table["offsets"].astype(np.int64),
        )


def random_crop(photo: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(side, side, 3) uint8: a random square of `photo`, flipped half of the time.

    A photo whose short side is less than `side` is enlarged to it first.
    """
    h, w = photo.shape[:2]
    if min(h, w) < side:
        scale = side / min(h, w)
        size = (max(side, round(w * scale)), max(side, round(h * scale)))
        photo = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))
        h, w = photo.shape[:2]
    y, x = int(rng.integers(h - side + 1)), int(rng.integers(w - side + 1))
    crop = photo[y : y + side, x : x + side]
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)


def shrunk_crop(photo: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(side, side, 3) uint8: half of the time of a photo that was reduced to about that side."""
    short = min(photo.shape[:2])
    if short > side and rng.random() < 0.5:
        image = Image.fromarray(photo)
        scale = side / short
        size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
        photo = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    return random_crop(photo, side, rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPlan:
    """Which crops are taken once and for all: how many of each side in pixels."""

    sides: tuple[int, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.sides) != len(self.counts):
            raise ConfigError(
                f"crop plan: {len(self.sides)} sides but {len(self.counts)} counts, need as many"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CropPlan:
    """Which crop sizes a run sees, and how many pixels make a batch.

    Attributes:
        sides: Crop sides in pixels.
        weights: How often each side is drawn; relative.
        batch_px: Pixels in one batch; the batch size follows from the side.
    """

    sides: tuple[int, ...] = (192, 256, 320)
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    batch_px: int = 24 * 192 * 192

    def __post_init__(self) -> None:
        if len(self.sides) != len(self.weights):
            raise ConfigError(
                f"crop plan: {len(self.sides)} sides but {len(self.weights)} weights, need as many"
            )

    def batch_size(self, side: int) -> int:
        return max(1, self.batch_px // side**2)


def crop_batch(photos: Photos, plan: CropPlan, *, seed: int, step: int) -> NDArray[np.uint8]:
    """(B, H, W, 3) uint8: the batch of this step, the same whenever it is asked for."""
    rng = np.random.default_rng((seed, step))
    weights = np.array(plan.weights) / sum(plan.weights)
    side = int(rng.choice(plan.sides, p=weights))
    picks = rng.integers(len(photos), size=plan.batch_size(side))
    return np.stack([random_crop(photos[int(i)], side, rng) for i in picks])


def prefetch(make: Callable[[int], Any], numbers: Iterator[int], depth: int = 3) -> Iterator[Any]:
    """`make` of each number in order, made on another thread, `depth` ahead."""
    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(make, next(numbers)) for _ in range(depth)]
        while True:
            pending.append(pool.submit(make, next(numbers)))
            yield pending.pop(0).result()
