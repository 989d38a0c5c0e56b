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

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

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
    LATENT_CHANNELS,
    LATENT_STRIDE,
    MAX_GUIDANCE,
    MAX_STEPS,
    MODES,
    OWN_PAINTER,
    PRESETS,
    Preset,
    check_choice,
    check_real,
    check_whole,
)
from percov2_core.contents import Contents, FileCodec, Tokens, check_stream, holds_few, to_send
from percov2_core.entropy.schedule import Ints
from percov2_core.errors import ConfigError
from percov2_core.flow.sampler import TimesOf
from percov2_core.hyper import stand_ins
from percov2_core.hyper.networks import Codes
from percov2_core.hyper.search import search_boxes
from percov2_core.latent import LatentAutoencoder
from percov2_core.painting import Canvas, Manner, Painter, Step
from percov2_core.repaint import REPAINT_PRESETS, Repainter, usual_strength
from percov2_core.searching import LevelModules, Search

_DEBLOCKED = (2, 32, 32)  # one pass each if less than one in so many fine tokens was sent
_SEARCH_WORK = 10  # what a tile takes to be searched, as a multiple of encoding it


class Found(NamedTuple):
    """One part of `PerCoV2.looking`."""

    share: float  # of the whole work that is done, above 0
    tokens: Tokens | None = None  # all of them, in the last part


@dataclass(kw_only=True, eq=False, repr=False)
class PerCoV2(FileCodec):
    """A loaded model: pictures in, streams out, and back. Make one with `load_codec`."""

    levels: Mapping[str, LevelModules]
    painter: Painter
    vae: LatentAutoencoder
    captioners: Callable[[str], Captioner]  # by the names in `caption.captioner.CAPTIONERS`
    times: TimesOf  # of the flow
    painters: Callable[[str], Repainter]  # by name or folder, see `weights.base.load_repainter`
    presets: Mapping[str, Mapping[str, Preset]]  # by mode and name
    captioner: str = "describer"
    stand_in: stand_ins.StandIn = stand_ins.expected  # for fine tokens that were not sent

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @property
    def search(self) -> Search:
        return Search(levels=self.levels, painter=self.painter, vae=self.vae)

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
        progress: Callable[[float], object] = lambda share: None,
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
            progress: Called with the share of the work that is done, after each part of it.

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
        # What is left out is completed, which takes as long again.
        twice = effort == EFFORTS[-1] and (
            size is not None or 0 < header.sent.fine < header.tokens_total.fine
        )
        found = self.look(
            picture,
            lambda share: progress(share / (1 + twice)),
            caption=caption,
            captioner=captioner,
            effort=effort,
            coarse=size is not None or header.sent.coarse > 0,
            fine=size is not None or header.sent.fine > 0,
            search_fine=size is not None or not holds_few(header),
        )
        put = partial(self.write, mode=mode, count=tokens, size=size, schedule=schedule, seed=seed)
        stream = put(found)
        then = (lambda share: progress((1 + share) / 2)) if twice else (lambda share: None)
        better = self.complete(picture, found, stream, then)
        return stream if better is found else put(better)

    def look(
        self,
        image: Image.Image,
        progress: Callable[[float], object] = lambda share: None,
        **options: Any,
    ) -> Tokens:
        """`looking` to its end: caption and tokens, of which `write` makes files of any size."""
        for part in self.looking(image, **options):
            progress(part.share)
        assert part.tokens is not None  # the last part has them
        return part.tokens

    def looking(
        self,
        image: Image.Image,
        *,
        caption: str | None = None,
        captioner: str | None = None,
        effort: str = DEFAULT_EFFORT,
        coarse: bool = True,
        fine: bool = True,
        search_fine: bool = True,
    ) -> Generator[Found, None, None]:
        """Look at a picture, part by part of a large one: the first half of `encode`.

        To cancel, close the generator or ask for no further part: nothing runs on.

        Args:
            caption, captioner, effort: As in `encode`.
            coarse, fine: Which levels are wanted.
            search_fine: Whether the effort is spent on the fine ones: not needed for a file that
                holds few of them.

        Raises:
            ImageError: if the picture is outside the limits.
            ConfigError: if the caption cannot be sent, or there is no such effort.
        """
        check_choice("effort", effort, EFFORTS)
        picture = image_io.normalise(image)
        said = self.describe(picture, captioner=captioner) if caption is None else caption
        text = packing.check_caption(said)
        return self._looking(picture, text, effort, [coarse, fine], search_fine)

    @torch.no_grad()
    def _looking(
        self,
        picture: Image.Image,
        caption: str,
        effort: str,
        wanted: Sequence[bool],
        search_fine: bool,
    ) -> Generator[Found, None, None]:
        grids: dict[str, Ints | None] = dict.fromkeys((COARSE.name, FINE.name))
        nearest: Ints | None = None
        kinds = [kind for kind, asked in zip((COARSE, FINE), wanted, strict=True) if asked]
        if kinds:
            x = image_io.to_tensor(picture, COARSE.token_stride).to(self.device)  # (1, 3, H, W)
            z = x.new_empty(1, LATENT_CHANNELS, *(n // LATENT_STRIDE for n in x.shape[2:]))
            boxes = {
                k.name: search_boxes(k.grid(*picture.size[::-1]), k.token_stride)
                for k in kinds
                if self.levels[k.name].search.at(effort).rounds and (search_fine or k is COARSE)
            }
            work = [1] * self.vae.count_tiles(*z.shape[2:])
            work += [_SEARCH_WORK] * sum(map(len, boxes.values()))
            shares = iter(np.cumsum(work) / (sum(work) + 1))
            for box, part in self.vae.encode_tiles(x):
                z[box] = part
                yield Found(next(shares))
            for kind in kinds:
                h, w = (kind.token_stride * n for n in kind.grid(*picture.size[::-1]))
                modules = self.levels[kind.name]
                vectors = modules.encoder(z[..., : h // LATENT_STRIDE, : w // LATENT_STRIDE])
                tokens = modules.quantizer.tokens(vectors)  # (1, h, w)
                if kind is FINE and kind.name in boxes:
                    nearest = tokens[0].cpu().numpy().copy()
                for box in boxes.get(kind.name, ()):
                    self.search.move(tokens, box, x[..., :h, :w], kind, caption, effort)
                    yield Found(next(shares))
                grids[kind.name] = tokens[0].cpu().numpy()
        coarse, fine = grids[COARSE.name], grids[FINE.name]
        yield Found(1.0, Tokens(picture.size, caption, coarse, fine, effort, nearest))

    def complete(
        self,
        image: Image.Image,
        tokens: Tokens,
        stream: Stream,
        progress: Callable[[float], object] = lambda share: None,
    ) -> Tokens:
        """`completing` to its end: `tokens` themselves if there is nothing to do."""
        for part in self.completing(image, tokens, stream):
            progress(part.share)
        assert part.tokens is not None  # the last part has them
        return part.tokens

    @torch.no_grad()
    def completing(
        self, image: Image.Image, tokens: Tokens, stream: Stream
    ) -> Generator[Found, None, None]:
        """Move the tokens that a file holds closer to the picture that the decoder completes them
        to (see `searching`), part by part, by the balanced preset. Only where `looking` was asked
        for the effort "best", and coarse tokens and a part of the fine ones are sent.

        Args:
            image, tokens, stream: The picture, what `looking` found, what `write` made of it.
        """
        sent, total = stream.sent, stream.tokens_total
        partly = sent.coarse and 0 < sent.fine < total.fine
        if tokens.effort != EFFORTS[-1] or not partly:
            yield Found(1.0, tokens)
            return
        look = self.presets[stream.mode]["balanced"]
        manner = Manner(0.0, look.steps, look.guidance, stream.seed)
        x = image_io.to_tensor(image_io.normalise(image), COARSE.token_stride).to(self.device)

        def given(tokens: Tokens) -> tuple[Contents, Codes]:
            how: dict[str, Any] = {"schedule": stream.schedule, "seed": stream.seed}
            contents = self.read(self.write(tokens, count=stream.tokens_sent, **how))
            return contents, self._given(contents, manner.guidance)

        tokens = to_send(tokens, stream)
        for share, moved in self.search.completing(x, tokens, given, manner, self.times):
            yield Found(share)
            tokens = moved
        yield Found(1.0, tokens)

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
        painter: str = OWN_PAINTER,
        fidelity: float | None = None,
    ) -> Generator[Step, None, None]:
        """Repaint the picture step by step: the second half of `decode`.

        To cancel, close the generator or ask for no further step: nothing runs on.

        Args:
            contents: What `read` gave.
            steps: Euler steps of the flow, 1 to 100; None takes the preset's.
            guidance: 1 to 20; None takes the preset's.
            preset: One of `config.PRESETS`.
            seed: Seed of the noise; None takes the file's.
            painter: `own` is the model's; `sd3-medium`, `sd3.5-medium` or a folder in diffusers'
                layout repaints its picture. Of a caption alone it paints the caption.
            fidelity: How much of the own picture another painter keeps, 0 to 1; None takes the
                preset's, which is less where less was sent. Of a caption alone nothing.

        Yields:
            The steps; the last holds the picture. Same arguments, same machine: same pixels.

        Raises:
            ConfigError: if a number or a name is wrong; at once, before the first step.
            WeightsError: if the painter cannot be had: says what to accept or set.
        """
        given = (steps, guidance, seed, fidelity)
        return self._painting(contents, *self._wanted(contents.stream, preset, painter, *given))

    def decode(
        self,
        stream: Stream,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        preset: str = "balanced",
        seed: int | None = None,
        painter: str = OWN_PAINTER,
        fidelity: float | None = None,
    ) -> Image.Image:
        """`read` a file and `paint` it to the end. Same arguments, same machine: same pixels.

        Raises:
            BitstreamError: if the file is damaged or of another model.
            ConfigError, WeightsError: as by `paint`; before the file is read.
        """
        given = (steps, guidance, seed, fidelity)
        wanted = self._wanted(check_stream(stream), preset, painter, *given)
        for step in self._painting(self.read(stream), *wanted):
            picture = step.picture
        assert picture is not None  # the last step has one
        return picture

    def _wanted(
        self,
        stream: Stream,
        preset: str,
        painter: str,
        steps: int | None,
        guidance: float | None,
        seed: int | None,
        fidelity: float | None,
    ) -> tuple[Manner, Manner | None, Repainter | None]:
        """How to paint, and to repaint, and who, checked: what is None is the preset's or the
        file's."""
        own = self.presets[stream.mode][check_choice("preset", preset, PRESETS)]
        usual = own if painter == OWN_PAINTER else REPAINT_PRESETS[preset]
        guidance = usual.guidance if guidance is None else guidance
        manner = Manner(
            strength=usual_strength(stream, preset),
            steps=check_whole("steps", usual.steps if steps is None else steps, 1, MAX_STEPS),
            guidance=check_real("guidance", guidance, 1, MAX_GUIDANCE),
            seed=check_whole("seed", stream.seed if seed is None else seed, 0, MAX_SEED),
        )
        if fidelity is not None:
            manner = manner._replace(strength=1 - check_real("fidelity", fidelity, 0, 1))
        if painter == OWN_PAINTER:
            if fidelity is not None:
                raise ConfigError(
                    f"fidelity: needs a painter other than {painter!r}, got {painter!r}"
                )
            return manner, None, None
        first = manner._replace(steps=own.steps, guidance=own.guidance)
        return first, manner, self.painters(painter)

    def _painting(
        self, contents: Contents, first: Manner, then: Manner | None, second: Repainter | None
    ) -> Generator[Step, None, None]:
        stream = contents.stream
        own = self._own(contents, first)
        if then is None or second is None:
            return own
        start = own if stream.tokens_sent else None
        return second.paint(start, contents.caption, (stream.width, stream.height), then)

    @torch.inference_mode()
    def _own(self, contents: Contents, manner: Manner) -> Generator[Step, None, None]:
        stream = contents.stream
        sent, total = stream.sent.fine, stream.tokens_total.fine
        deblock = sum(sent * share < total for share in _DEBLOCKED)
        canvas = Canvas(vae=self.vae, size=(stream.width, stream.height), deblock=deblock)
        given = self._given(contents, manner.guidance)
        yield from self.painter.paint(given, contents.caption, manner, self.times, canvas)

    def _given(self, contents: Contents, guidance: float) -> Codes:
        """What a file says, as vectors."""
        coarse, fine = contents.coarse, contents.fine
        quantizer = self.levels[FINE.name].quantizer
        tokens = torch.from_numpy(fine.tokens)[None].to(self.device)
        codes = quantizer.lookup(tokens)  # (1, D, h, w)
        sent = torch.from_numpy(fine.sent).to(codes)[None, None]  # (1, 1, h, w)
        if contents.guesses is not None:
            guesses = torch.from_numpy(contents.guesses.astype(np.float32)).to(codes.device)
            likely = guesses / guesses.sum(1, keepdim=True)  # (n, K)
            codes = codes.movedim(1, -1).contiguous()  # (1, h, w, D)
            codes[sent[:, 0] == 0] = self.stand_in(likely, quantizer.codebook.float())
            codes = codes.movedim(-1, 1)
        parents = None
        if coarse is not None:
            tokens = torch.from_numpy(coarse.tokens)[None].to(self.device)
            parents = self.levels[COARSE.name].quantizer.lookup(tokens)  # (1, D, hp, wp)
        return self.painter.know(codes, sent, parents, guidance)
