"""The second painter: a published Stable Diffusion 3 repaints the picture of the model's own.

    own picture --> autoencoder --> latent, noise of a strength --> SD3, told the caption --> image

Image-to-image by flow matching, as diffusers' `StableDiffusion3Img2ImgPipeline` does it, with one
addition after iterative latent refinement (Choi et al. 2021): in the first part of the path the low
frequencies of what the flow is heading for are those of the own picture, and the means of 8 x 8
pixels of what comes out are the own picture's. So layout and colour stay; texture is invented. Of a
file with a caption alone there is no own picture: SD3 paints the caption.

H x W pixels, a multiple of 16; H' = H / 8. Pictures over 1024 px a side go through in tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from percov2_core.bitstream import Stream
from percov2_core.config import LATENT_CHANNELS, LATENT_STRIDE, PRESETS, Box, Preset
from percov2_core.flow.sampler import TimesOf, sample, tiles
from percov2_core.flow.text import TextEmbedder
from percov2_core.flow.transformer import Conditions, FlowModel
from percov2_core.latent import LatentAutoencoder
from percov2_core.painting import DECODE_WORK, Canvas, Manner, Step

SIDE_MULTIPLE_PX = 16  # a patch of the transformer
MEANS_PX = 8  # sides of the squares whose means stay
HELD_CELLS = 2  # of the latent, a side: what is coarser is held
HELD_PART = 0.4  # of the time from the start to the picture
_ROUNDS = 8  # of correcting means smoothly, before they are made equal square by square

# Defaults, tried on no trained weights: those of the published pipeline, and less guidance.
REPAINT_PRESETS = {
    "faithful": Preset(28, 4.0),
    "balanced": Preset(28, 5.5),
    "vivid": Preset(28, 7.0),
}


class _Strengths(NamedTuple):
    least: float  # share of the fine tokens in the file
    by_preset: tuple[float, ...]  # in the order of `config.PRESETS`


# The fewer bytes, the more strength. Tried on no trained weights either.
_STRENGTHS = (
    _Strengths(0.5, (0.3, 0.4, 0.5)),
    _Strengths(0.15, (0.35, 0.5, 0.6)),
    _Strengths(0.03, (0.45, 0.6, 0.7)),
    _Strengths(0.0, (0.55, 0.7, 0.8)),
)


def usual_strength(stream: Stream, preset: str) -> float:
    """How far a preset repaints the picture of a file, 0 to 1; 1 for a caption alone."""
    if not stream.tokens_sent:
        return 1.0
    share = stream.sent.fine / stream.tokens_total.fine
    row = next(row for row in _STRENGTHS if share >= row.least)
    return row.by_preset[PRESETS.index(preset)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repainter:
    """Stable Diffusion 3, or another base in diffusers' layout. Load one with `load_repainter`."""

    name: str
    vae: LatentAutoencoder
    text: TextEmbedder
    flow: FlowModel  # from noise, without channels of its own
    times: TimesOf  # of the base's scheduler

    def paint(
        self, own: Iterable[Step] | None, caption: str, size: tuple[int, int], manner: Manner
    ) -> Generator[Step, None, None]:
        """Repaint a picture of `size`, width and height in pixels, step by step.

        To cancel, close the generator or ask for no further step: nothing runs on. `own` are the
        steps of the picture to start from, shown as step 0; None paints the caption alone.
        """
        return self._paint(own, caption, size, manner)

    @torch.inference_mode()
    def _paint(
        self, own: Iterable[Step] | None, caption: str, size: tuple[int, int], manner: Manner
    ) -> Generator[Step, None, None]:
        w, h = (-(-side // SIDE_MULTIPLE_PX) * SIDE_MULTIPLE_PX for side in size)
        grid = (h // LATENT_STRIDE, w // LATENT_STRIDE)
        strength = 1.0 if own is None else manner.strength
        times = self.times(manner.steps, *grid)
        # As the published pipeline counts.
        times = times[int(manner.steps - min(manner.steps * strength, manner.steps)) :]
        steps, device = len(times) - 1, self.vae.device
        parts = steps * len(tiles(*grid, self.flow.config.tile))
        generator = torch.Generator("cpu").manual_seed(manner.seed)
        canvas, latent, steer = Canvas(vae=self.vae, size=size), None, None
        if own is not None:
            around = DECODE_WORK * self.vae.count_tiles(*grid)
            for step in own:
                picture, share = step.picture, step.share * around / (2 * around + parts)
                yield Step(0, max(1, steps), step.preview, share=share)
            assert picture is not None  # the last step has one
            x = _to_tensor(picture).to(device)  # (1, 3, H, W)
            latent = self.vae.encode(x, generator if steps else None)  # (1, 16, H', W')
            if manner.held and steps:
                canvas = Canvas(vae=self.vae, size=size, finish=partial(keep_means, wanted=x))
                steer = partial(hold, wanted=latent, until=times[0] * (1 - HELD_PART))
        noise = torch.randn((1, LATENT_CHANNELS, *grid), generator=generator).to(device)
        if latent is None:
            latent = torch.zeros_like(noise)
        start = times[0] * noise + (1.0 - times[0]) * latent
        latents = sample(
            self.flow,
            Conditions(latent, latent[:, :0], self.text.encode([caption])),
            self.text.encode([""]),
            times=times,
            guidance=manner.guidance,
            noise=start,
            steer=steer,
        )
        yield from canvas.follow(latents, latent, steps=max(1, steps), parts=parts)


def hold(estimate: Tensor, t: float, *, wanted: Tensor, until: float) -> Tensor:
    """(B, 16, H', W') what the flow is heading for at time `t` -> the same with the low frequencies
    of `wanted`, for as long as `t` is above `until`."""
    if t <= until:
        return estimate
    coarse = [-(-n // HELD_CELLS) for n in wanted.shape[2:]]
    error = F.interpolate(wanted - estimate, coarse, mode="area")
    return estimate + F.interpolate(error, wanted.shape[2:], mode="bilinear", align_corners=False)


def keep_means(pixels: Tensor, box: Box, *, wanted: Tensor) -> Tensor:
    """(1, 3, h, w) in [-1, 1], of the part `box` of a picture -> the same with the means of 8 x 8
    pixels of that part of `wanted`: moved smoothly first; then, where a square still differs or
    its levels do not fit, its contrast shrinks around the mean."""
    goal = F.avg_pool2d(wanted[box], MEANS_PX)
    size = pixels.shape[2:]
    smooth: Callable[[Tensor], Tensor] = partial(
        F.interpolate, size=size, mode="bilinear", align_corners=False
    )
    for _ in range(_ROUNDS):
        pixels = (pixels + smooth(goal - F.avg_pool2d(pixels, MEANS_PX))).clamp(-1, 1)
    flat = partial(F.interpolate, scale_factor=float(MEANS_PX), mode="nearest")
    detail, centre = pixels - flat(F.avg_pool2d(pixels, MEANS_PX)), flat(goal)
    room = torch.where(detail > 0, 1 - centre, 1 + centre).clamp_min(0)
    fits = -F.max_pool2d(-room / detail.abs().clamp_min(1e-6), MEANS_PX)  # the least of a square
    return centre + flat(fits.clamp_max(1.0)) * detail


def _to_tensor(image: Image.Image) -> Tensor:
    """Mode "RGB" -> (1, 3, H, W) float32 in [-1, 1], as the published pipeline makes it, padded."""
    x: Tensor = VaeImageProcessor(do_resize=False).preprocess(image)
    w, h = image.size
    pads = (0, -w % SIDE_MULTIPLE_PX, 0, -h % SIDE_MULTIPLE_PX)
    return F.pad(x, pads, mode="replicate")
