"""Photos -> crops -> latents: what the stages are trained on.

A photo is read when a crop of it is wanted, and not kept. Stage 1 sees crops as they are drawn, or
the samples of a `cache`; the entropy model sees the tokens of planned crops. B batch, H x W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from percov2_core.caption.describer import describe
from percov2_core.errors import ConfigError, ImageError
from percov2_core.flow.text import TextEmbedding
from percov2_core.latent import LatentAutoencoder
from percov2_core.training.photos import Photo

_log = logging.getLogger(__name__)

AT_ONCE_PX = 8 * 512 * 512  # pixels that the autoencoder encodes together


@dataclass(frozen=True, slots=True, kw_only=True)
class CropPlan:
    """Which crops the steps of a run see, and how many pixels make a batch."""

    sides: tuple[int, ...] = (192, 256, 320)  # pixels
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)  # how often each side is drawn; relative
    batch_px: int = 24 * 192 * 192  # the batch size follows from the side

    def __post_init__(self) -> None:
        _check_as_many(self.sides, self.weights, "weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPlan:
    """Which crops are taken once and for all: how many of each side in pixels."""

    sides: tuple[int, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_as_many(self.sides, self.counts, "counts")


def _check_as_many(sides: Sequence[int], others: Sequence[float], name: str) -> None:
    if (a := len(sides)) != (b := len(others)):
        raise ConfigError(f"crop plan: {a} sides but {b} {name}, need as many")


@dataclass(frozen=True, slots=True)
class PlannedCrop:
    """One crop of a `GridPlan`: of which photo; where follows from its own number."""

    number: int  # among those of its side
    side: int  # pixels
    photo: Photo

    @property
    def name(self) -> str:
        return f"{self.side:04d}-{self.number:09d}"

    def cut(self, *, seed: int) -> NDArray[np.uint8]:
        """(side, side, 3) uint8, the same in any process: half of the time of a reduced photo."""
        rng = np.random.default_rng((seed, self.side, self.number))
        photo = self.photo.read()
        if min(photo.shape[:2]) > self.side and rng.random() < 0.5:
            photo = _resized(photo, self.side)
        return random_crop(photo, self.side, rng)


@dataclass(frozen=True, slots=True)
class Samples:
    """What a step sees. No tuple: FSDP would look inside and round it to half precision."""

    captions: list[str]  # B of them
    pixels: Tensor | None = None  # (B, 3, H, W) float in [-1, 1]; None where latents are known
    latent: Tensor | None = None  # (B, 16, H/8, W/8) float
    text: TextEmbedding | None = None  # of the captions; None where the text model learns along

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True, slots=True)
class PhotoCrops:
    """Crops of photos, others in each step, but the same whenever a step asks for them."""

    photos: Sequence[Photo]
    plan: CropPlan
    seed: int

    def pixels(self, step: int) -> NDArray[np.uint8]:
        """(B, H, W, 3)."""
        rng, plan = np.random.default_rng((self.seed, step)), self.plan
        side = int(rng.choice(plan.sides, p=np.array(plan.weights) / sum(plan.weights)))
        picks = rng.integers(len(self.photos), size=max(1, plan.batch_px // side**2))
        return np.stack([random_crop(self.photos[i].read(), side, rng) for i in picks])

    def draw(self, step: int) -> Samples:
        """With the describer's captions."""
        crops = self.pixels(step)
        return Samples([describe(Image.fromarray(c)) for c in crops], pixels=to_float(crops))


@dataclass(frozen=True, slots=True)
class EncodedPhotos:
    """Planned crops of photos through an autoencoder, a few at a time."""

    photos: Sequence[Photo]
    plan: GridPlan
    vae: LatentAutoencoder
    captioner: Callable[[Image.Image], str] = describe
    seed: int = 0

    @property
    def sides(self) -> Sequence[int]:
        return self.plan.sides

    def planned(self) -> Iterator[PlannedCrop]:
        """Every photo as often as every other, each side in an order of its own."""
        for side, count in zip(self.plan.sides, self.plan.counts, strict=True):
            rng = np.random.default_rng((self.seed, side))
            for start in range(0, count, len(self.photos)):
                order = rng.permutation(len(self.photos))[: count - start]
                for number, photo in enumerate(order, start):
                    yield PlannedCrop(number, side, self.photos[photo])

    def every(self, side: int) -> Iterator[Samples]:
        crops = (crop for crop in self.planned() if crop.side == side)
        return (samples for _, samples in self.encode(crops))

    @torch.inference_mode()
    def encode(self, planned: Iterable[PlannedCrop]) -> Iterator[tuple[list[PlannedCrop], Samples]]:
        """Read, cut, describe and encode crops, neighbours of the same side together."""
        for side, crops in groupby(planned, key=lambda crop: crop.side):
            readable = self._cut(crops)
            while group := list(islice(readable, max(1, AT_ONCE_PX // side**2))):
                pixels = np.stack([cut for _, cut in group])
                captions = [self.captioner(Image.fromarray(p)) for p in pixels]
                latent = self.vae.encode(to_float(pixels).to(self.vae.device))
                yield [crop for crop, _ in group], Samples(captions, latent=latent)

    def _cut(self, crops: Iterable[PlannedCrop]) -> Iterator[tuple[PlannedCrop, NDArray[np.uint8]]]:
        """Crops and their pixels, one photo after another; a broken photo is left out, and told."""
        for crop in crops:
            try:
                yield crop, crop.cut(seed=self.seed)
            except ImageError as error:
                _log.warning("left out: %s", error)


def to_float(pixels: NDArray[Any] | Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float in [-1, 1]."""
    x = torch.as_tensor(pixels).movedim(-1, 1).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def random_crop(photo: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(side, side, 3) uint8: a random square of a photo, enlarged if it is too small, flipped half
    of the time."""
    if min(photo.shape[:2]) < side:
        photo = _resized(photo, side)
    h, w = photo.shape[:2]
    y, x = int(rng.integers(h - side + 1)), int(rng.integers(w - side + 1))
    crop = photo[y : y + side, x : x + side]
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)


def _resized(photo: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The short side becomes `side`."""
    picture = Image.fromarray(photo)
    return np.asarray(ImageOps.cover(picture, (side, side), Image.Resampling.LANCZOS))
