"""PerCoV2 (arXiv 2503.09368), the figure of the paper as two methods.

    image --> autoencoder --> hyper-encoders --> quantisers --> tokens --> entropy models --+
      |                                                                                     +-> file
      +-----> captioner ----> caption ---------------------------------> language model ----+

    file --> tokens --> hyper-decoder --> codes on the latent grid --+
      |                                                              +--> flow --> latent --> image
      +----> caption --> text encoder -------------------------------+

Tokens stand on two levels: coarse ones know colour and layout, fine ones structure. `encode` is the
upper half: `look` (image --> tokens and caption) and `write`, which puts as many of them into a
file as it may hold. `decode` is the lower half: `read` (file --> tokens and caption) and `paint`,
which shows every step of the flow. Both ends at the file are in `contents`.
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
from percov2_core.bitstream import MAX_FILE_BYTES, MAX_SEED, Stream
from percov2_core.caption import packing
from percov2_core.caption.captioner import Captioner
from percov2_core.config import (
    COARSE,
    DEFAULT_EFFORT,
    DEFAULT_SCHEDULE,
    EFFORTS,
    FINE,
    LATENT_STRIDE,
    MAX_GUIDANCE,
    MAX_STEPS,
    MODES,
    PARENT_RATIO,
    PRESETS,
    Level,
    Preset,
    check_choice,
    check_real,
    check_whole,
)
from percov2_core.contents import Contents, FileCodec, FileModules, Tokens, check_stream
from percov2_core.entropy.prior import Known
from percov2_core.entropy.schedule import Ints
from percov2_core.flow.sampler import draw_noise, sample, sigmas
from percov2_core.flow.text import TextEmbedder
from percov2_core.flow.transformer import Conditions, FlowModel, guidance_features
from percov2_core.hyper.networks import Codes, HyperDecoder, HyperEncoder, VectorQuantizer
from percov2_core.hyper.search import SearchConfig, search_tokens
from percov2_core.latent import LatentAutoencoder


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelModules(FileModules):
    """The boxes of the figure that make the tokens of one level."""

    encoder: HyperEncoder
    quantizer: VectorQuantizer
    search: SearchConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Painter:
    """The boxes that paint from the tokens of both levels, whatever of them a file holds."""

    decoder: HyperDecoder
    text: TextEmbedder
    flow: FlowModel


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

    levels: Mapping[str, LevelModules]
    painter: Painter
    vae: LatentAutoencoder
    captioners: Callable[[str], Captioner]  # by the names in `caption.captioner.CAPTIONERS`
    shift: float  # of the flow's times, see `flow.sampler`
    presets: Mapping[str, Mapping[str, Preset]]  # by mode and name
    captioner: str = "describer"

    @property
    def device(self) -> torch.device:
        return self.vae.device

    def encode(
        self,
        image: Image.Image,
        mode: str = "extreme",
        *,
        caption: str | None = None,
        schedule: str = DEFAULT_SCHEDULE,
        tokens: int | None = None,
        size: int | None = None,
        captioner: str | None = None,
        effort: str = DEFAULT_EFFORT,
        seed: int = 0,
    ) -> Stream:
        """Compress a picture: `look` at it and `write` what was found.

        Args:
            image: Any PIL image with sides of 64 to 4096 px.
            mode: Key into `config.MODES`.
            caption: Text to send; None asks the captioner.
            schedule: One of `config.SCHEDULES`.
            tokens: Hybrid only: how many tokens to send, 0 (the default) to all of both levels.
            size: Instead of mode and tokens: the most bytes.
            captioner: Key of `caption.captioner.CAPTIONERS`; None takes the model's.
            effort: One of `config.EFFORTS`: how long to search for tokens; `fast` does not.
            seed: Seed of the decoder's noise; other than 0 it costs bytes.

        Raises:
            ImageError: if the picture is outside the limits.
            ConfigError: if a name or a number is wrong, or no file is that small.
        """
        picture = image_io.normalise(image)
        size = None if size is None else check_whole("size", size, 1, MAX_FILE_BYTES)
        header = Stream.blank(
            picture.size,
            check_choice("mode", mode, MODES),
            self.fingerprint,
            schedule=schedule,
            tokens=tokens,
            seed=seed,
        )
        found = self.look(
            picture,
            caption=caption,
            captioner=captioner,
            effort=effort,
            coarse=size is not None or header.sent.coarse > 0,
            fine=size is not None or header.sent.fine > 0,
        )
        return self.write(found, mode, count=tokens, size=size, schedule=schedule, seed=seed)

    @torch.no_grad()
    def look(
        self,
        image: Image.Image,
        *,
        caption: str | None = None,
        captioner: str | None = None,
        effort: str = DEFAULT_EFFORT,
        coarse: bool = True,
        fine: bool = True,
    ) -> Tokens:
        """Find the caption and the tokens of a picture, from which `write` makes files of any size.

        Args:
            caption, captioner, effort: As in `encode`.
            coarse, fine: Which levels are wanted.

        Raises:
            ImageError: if the picture is outside the limits.
            ConfigError: if the caption cannot be sent, or there is no such effort.
        """
        check_choice("effort", effort, EFFORTS)
        picture = image_io.normalise(image)
        said = self.describe(picture, captioner=captioner) if caption is None else caption
        text = packing.check_caption(said)
        x = image_io.to_tensor(picture, COARSE.token_stride).to(self.device)  # (1, 3, H, W)
        z = self.vae.encode(x) if coarse or fine else x  # (1, 16, H/8, W/8)
        grids = [
            self._search(x, z, level, picture.size, text, effort) if wanted else None
            for level, wanted in ((COARSE, coarse), (FINE, fine))
        ]
        return Tokens(picture.size, text, grids[0], grids[1], effort)

    def _search(
        self,
        x: Tensor,
        z: Tensor,
        kind: Level,
        size: tuple[int, int],
        caption: str,
        effort: str,
    ) -> Ints:
        """(h, w) the tokens of one level, each found as if the other were not there."""
        level, modules = kind.name, self.levels[kind.name]
        h, w = (kind.token_stride * n for n in kind.grid(size[1], size[0]))
        x, z = x[..., :h, :w], z[..., : h // LATENT_STRIDE, : w // LATENT_STRIDE]
        vectors = modules.encoder(z)  # (1, D, h, w)
        nearest = modules.quantizer.tokens(vectors)  # (1, h, w)
        told = _told(1.0, self.painter.decoder)  # (1, guidance width)

        def decode(codes: Tensor) -> Tensor:
            if level == FINE.name:
                given = _codes(codes, torch.ones_like(codes[:, :1]), None)
            else:
                sides = (PARENT_RATIO * n for n in codes.shape[2:])
                fine = codes.new_zeros(*codes.shape[:2], *sides)
                given = Codes(fine, fine[:, :1], codes)
            return self.vae.decode(self.painter.decoder(given, told).start)

        def bits(tile: Tensor) -> Tensor:  # (h, w) -> (K, h, w)
            # By one schedule, so that all send the same tokens.
            known, schedule = Known(caption), DEFAULT_SCHEDULE
            found = modules.prior.choices(tile.cpu().numpy(), known, schedule=schedule)
            return torch.from_numpy(found).to(tile.device)

        config = modules.search.at(effort)
        found = search_tokens(nearest, modules.quantizer, decode, x, config=config, bits=bits)
        tokens: Ints = found[0].cpu().numpy()
        return tokens

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
        stream, modules = contents.stream, self.painter
        told = _told(guidance, modules.decoder)  # (1, guidance width)
        start, features = modules.decoder(self._given(contents), told)  # on the latent grid
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

    def _given(self, contents: Contents) -> Codes:
        """What a file says, as vectors: in place of a token not sent, the code to be expected."""
        coarse, fine = contents.coarse, contents.fine
        quantizer = self.levels[FINE.name].quantizer
        tokens = torch.from_numpy(fine.tokens)[None].to(self.device)
        codes = quantizer.lookup(tokens)  # (1, D, h, w)
        sent = torch.from_numpy(fine.sent).to(codes)[None, None]  # (1, 1, h, w)
        if contents.guesses is not None:
            guesses = torch.from_numpy(contents.guesses.astype(np.float32)).to(codes.device)
            expected = guesses / guesses.sum(1, keepdim=True) @ quantizer.codebook.float()  # (n, D)
            codes = codes.movedim(1, -1).contiguous()  # (1, h, w, D)
            codes[sent[:, 0] == 0] = expected
            codes = codes.movedim(-1, 1)
        parents = None
        if coarse is not None:
            tokens = torch.from_numpy(coarse.tokens)[None].to(self.device)
            parents = self.levels[COARSE.name].quantizer.lookup(tokens)  # (1, D, hp, wp)
        return _codes(codes, sent, parents)

    @torch.inference_mode()
    def _picture(self, stream: Stream, latent: Tensor) -> Image.Image:
        return image_io.to_image(self.vae.decode(latent), size=(stream.width, stream.height))


def _told(guidance: float, decoder: HyperDecoder) -> Tensor:
    """(1, guidance width) how a hyper-decoder is told the guidance."""
    value = torch.full((1,), guidance, device=decoder.device)
    return guidance_features(value, decoder.guidance_width)


def _codes(fine: Tensor, sent: Tensor, parents: Tensor | None) -> Codes:
    """All that the hyper-decoder takes; a coarse level that is left out is zero."""
    if parents is None:
        grid = (-(-n // PARENT_RATIO) for n in fine.shape[2:])
        parents = fine.new_zeros(*fine.shape[:2], *grid)
    return Codes(fine, sent, parents)
