"""PerCoV2 (arXiv 2503.09368), the figure of the paper as two methods.

    image --> autoencoder --> hyper-encoder --> quantiser --> tokens --> entropy model --+
      |                                                                                  +--> file
      +-----> captioner ----> caption --------------------------------> language model --+

    file --> tokens --> hyper-decoder --> codes on the latent grid --+
      |                                                              +--> flow --> latent --> image
      +----> caption --> text encoder -------------------------------+

`encode` is the upper half, `write` its end: tokens and caption --> file. `decode` is the lower
half: `read` (file --> tokens and caption) and `paint`, which shows every step of the flow. Both
ends at the file are in `contents`.
H x W pixels (padded to whole tokens), D code width, h x w token grid, K codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from percov2_core import image_io
from percov2_core.bitstream import MAX_SEED, Stream
from percov2_core.caption import packing
from percov2_core.caption.captioner import Captioner
from percov2_core.config import (
    DEFAULT_SCHEDULE,
    MAX_GUIDANCE,
    MAX_STEPS,
    MODES,
    PRESETS,
    RATES,
    Preset,
    check_choice,
    check_real,
    check_whole,
)
from percov2_core.contents import Contents, FileCodec, FileModules, check_stream
from percov2_core.entropy.prior import TokenPrior
from percov2_core.flow.sampler import draw_noise, sample, sigmas
from percov2_core.flow.text import TextEmbedder
from percov2_core.flow.transformer import Conditions, FlowModel, guidance_features
from percov2_core.hyper.networks import HyperDecoder, HyperEncoder, VectorQuantizer
from percov2_core.hyper.search import SearchConfig, search_tokens
from percov2_core.latent import LatentAutoencoder


@dataclass(frozen=True, slots=True, kw_only=True)
class RateModules(FileModules):
    """The boxes of the figure that are trained per rate."""

    encoder: HyperEncoder
    quantizer: VectorQuantizer
    decoder: HyperDecoder
    text: TextEmbedder
    flow: FlowModel
    search: SearchConfig


@dataclass(frozen=True, slots=True)
class Step:
    """One step of `PerCoV2.paint`."""

    index: int  # 1..total
    total: int
    preview: Callable[[], Image.Image]  # the picture that the flow is heading for
    picture: Image.Image | None = None  # the finished picture, in the last step


@dataclass(kw_only=True, eq=False, repr=False)
class PerCoV2(FileCodec):
    """A loaded model: pictures in, streams out, and back. Make one with `load_codec`."""

    rates: Mapping[str, RateModules]
    vae: LatentAutoencoder
    captioners: Callable[[str], Captioner]  # by the names in `caption.captioner.CAPTIONERS`
    shift: float  # of the flow's times, see `flow.sampler`
    presets: Mapping[str, Mapping[str, Preset]]  # by mode and name
    captioner: str = "describer"

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
        header = Stream.blank(
            picture.size, mode, self.fingerprint, schedule=schedule, tokens=tokens, seed=seed
        )
        said = self.describe(picture, captioner=captioner) if caption is None else caption
        text = packing.check_caption(said)
        if header.tokens_sent == 0:  # the caption alone: no token is looked for
            return self.write(header, np.zeros(header.grid, int), text)

        rate = MODES[mode].rate
        modules = self.rates[rate]
        told = _told(1.0, modules.decoder)  # (1, guidance width)
        x = image_io.to_tensor(picture, RATES[rate].token_stride).to(self.device)  # (1, 3, H, W)
        latent = self.vae.encode(x)  # (1, 16, H/8, W/8)
        vectors = modules.encoder(latent)  # (1, D, h, w)
        nearest = modules.quantizer.tokens(vectors)  # (1, h, w)
        found = search_tokens(
            nearest,
            modules.quantizer,
            lambda codes: self.vae.decode(modules.decoder(codes, told).start),
            x,
            config=modules.search,
            bits=lambda tile: _prices(modules.prior, tile, text),
        )  # (1, h, w)
        return self.write(header, found[0].cpu().numpy(), text)

    def describe(self, image: Image.Image, *, captioner: str | None = None) -> str:
        """Ask a captioner for a caption, by default the one that the model was trained with."""
        return self.captioners(captioner or self.captioner)(image_io.normalise(image))

    def paint(
        self,
        contents: Contents,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        preset: str = "balanced",
        seed: int | None = None,
    ) -> Generator[Step, None, None]:
        """Repaint the picture step by step: the second half of `decode`.

        To cancel, close the generator or ask for no further step: nothing runs on.

        Args:
            contents: What `read` gave.
            steps: Euler steps of the flow, 1 to 100; None takes the preset's.
            guidance: 1 to 20; None takes the preset's.
            preset: One of `config.PRESETS`.
            seed: Seed of the noise; None takes the file's.

        Yields:
            The steps; the last holds the picture. Same arguments, same machine: same pixels.

        Raises:
            ConfigError: if a number or the preset is wrong; at once, before the first step.
        """
        return self._steps(contents, *self._wanted(contents.stream, preset, steps, guidance, seed))

    def decode(
        self,
        stream: Stream,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        preset: str = "balanced",
        seed: int | None = None,
    ) -> Image.Image:
        """`read` a file and `paint` it to the end. Same arguments, same machine: same pixels.

        Raises:
            BitstreamError: if the file is damaged or of another model.
            ConfigError: if a number or the preset is wrong; before the file is read.
        """
        wanted = self._wanted(check_stream(stream), preset, steps, guidance, seed)
        for step in self._steps(self.read(stream), *wanted):
            picture = step.picture
        assert picture is not None  # the last step has one
        return picture

    def _wanted(
        self,
        stream: Stream,
        preset: str,
        steps: int | None,
        guidance: float | None,
        seed: int | None,
    ) -> tuple[int, float, int]:
        """Steps, guidance and seed, checked: what is None is the preset's or the file's."""
        usual = self.presets[stream.mode][check_choice("preset", preset, PRESETS)]
        guidance = usual.guidance if guidance is None else guidance
        return (
            check_whole("steps", usual.steps if steps is None else steps, 1, MAX_STEPS),
            check_real("guidance", guidance, 1, MAX_GUIDANCE),
            check_whole("seed", stream.seed if seed is None else seed, 0, MAX_SEED),
        )

    @torch.inference_mode()
    def _steps(
        self, contents: Contents, steps: int, guidance: float, seed: int
    ) -> Generator[Step, None, None]:
        stream, modules = contents.stream, self.rates[MODES[contents.stream.mode].rate]
        tokens = torch.from_numpy(contents.tokens)[None].to(self.device)  # (1, h, w)
        codes = modules.quantizer.lookup(tokens)  # (1, D, h, w)
        told = _told(guidance, modules.decoder)  # (1, guidance width)
        start, features = modules.decoder(codes, told)  # (1, 16, H/8, W/8), (1, C, H/8, W/8)
        latents = sample(
            modules.flow,
            Conditions(start, features, modules.text.encode([contents.caption])),
            modules.text.encode([""]),
            times=sigmas(steps, self.shift),
            guidance=guidance,
            noise=draw_noise(start.shape, seed, start.device),
        )
        for index, latent in enumerate(latents, 1):  # (1, 16, H/8, W/8)
            preview = partial(self._picture, stream, latent)
            yield Step(index, steps, preview, preview() if index == steps else None)

    @torch.inference_mode()
    def _picture(self, stream: Stream, latent: Tensor) -> Image.Image:
        return image_io.to_image(self.vae.decode(latent), size=(stream.width, stream.height))


def _told(guidance: float, decoder: HyperDecoder) -> Tensor:
    """(1, guidance width) how a hyper-decoder is told the guidance."""
    value = torch.full((1,), guidance, device=decoder.device)
    return guidance_features(value, decoder.guidance_width)


def _prices(prior: TokenPrior, tile: Tensor, caption: str) -> Tensor:
    """(h, w) tokens -> (K, h, w) bits; by one schedule, so that all send the same tokens."""
    found = prior.choices(tile.cpu().numpy(), caption, schedule=DEFAULT_SCHEDULE)
    return torch.from_numpy(found).to(tile.device)
