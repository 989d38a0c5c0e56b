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
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from percov2_core import image_io
from percov2_core.bitstream import Cut, Stream, check_value
from percov2_core.caption import packing
from percov2_core.caption.captioner import Captioner
from percov2_core.caption.language import CaptionLanguage
from percov2_core.config import (
    DEFAULT_SCHEDULE,
    MODES,
    PRESETS,
    RATES,
    check_schedule,
    find_mode,
)
from percov2_core.entropy.coder import SymbolReader, SymbolWriter
from percov2_core.entropy.prior import CutPoint, TokenPrior, coding_order, stage_map
from percov2_core.errors import BitstreamError, ConfigError
from percov2_core.flow.sampler import SamplerStep, draw_noise, sample
from percov2_core.flow.text import TextEmbedder
from percov2_core.flow.transformer import Conditions, FlowModel
from percov2_core.hyper.decoder import HyperDecoder
from percov2_core.hyper.encoder import HyperEncoder
from percov2_core.hyper.quantizer import VectorQuantizer
from percov2_core.hyper.search import SearchConfig, search_tokens
from percov2_core.latent.autoencoder import LatentAutoencoder

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


class Bits(NamedTuple):
    """Where the bits of a file went; the sum is 8 x its bytes."""

    header: int
    caption: int
    tokens: int


class Contents(NamedTuple):
    """What a file says, before any picture is painted."""

    caption: str
    tokens: NDArray[np.int64]  # (h, w) in [0, K), those that were not sent are sampled
    sent: NDArray[np.bool_]  # (h, w) True where the token is in the file
    token_bits: NDArray[np.float64]  # (h, w) bits, 0 where the token was not sent
    stages: NDArray[np.int64]  # (h, w) stage of the schedule
    bits: Bits


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

    @property
    def fingerprint(self) -> int:
        """First byte of the model's digest, 0..255."""
        return self.digest[0]

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
        chosen = find_mode(mode)
        rate, modules = RATES[chosen.rate], self.rates[chosen.rate]
        picture = image_io.normalise(image)
        text = self.describe(picture, captioner=captioner) if caption is None else caption

        x = image_io.to_tensor(picture, rate.token_stride).to(self.device)  # (1, 3, H, W)
        latent = self.vae.encode(x)  # (1, 16, H/8, W/8)
        vectors = modules.encoder(latent)  # (1, D, h, w)
        nearest = modules.quantizer.tokens(vectors)  # (1, h, w)
        grid = self._search(nearest, modules, x)[0].cpu().numpy()  # (h, w)

        sent = _tokens_sent(tokens, grid.size, partial=chosen.partial, mode=mode)
        stream = Stream(
            mode=mode,
            schedule=check_schedule(schedule),
            width=picture.width,
            height=picture.height,
            tokens_sent=sent,
            fingerprint=self.fingerprint,
            check=0,
            payload=b"",
            seed=seed,
        )
        return self._pack(stream, grid, text)

    def _search(self, tokens: Tensor, modules: RateModules, x: Tensor) -> Tensor:
        """Improve tokens by what the hyper-decoder's start decodes to, tile by tile."""
        tokens, least = tokens.clone(), torch.ones(1, device=x.device)
        stride = x.shape[-1] // tokens.shape[-1]
        size = SEARCH_TILE_PX // stride
        for top in range(0, tokens.shape[1], size):
            for left in range(0, tokens.shape[2], size):
                rows, columns = slice(top, top + size), slice(left, left + size)
                tokens[:, rows, columns] = search_tokens(
                    tokens[:, rows, columns],
                    modules.quantizer,
                    lambda codes: self.vae.decode(modules.decoder(codes, least).start),
                    x[..., _scaled(rows, stride), _scaled(columns, stride)],
                    config=modules.search,
                )
        return tokens

    def describe(self, image: Image.Image, *, captioner: str | None = None) -> str:
        """Ask a captioner for a caption, by default the one that the model was trained with."""
        text: str = self.captioners(captioner or self.captioner)(image_io.normalise(image))
        return text

    def caption_bits(self, text: str) -> float:
        """Ideal cost of a caption in the file, in bits."""
        return packing.caption_bits(text, self.language)

    def _pack(self, stream: Stream, grid: NDArray[np.int64], caption: str) -> Stream:
        """Entropy-code a grid; the result holds a cut at every stage that was sent."""
        writer = SymbolWriter()
        packing.write_caption(writer, caption, self.language)
        points = [CutPoint(0, writer.snapshot())]
        points += self.rates[MODES[stream.mode].rate].prior.compress(
            grid, caption, schedule=stream.schedule, writer=writer, tokens_sent=stream.tokens_sent
        )
        sent = grid.ravel()[coding_order(stream.schedule, _grid(grid))]
        cuts = []
        if MODES[stream.mode].rate == MODES["hybrid"].rate:
            partial = replace(stream, mode="hybrid")
            cuts = [self._cut(partial, point, sent, caption) for point in points]
        last = self._cut(stream, points[-1], sent, caption)
        return replace(stream, check=last.check, payload=last.payload, cuts=tuple(cuts))

    def _cut(self, stream: Stream, point: CutPoint, sent: NDArray[np.int64], caption: str) -> Cut:
        shorter = replace(stream, tokens_sent=point.tokens)
        check = self._check(shorter, sent[: point.tokens], caption)
        return Cut(point.tokens, check, point.payload)

    def _check(self, stream: Stream, sent: NDArray[np.int64], caption: str) -> int:
        tokens = sent.astype("<u2").tobytes()
        return check_value(stream, caption, tokens=tokens, model=self.digest)

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
        chosen = self._preset(stream.mode, preset)
        steps = _check_steps(chosen.steps if steps is None else steps)
        guidance = _check_guidance(chosen.guidance if guidance is None else guidance)
        tokens, caption, _ = self._unpack(stream)
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
            noise=draw_noise(start.shape, stream.seed if seed is None else seed, start.device),
            scheduler=self.scheduler,
            on_step=self._report(stream, on_step),
        )  # (1, 16, H/8, W/8)
        return self._paint(stream, latent)

    def read(self, stream: Stream) -> Contents:
        """What the file says, without painting the picture.

        Raises:
            BitstreamError: if the file is damaged or of another model.
        """
        tokens, caption, caption_bits = self._unpack(stream)
        order = coding_order(stream.schedule, _grid(tokens))
        sent = np.zeros(tokens.shape, dtype=np.bool_)
        sent.reshape(-1)[order[: stream.tokens_sent]] = True
        prior = self.rates[MODES[stream.mode].rate].prior
        cost = prior.cost(tokens, caption, schedule=stream.schedule)
        payload = 8 * len(stream.payload)
        spent = min(payload, round(caption_bits)) if stream.tokens_sent else payload
        return Contents(
            caption=caption,
            tokens=tokens,
            sent=sent,
            token_bits=np.where(sent, cost, 0.0),
            stages=stage_map(stream.schedule, _grid(tokens)),
            bits=Bits(8 * stream.sizes.header, spent, payload - spent),
        )

    def truncate(
        self, stream: Stream, *, stage: int | None = None, tokens: int | None = None
    ) -> Stream:
        """The hybrid stream of the first stages, or of the first tokens, of any stream.

        Raises:
            ConfigError: if not exactly one of `stage` and `tokens` is given, or it is out of range.
        """
        if (stage is None) == (tokens is None):
            raise ConfigError(f"truncate: give stage or tokens, got {stage} and {tokens}")
        grid, caption, _ = self._unpack(stream)
        if tokens is None:
            return self._pack(stream, grid, caption).truncate(stage or 0)
        if not 0 <= tokens <= stream.tokens_sent:
            raise ConfigError(f"tokens must be in [0, {stream.tokens_sent}], got {tokens}")
        if MODES[stream.mode].rate != MODES["hybrid"].rate:
            raise ConfigError(f"truncate: mode must be ultra-low or hybrid, got {stream.mode}")
        return self._pack(replace(stream, mode="hybrid", tokens_sent=tokens), grid, caption)

    def _unpack(self, stream: Stream) -> tuple[NDArray[np.int64], str, float]:
        """Tokens (h, w), caption, and the caption's bits; everything checked."""
        if stream.fingerprint != self.fingerprint:
            raise BitstreamError(
                f"fingerprint: file was written by a model with {stream.fingerprint:02x}, "
                f"{self.name!r} has {self.fingerprint:02x}"
            )
        rate = MODES[stream.mode].rate
        reader = SymbolReader(stream.payload)
        caption = packing.read_caption(reader, self.language)
        caption_bits = reader.ideal_bits
        tokens = self.rates[rate].prior.decompress(
            reader,
            RATES[rate].grid(stream.height, stream.width),
            caption=caption,
            schedule=stream.schedule,
            tokens_sent=stream.tokens_sent,
            seed=stream.seed,
        )
        reader.close()
        order = coding_order(stream.schedule, _grid(tokens))
        sent = tokens.ravel()[order[: stream.tokens_sent]]
        if (check := self._check(stream, sent, caption)) != stream.check:
            raise BitstreamError(
                f"check value: contents give {check:04x}, file says {stream.check:04x}: "
                "the file is damaged or was written by another entropy model"
            )
        return tokens, caption, caption_bits

    def _preset(self, mode: str, preset: str) -> Preset:
        if preset not in PRESETS:
            raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        return self.presets[mode][preset]

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


def _grid(tokens: NDArray[np.int64]) -> tuple[int, int]:
    return tokens.shape[0], tokens.shape[1]


def _tokens_sent(tokens: int | None, total: int, *, partial: bool, mode: str) -> int:
    if not partial:
        if tokens not in (None, total):
            raise ConfigError(f"tokens: mode {mode!r} sends all {total}, got {tokens}")
        return total
    if tokens is None:
        return 0
    if not 0 <= tokens <= total:
        raise ConfigError(f"tokens must be in [0, {total}], got {tokens}")
    return tokens


def _check_steps(steps: int) -> int:
    if not 1 <= steps <= MAX_STEPS:
        raise ConfigError(f"steps must be in [1, {MAX_STEPS}], got {steps}")
    return steps


def _check_guidance(guidance: float) -> float:
    if not 1 <= guidance <= MAX_GUIDANCE:
        raise ConfigError(f"guidance must be in [1, {MAX_GUIDANCE:g}], got {guidance:g}")
    return guidance
