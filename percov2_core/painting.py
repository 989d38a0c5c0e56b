"""The model's own painter, and how every painter shows its work: step by step, the last step with
the picture.

H x W pixels; latents are on a grid of one cell for 8 x 8 pixels, padding included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from percov2_core import image_io
from percov2_core.config import PARENT_RATIO, Box
from percov2_core.flow.sampler import TimesOf, draw_noise, sample, tiles
from percov2_core.flow.text import TextEmbedder
from percov2_core.flow.transformer import Conditions, FlowModel, guidance_features
from percov2_core.hyper import networks as hyper
from percov2_core.hyper.networks import Codes, HyperDecoder
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


class Manner(NamedTuple):
    """How to paint, or to repaint."""

    strength: float  # of repainting: 0 keeps what the autoencoder keeps, 1 starts from noise
    steps: int  # of the whole path; in repainting as many are done as the strength needs
    guidance: float
    seed: int
    held: bool = True  # whether low frequencies and means stay in repainting


@dataclass(frozen=True, slots=True, kw_only=True)
class Painter:
    """The boxes that paint from the tokens of both levels, whatever of them a file holds. B batch,
    D code width, h x w token grid."""

    decoder: HyperDecoder
    text: TextEmbedder
    flow: FlowModel

    def know(self, fine: Tensor, sent: Tensor, parents: Tensor | None, guidance: float) -> Codes:
        """(1, D, h, w) codes, (1, 1, h, w) which were sent, (1, D, hp, wp) codes of the coarse
        level -> all that `begin` takes; a coarse level that is left out is zero."""
        if parents is not None:
            return Codes(fine, sent, parents)
        h, w = (-(-n // PARENT_RATIO) for n in fine.shape[2:])
        return Codes(fine, sent, *_nothing_coarse(self.decoder, h, w, guidance))

    def begin(self, given: Codes, guidance: float) -> hyper.Conditions:
        """What the flow starts from, on the latent grid."""
        return self.decoder(given, _told(guidance, self.decoder))  # type: ignore[no-any-return]

    def latents(
        self, given: Codes, caption: str, manner: Manner, times: TimesOf
    ) -> tuple[Tensor, Iterator[Tensor | None]]:
        """What the flow starts from, and what `flow.sampler.sample` yields."""
        start, features = self.begin(given, manner.guidance)
        found = sample(
            self.flow,
            Conditions(start, features, self.text.encode([caption])),
            self.text.encode([""]),
            times=times(manner.steps, *start.shape[2:]),
            guidance=manner.guidance,
            noise=draw_noise(start.shape, manner.seed, start.device),
        )
        return start, found

    def paint(
        self, given: Codes, caption: str, manner: Manner, times: TimesOf, canvas: Canvas
    ) -> Iterator[Step]:
        """The steps of the flow."""
        start, latents = self.latents(given, caption, manner, times)
        h, w = start.shape[2:]
        parts = manner.steps * len(tiles(h, w, self.flow.config.tile))
        return canvas.follow(latents, start, steps=manner.steps, parts=parts)


@lru_cache(maxsize=2)  # a fifth of the hyper-decoder's work, and the same for all such files
def _nothing_coarse(
    decoder: HyperDecoder, h: int, w: int, guidance: float
) -> tuple[Tensor, Tensor]:
    """(1, D, h, w) codes of a coarse level that is left out, and what becomes of them."""
    device = decoder.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        codes = torch.zeros(1, decoder.config["code_dim"], h, w, device=device)
        return codes, decoder.raise_coarse(codes, _told(guidance, decoder))


def _told(guidance: float, decoder: HyperDecoder) -> Tensor:
    """(1, guidance width) how a hyper-decoder is told the guidance."""
    value = torch.full((1,), guidance, device=decoder.device)
    return guidance_features(value, decoder.guidance_width)
