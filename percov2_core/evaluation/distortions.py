"""Named distortions of a picture at a strength from 0 (mild) to 1 (severe).

What the bundled distance is trained and tested on. H x W pixels; every function takes and
returns an RGB picture of the same size.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Distort = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _through(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer).convert("RGB")


def _quality(strength: float) -> int:
    return round(60 * (1 - strength) ** 2)


def _from_array(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _avif(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    return _through(image, "AVIF", quality=_quality(strength), speed=9, max_threads=1)


def _small(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    factor = 1.3 * 12.0**strength
    size = (max(4, round(image.width / factor)), max(4, round(image.height / factor)))
    up = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)
    small = image.resize(size, Image.Resampling.LANCZOS)
    return small.resize(image.size, up[int(rng.integers(3))])


def _small_avif(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    factor = int(rng.integers(2, 5))
    size = (max(16, image.width // factor), max(16, image.height // factor))
    small = _avif(image.resize(size, Image.Resampling.LANCZOS), strength, rng)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _noise(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    shape = (image.height, image.width, int(rng.choice([1, 3])))
    return _from_array(np.asarray(image) + rng.normal(0, 2 * 30.0**strength, shape))


def _colour(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    mix = np.eye(3) + rng.normal(0, 0.02 + 0.25 * strength, (3, 3))
    return _from_array(np.asarray(image) @ mix + rng.normal(0, 2 + 30 * strength, 3))


def _tone(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    gamma = np.exp(rng.choice([-1, 1]) * strength)
    gain = 1 - 0.8 * strength * rng.random()
    x = (np.asarray(image) / 255.0) ** gamma * 255
    return _from_array(128 + gain * (x - 128))


def _blocks(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Few colours on a coarse grid, enlarged: what a small codebook does."""
    step = 2 + round(14 * strength)
    small = image.resize((max(2, image.width // step), max(2, image.height // step)))
    few = small.quantize(colors=int(rng.integers(8, 129)), dither=Image.Dither.NONE)
    return few.convert("RGB").resize(image.size, Image.Resampling.BICUBIC)


def _warp(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Move pixels along a smooth random field: right texture at the wrong place."""
    h, w = image.height, image.width
    cells = int(rng.integers(4, 25))
    field = rng.normal(0, 0.5 + 8 * strength, (2, cells, cells)).astype(np.float32)
    dy, dx = (
        np.asarray(Image.fromarray(f).resize((w, h), Image.Resampling.BICUBIC)) for f in field
    )
    y = np.clip(np.rint(np.arange(h)[:, None] + dy), 0, h - 1).astype(int)
    x = np.clip(np.rint(np.arange(w)[None] + dx), 0, w - 1).astype(int)
    return Image.fromarray(np.asarray(image)[y, x])


def _texture(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Blur, then add noise of the scale and strength of the detail that was lost."""
    soft = image.filter(ImageFilter.GaussianBlur(1 + 5 * strength))
    lost = np.asarray(image, np.float32) - np.asarray(soft, np.float32)
    scale = float(rng.uniform(1, 4))
    size = (max(2, round(image.width / scale)), max(2, round(image.height / scale)))
    noise = Image.fromarray(rng.normal(0, 1, size[::-1]).astype(np.float32))
    grain = np.asarray(noise.resize(image.size, Image.Resampling.BICUBIC))[..., None]
    return _from_array(np.asarray(soft) + grain * lost.std() * rng.uniform(0.3, 1.5))


DISTORTIONS: dict[str, Distort] = {
    "jpeg": lambda image, s, _: _through(image, "JPEG", quality=max(1, _quality(s))),
    "webp": lambda image, s, _: _through(image, "WEBP", quality=_quality(s), method=2),
    "avif": _avif,
    "jpeg2000": lambda image, s, _: _through(
        image, "JPEG2000", quality_layers=[10 * 80.0**s], irreversible=True
    ),
    "small": _small,
    "small-avif": _small_avif,
    "blur": lambda image, s, _: image.filter(ImageFilter.GaussianBlur(0.5 * 20.0**s)),
    "noise": _noise,
    "colour": _colour,
    "tone": _tone,
    "grey": lambda image, s, _: Image.blend(
        image, image.convert("L").convert("RGB"), 0.1 + 0.9 * s
    ),
    "blocks": _blocks,
    "warp": _warp,
    "texture": _texture,
}


def distort_at_random(image: Image.Image, *, seed: int) -> Image.Image:
    """One or two distortions of random kind and strength."""
    rng = np.random.default_rng(seed)
    names = rng.choice(list(DISTORTIONS), size=2 if rng.random() < 0.35 else 1, replace=False)
    for name in names:
        strength = float(rng.random()) * (1.0 if len(names) == 1 else 0.7)
        image = DISTORTIONS[str(name)](image, strength, rng)
    return image
