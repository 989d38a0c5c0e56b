"""PerCoV2 (arXiv 2503.09368), the figure of the paper as two methods.

    image --> autoencoder --> hyper-encoder --> quantiser --> tokens --> entropy model --+
      |                                                                                  +--> file
      +-----> captioner ----> caption --------------------------------> language model --+

    file --> tokens --> hyper-decoder --> codes on the latent grid --+
      |                                                              +--> flow --> latent --> image
      +----> caption --> text encoder -------------------------------+

Letters: H x W pixels (padded to whole tokens), D code width, h x w token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from percov2_core import image_io
from percov2_core.bitstream import MAX_SEED, Stream
from percov2_core.caption import packing
from percov2_core.caption.captioner import Captioner
from percov2_core.caption.language import CaptionLanguage
from percov2_core.config import (
    DEFAULT_SCHEDULE,
    MODES,
    PRESETS,
    RATES,
    check_choice,
    check_real,
    check_whole,
)
from percov2_core.container import Bits, Container, Contents, check_stream
from percov2_core.entropy.prior import TokenPrior
from percov2_core.flow.sampler import SamplerStep, draw_noise, sample
from percov2_core.flow.text import TextEmbedder
from percov2_core.flow.transformer import Conditions, FlowModel
from percov2_core.hyper.decoder import HyperDecoder
from percov2_core.hyper.encoder import HyperEncoder
from percov2_core.hyper.quantizer import VectorQuantizer
from percov2_core.hyper.search import SearchConfig, search_tokens
from percov2_core.latent.autoencoder import LatentAutoencoder

__all__ = [
    "MAX_GUIDANCE",
    "MAX_STEPS",
    "SEARCH_TILE_PX",
    "Bits",
    "Contents",
    "PerCoV2",
    "Preset",
    "RateModules",
    "Step",
]

MAX_STEPS = 100
SEARCH_TILE_PX = 512  # bounds the memory that gradients take
MAX_GUIDANCE = 20.0


class Preset(NamedTuple):
    """A named point of the trade between distortion and perception."""

    steps: int
    guidance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RateModules:
    """The boxes of the figure that are trained per rate."""

    encoder: HyperEncoder
    quantizer: VectorQuantizer
    prior: TokenPrior
    decoder: HyperDecoder
    text: TextEmbedder
    flow: FlowModel
    search: SearchConfig


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of `PerCoV2.decode`."""

    index: int  # 1..total
    total: int
    preview: Callable[[], Image.Image]  # the picture that the flow is heading for


class PerCoV2:
    """A loaded model: pictures in, streams out, and back. Make one with `load_codec`."""

    def __init__(
        self,
        *,
        name: str,
        digest: bytes,
        vae: LatentAutoencoder,
        rates: Mapping[str, RateModules],
        language: CaptionLanguage,
        captioners: Callable[[str], Captioner],
        scheduler: FlowMatchEulerDiscreteScheduler,
        presets: Mapping[str, Mapping[str, Preset]],
        captioner: str = "describer",
    ) -> None:
        self.name = name
        self.digest = digest
        self.vae = vae
        self.rates = rates
        self.language = language
        self.captioners = captioners
        self.captioner = captioner
        self.scheduler = scheduler
        self.presets = presets
        priors = {rate: modules.prior for rate, modules in rates.items()}
        self.container = Container(name=name, digest=digest, language=language, priors=priors)

    @property
    def fingerprint(self) -> int:
        """First byte of the model's digest, 0..255."""
        return self.container.fingerprint

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @torch.no_grad()
    def encode(
        self,
        image: Image.Image,
        mode: str = "extreme",
        *,
        caption: str | None = None,
        schedule: str = DEFAULT_SCHEDULE,
        tokens: int | None = None,
        captioner: str | None = None,
        seed: int = 0,
    ) -> Stream:
        """Compress a picture.

        Args:
            image: Any PIL image with sides of 64 to 4096 px.
            mode: Key into `config.MODES`.
            caption: Text to send; None asks the captioner.
            captioner: Key of `caption.captioner.CAPTIONERS`; None takes the model's.
            schedule: One of `config.SCHEDULES`.
            tokens: Hybrid only: how many tokens to send, 0 (the default) to all.
            seed: Seed of the decoder's noise; other than 0 it costs bytes.

        Raises:
            ImageError: if the picture is outside the limits.
            ConfigError: if a name or a number is wrong.
        """
        picture = image_io.normalise(image)
        stream = self.container.blank(
            picture.size, mode, schedule=schedule, tokens=tokens, seed=seed
        )
        rate, modules = RATES[MODES[mode].rate], self.rates[MODES[mode].rate]
        if caption is None:
            caption = self.describe(picture, captioner=captioner)
        text = packing.check_caption(caption)
        if stream.tokens_sent == 0:  # the caption alone: no token is looked for
            return self.container.pack(stream, np.zeros(rate.grid(*picture.size[::-1]), int), text)

        x = image_io.to_tensor(picture, rate.token_stride).to(self.device)  # (1, 3, H, W)
        latent = self.vae.encode(x)  # (1, 16, H/8, W/8)
        vectors = modules.encoder(latent)  # (1, D, h, w)
        nearest = modules.quantizer.tokens(vectors)  # (1, h, w)
        grid = self._search(nearest, text, modules, x)[0].cpu().numpy()  # (h, w)
        return self.container.pack(stream, grid, text)

    def _search(self, tokens: Tensor, caption: str, modules: RateModules, x: Tensor) -> Tensor:
        """Improve tokens by what the hyper-decoder's start decodes to, tile by tile."""
        tokens, least = tokens.clone(), torch.ones(1, device=x.device)
        stride = x.shape[-1] // tokens.shape[-1]
        size = SEARCH_TILE_PX // stride
        for top in range(0, tokens.shape[1], size):
            for left in range(0, tokens.shape[2], size):
                rows, columns = slice(top, top + size), slice(left, left + size)
                tile, bits = tokens[:, rows, columns], None
                if modules.search.rate:  # by one schedule, so that all send the same tokens
                    found = modules.prior.choices(
                        tile[0].cpu().numpy(), caption, schedule=DEFAULT_SCHEDULE
                    )
                    bits = torch.from_numpy(found).to(x.device)
                tokens[:, rows, columns] = search_tokens(
                    tile,
                    modules.quantizer,
                    lambda codes: self.vae.decode(modules.decoder(codes, least).start),
                    x[..., _scaled(rows, stride), _scaled(columns, stride)],
                    config=modules.search,
                    bits=bits,
                )
        return tokens

    def describe(self, image: Image.Image, *, captioner: str | None = None) -> str:
        """Ask a captioner for a caption, by default the one that the model was trained with."""
        text: str = self.captioners(captioner or self.captioner)(image_io.normalise(image))
        return text

    def caption_bits(self, text: str) -> float:
        """Ideal cost of a caption in the file, in bits."""
        return packing.caption_bits(text, self.language)

    @torch.inference_mode()
    def decode(
        self,
        stream: Stream,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        preset: str = "balanced",
        seed: int | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Image.Image:
        """Repaint the picture. Same arguments, same machine: same pixels.

        Args:
            steps: Euler steps of the flow, 1 to 100; None takes the preset's.
            guidance: 1 to 20; None takes the preset's.
            preset: One of `config.PRESETS`.
            seed: Seed of the noise; None takes the file's.
            on_step: Called after each step; an exception that it raises cancels.

        Raises:
            BitstreamError: if the file is damaged or of another model.
            ConfigError: if a number or the preset is wrong.
        """
        chosen = self._preset(stream, preset)
        steps = check_whole("steps", chosen.steps if steps is None else steps, 1, MAX_STEPS)
        guidance = chosen.guidance if guidance is None else guidance
        guidance = check_real("guidance", guidance, 1, MAX_GUIDANCE)
        seed = check_whole("seed", stream.seed if seed is None else seed, 0, MAX_SEED)
        tokens, caption, _ = self.container.unpack(stream)
        modules = self.rates[MODES[stream.mode].rate]

        codes = modules.quantizer.lookup(torch.from_numpy(tokens)[None].to(self.device))
        told = torch.full((1,), guidance, device=codes.device)
        start, features = modules.decoder(codes, told)  # (1, 16, H/8, W/8), (1, C, H/8, W/8)
        latent = sample(
            modules.flow,
            Conditions(start, features, modules.text.encode([caption])),
            modules.text.encode([""]),
            steps=steps,
            guidance=guidance,
            noise=draw_noise(start.shape, seed, start.device),
            scheduler=self.scheduler,
            on_step=self._report(stream, on_step),
        )  # (1, 16, H/8, W/8)
        return self._paint(stream, latent)

    def read(self, stream: Stream) -> Contents:
        """What the file says, without painting the picture.

        Raises:
            BitstreamError: if the file is damaged or of another model.
        """
        return self.container.contents(stream)

    def truncate(
        self, stream: Stream, *, stage: int | None = None, tokens: int | None = None
    ) -> Stream:
        """The hybrid stream of the first stages, or of the first tokens, of any stream.

        Raises:
            ConfigError: if not exactly one of `stage` and `tokens` is given, or it is out of range.
        """
        return self.container.truncate(stream, stage=stage, tokens=tokens)

    def _preset(self, stream: Stream, preset: str) -> Preset:
        return self.presets[check_stream(stream).mode][check_choice("preset", preset, PRESETS)]

    def _paint(self, stream: Stream, latent: Tensor) -> Image.Image:
        return image_io.to_image(self.vae.decode(latent), size=(stream.width, stream.height))

    def _report(
        self, stream: Stream, on_step: Callable[[Step], None] | None
    ) -> Callable[[SamplerStep], None] | None:
        if on_step is None:
            return None

        def report(step: SamplerStep) -> None:
            on_step(Step(step.index, step.total, lambda: self._paint(stream, step.estimate())))

        return report


def _scaled(span: slice, stride: int) -> slice:
    return slice(span.start * stride, span.stop * stride)
