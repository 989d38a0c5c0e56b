"""PerCoV2 (arXiv 2503.09368), the figure of the paper as two methods.

    image --> autoencoder --> hyper-encoder --> quantiser --> tokens --> entropy model --+
      |                                                                                  +--> file
      +-----> captioner ----> caption --------------------------------> language model --+

    file --> tokens --> hyper-decoder --> codes on the latent grid --+
      |                                                              +--> flow --> latent --> image
      +----> caption --> text encoder -------------------------------+

`encode` is the upper half, `write` its end: tokens and caption --> file. `decode` is the lower
half: `read` (file --> tokens and caption) and `paint`, which shows every step of the flow.
H x W pixels (padded to whole tokens), D code width, h x w token grid, K codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from percov2_core import image_io
from percov2_core.bitstream import MAX_SEED, Cut, Stream, check_value
from percov2_core.caption import packing
from percov2_core.caption.captioner import Captioner
from percov2_core.caption.language import CaptionLanguage
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
    quoted,
)
from percov2_core.entropy.coder import SymbolReader, SymbolWriter
from percov2_core.entropy.prior import TokenPrior
from percov2_core.entropy.schedule import Ints, coding_order, stage_map
from percov2_core.errors import BitstreamError, ConfigError
from percov2_core.flow.sampler import draw_noise, sample, sigmas
from percov2_core.flow.text import TextEmbedder
from percov2_core.flow.transformer import Conditions, FlowModel, guidance_features
from percov2_core.hyper.networks import HyperDecoder, HyperEncoder, VectorQuantizer
from percov2_core.hyper.search import SearchConfig, search_tokens
from percov2_core.latent import LatentAutoencoder


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

    stream: Stream  # the file itself
    caption: str
    tokens: Ints  # (h, w) in [0, K), those that were not sent are sampled
    sent: NDArray[np.bool_]  # (h, w) True where the token is in the file
    token_bits: NDArray[np.float64]  # (h, w) bits, 0 where the token was not sent
    stages: Ints  # (h, w) stage of the schedule
    bits: Bits


@dataclass(frozen=True, slots=True)
class Step:
    """One step of `PerCoV2.paint`."""

    index: int  # 1..total
    total: int
    preview: Callable[[], Image.Image]  # the picture that the flow is heading for
    picture: Image.Image | None = None  # the finished picture, in the last step


@dataclass(kw_only=True, eq=False, repr=False)
class PerCoV2:
    """A loaded model: pictures in, streams out, and back. Make one with `load_codec`."""

    name: str
    digest: bytes
    vae: LatentAutoencoder
    rates: Mapping[str, RateModules]
    language: CaptionLanguage
    captioners: Callable[[str], Captioner]  # by the names in `caption.captioner.CAPTIONERS`
    shift: float  # of the flow's times, see `flow.sampler`
    presets: Mapping[str, Mapping[str, Preset]]  # by mode and name
    captioner: str = "describer"

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @property
    def fingerprint(self) -> int:
        """First byte of the model's digest, 0..255."""
        return self.digest[0]

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

    def caption_bits(self, text: str) -> float:
        """Ideal cost of a caption in the file, in bits."""
        return packing.caption_bits(text, self.language)

    def write(self, header: Stream, tokens: Ints, caption: str) -> Stream:
        """Put a caption and the first of (h, w) tokens in [0, K) into a file: the end of `encode`.

        The header (see `Stream.blank`) gets a payload and a check value and, where the file may be
        cut, a cut at every stage.

        Raises:
            ConfigError: if the tokens are not such, or the caption cannot be written.
        """
        prior = self.rates[MODES[header.mode].rate].prior
        size, (h, w) = prior.codebook_size, header.grid
        if tokens.shape != (h, w) or not 0 <= tokens.min() <= tokens.max() < size:
            raise ConfigError(f"tokens must be {h} x {w} numbers in [0, {size})")
        writer, cuts = SymbolWriter(), []
        packing.write_caption(writer, caption, self.language)
        ordered = tokens.ravel()[coding_order(header.schedule, header.grid)]  # (N,)
        for written in prior.compress(
            tokens, caption, schedule=header.schedule, writer=writer, sent=header.tokens_sent
        ):
            if header.may_be_cut:
                shorter = replace(header, mode="hybrid", tokens_sent=written)
                check = self._check(shorter, ordered, caption)
                cuts.append(Cut(written, check, writer.finish()))
        check = self._check(header, ordered, caption)
        return replace(header, check=check, payload=writer.finish(), cuts=tuple(cuts))

    def truncate(
        self, stream: Stream, *, stage: int | None = None, tokens: int | None = None
    ) -> Stream:
        """The hybrid stream of the first stages, or of the first tokens, of any stream.

        Raises:
            ConfigError: if not exactly one of `stage` and `tokens` is given, it is out of range,
                or the mode does not allow it.
            BitstreamError: if the file is damaged or of another model.
        """
        if (stage is None) == (tokens is None):
            got = f"{quoted(stage)} and {quoted(tokens)}"
            raise ConfigError(f"truncate: give stage or tokens, got {got}")
        header = _check_stream(stream)
        header.check_may_be_cut()
        if tokens is not None:
            left = check_whole("tokens", tokens, 0, stream.tokens_sent)
            header = replace(stream, mode="hybrid", tokens_sent=left)
        contents = self.read(stream)
        written = self.write(header, contents.tokens, contents.caption)
        return written if stage is None else written.truncate(stage)

    def read(self, stream: Stream) -> Contents:
        """What a file says, and what each part of it costs: the first half of `decode`.

        Raises:
            BitstreamError: if the file is damaged or of another model.
        """
        if _check_stream(stream).fingerprint != self.fingerprint:
            raise BitstreamError(
                f"fingerprint: file was written by a model with {stream.fingerprint:02x}, "
                f"{self.name!r} has {self.fingerprint:02x}"
            )
        reader = SymbolReader(stream.payload)
        caption = packing.read_caption(reader, self.language)
        caption_bits = reader.ideal_bits
        tokens, token_bits = self.rates[MODES[stream.mode].rate].prior.decompress(
            reader,
            stream.grid,
            caption=caption,
            schedule=stream.schedule,
            sent=stream.tokens_sent,
            seed=stream.seed,
        )  # (h, w), (h, w)
        reader.close()
        order = coding_order(stream.schedule, stream.grid)
        if (check := self._check(stream, tokens.ravel()[order], caption)) != stream.check:
            raise BitstreamError(
                f"check value: contents give {check:04x}, file says {stream.check:04x}: "
                "the file is damaged or was written by another entropy model"
            )
        sent = np.zeros(stream.grid, dtype=np.bool_)
        sent.reshape(-1)[order[: stream.tokens_sent]] = True
        payload = 8 * len(stream.payload)
        spent = min(payload, round(caption_bits)) if stream.tokens_sent else payload
        return Contents(
            stream=stream,
            caption=caption,
            tokens=tokens,
            sent=sent,
            token_bits=token_bits,
            stages=stage_map(stream.schedule, stream.grid),
            bits=Bits(8 * stream.sizes.header, spent, payload - spent),
        )

    def _check(self, stream: Stream, ordered: Ints, caption: str) -> int:
        """Check value of a stream that holds the first of these tokens, (N,) in coding order."""
        tokens = ordered[: stream.tokens_sent].astype("<u2").tobytes()
        return check_value(stream, caption, tokens=tokens, model=self.digest)

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
        wanted = self._wanted(_check_stream(stream), preset, steps, guidance, seed)
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


def _check_stream(stream: Stream) -> Stream:
    """Return `stream` if it is one, and not the bytes of a file: else a ConfigError."""
    if not isinstance(stream, Stream):
        kind = type(stream).__name__
        raise ConfigError(f"stream must be a Stream (see Stream.from_bytes), got {kind}")
    return stream


def _told(guidance: float, decoder: HyperDecoder) -> Tensor:
    """(1, guidance width) how a hyper-decoder is told the guidance."""
    value = torch.full((1,), guidance, device=decoder.device)
    return guidance_features(value, decoder.guidance_width)


def _prices(prior: TokenPrior, tile: Tensor, caption: str) -> Tensor:
    """(h, w) tokens -> (K, h, w) bits; by one schedule, so that all send the same tokens."""
    found = prior.choices(tile.cpu().numpy(), caption, schedule=DEFAULT_SCHEDULE)
    return torch.from_numpy(found).to(tile.device)
