"""How every painter shows its work: step by step, the last step with the picture.

H x W pixels; latents are on a grid of one cell for 8 x 8 pixels, padding included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from percov2_core import image_io
from percov2_core.config import Box
from percov2_core.latent import LatentAutoencoder

DECODE_WORK = 2  # what a tile takes to be decoded, as a multiple of a step


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a painting."""

    index: int  # steps done, 1..total; of a large picture, several times the same, and first 0
    total: int
    preview: Callable[[], Image.Image]  # the picture that the flow is heading for
    picture: Image.Image | None = None  # the finished picture, in the last step
    share: float = 1.0  # of the whole work that is done, above 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """Where latents become the picture, tile by tile of a large one."""

    vae: LatentAutoencoder
    size: tuple[int, int]  # of the picture, width and height in pixels
    deblock: int = 0  # as `LatentAutoencoder.decode_tiles` says
    # What is done to the pixels of each tile: (1, 3, H, W) in [-1, 1] and where they belong.
    finish: Callable[[Tensor, Box], Tensor] = lambda pixels, box: pixels

    def follow(
        self, latents: Iterable[Tensor | None], start: Tensor, *, steps: int, parts: int
    ) -> Iterator[Step]:
        """The steps of `flow.sampler.sample`, which starts from (1, 16, H', W') and gives `parts`
        latents or None."""
        index, latent = 0, start
        around = [DECODE_WORK] * self.vae.count_tiles(*start.shape[2:])  # before the first as well
        work = ([sum(around) + 1] + [1] * parts)[:parts] + around
        shares = iter(np.cumsum(work) / sum(work))
        for found in latents:
            share, latent = next(shares), latent if found is None else found
            index += found is not None
            if index < steps:
                yield Step(index, steps, partial(self.picture, latent), share=share)
        for picture in self._pictures(latent):
            yield Step(steps, steps, partial(self.picture, latent), picture, next(shares))

    def picture(self, latent: Tensor) -> Image.Image:
        """(1, 16, H', W') -> what it looks like."""
        *_, picture = self._pictures(latent)
        assert picture is not None
        return picture

    @torch.inference_mode()
    def _pictures(self, latent: Tensor) -> Iterator[Image.Image | None]:
        """The picture, and None before it for each tile of it that is not the last."""
        picture = Image.new("RGB", self.size)
        left = self.vae.count_tiles(*latent.shape[2:])
        for box, pixels in self.vae.decode_tiles(latent, deblock=self.deblock):
            _, rows, columns = box
            size = (picture.width - columns.start, picture.height - rows.start)
            part = image_io.to_image(self.finish(pixels, box), size=size)
            picture.paste(part, (columns.start, rows.start))
            left -= 1
            yield None if left else picture
