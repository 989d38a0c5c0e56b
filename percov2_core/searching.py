"""The encoder's search for better tokens, over the boxes of the figure that it asks.

`Search.move` takes the tokens of one level as if all were sent. Where a file holds a part of the
fine ones, the decoder expects something in the place of each of the others, and the encoder knows
what: so `Search.completing` moves those that are sent, of both levels, by what the whole painter
makes of them and of what is expected.
D code width, h x w token grid, hp x wp coarse grid, K codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from percov2_core.config import (
    COARSE,
    DEFAULT_SCHEDULE,
    FINE,
    PARENT_RATIO,
    Box,
    Level,
    SearchConfig,
)
from percov2_core.contents import Contents, FileModules, LevelContents, Tokens
from percov2_core.entropy.prior import Known
from percov2_core.entropy.schedule import Ints
from percov2_core.flow.sampler import TimesOf
from percov2_core.hyper.networks import (
    Codes,
    HyperDecoder,
    HyperEncoder,
    VectorQuantizer,
    draw_surrogate,
)
from percov2_core.hyper.search import search_boxes, search_tokens
from percov2_core.latent import LatentAutoencoder
from percov2_core.painting import Manner, Painter

_PASSES = 3  # of `completing`: before each, it is asked anew what is to be expected
_ROUNDS = 2  # of each level, in each tile and pass
_BIT = 5.0  # squared error that one is worth: what the next tokens of such a file gain


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelModules(FileModules):
    """The boxes of the figure that make the tokens of one level."""

    encoder: HyperEncoder
    quantizer: VectorQuantizer
    search: SearchConfig
    surrogate: HyperDecoder | None = None  # stands in for the decoder in the search


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The boxes that are asked."""

    levels: Mapping[str, LevelModules]
    painter: Painter
    vae: LatentAutoencoder

    def move(
        self, tokens: Tensor, box: Box, x: Tensor, kind: Level, caption: str, effort: str
    ) -> None:
        """Improve one tile of a level's tokens, as if the other level were not there."""
        modules = self.levels[kind.name]
        config, surrogate = modules.search.at(effort), None
        if modules.surrogate and config.by_surrogate:
            surrogate = partial(draw_surrogate, modules.surrogate)
        tokens[box] = search_tokens(
            tokens[box],
            modules.quantizer,
            partial(self.decode_codes, level=kind.name),
            x[_enlarged(box, kind.token_stride)],
            config=config,
            bits=partial(self._bits, kind, Known(caption)),
            surrogate=surrogate,
        )

    def decode_codes(self, codes: Tensor, level: str = FINE.name) -> Tensor:
        """(B, D, h, w) codes of one level alone -> (B, 3, H, W) what they say without the flow."""
        if level == FINE.name:
            given = self.painter.know(codes, torch.ones_like(codes[:, :1]), None, 1.0)
        else:
            sides = (PARENT_RATIO * n for n in codes.shape[2:])
            fine = codes.new_zeros(*codes.shape[:2], *sides)
            given = Codes(fine, fine[:, :1], codes)
        return self.vae.decode(self.painter.begin(given, 1.0).start)

    def completing(
        self,
        x: Tensor,
        tokens: Tokens,
        given: Callable[[Tokens], tuple[Contents, Codes]],
        manner: Manner,
        times: TimesOf,
    ) -> Iterator[tuple[float, Tokens]]:
        """Move the tokens that are sent, tile by tile -> the share that is done, and how they are.

        Args:
            x: (1, 3, H, W) float in [-1, 1], the picture, padded to whole coarse tokens.
            given: What a file of such tokens says, in tokens and in vectors.
            manner: How the picture will be painted.
        """

        def draw(sent: Tensor, expected: Tensor, parents: Tensor, codes: Tensor) -> Tensor:
            known = Codes(torch.where(sent > 0, codes, expected), sent, parents)
            *_, latent = self.painter.latents(known, tokens.caption, manner, times)[1]
            assert latent is not None  # the last one
            return self.vae.decode(latent)

        low, high = (self.levels[kind.name] for kind in (COARSE, FINE))
        config = replace(high.search, rounds=_ROUNDS, rate=_BIT)
        hp, wp = (side // COARSE.token_stride for side in x.shape[2:])
        boxes = search_boxes((hp, wp), COARSE.token_stride)
        for number in range(_PASSES):
            said, now = given(tokens)
            above = cast(LevelContents, said.coarse)  # with those that the decoder draws
            coarse, drawn, fine = (
                torch.tensor(grid, device=x.device)[None]
                for grid in (above.tokens, ~above.sent, said.fine.tokens)
            )
            h, w = fine.shape[1:]
            # Up to whole parents, as if not sent.
            up = partial(F.pad, pad=(0, PARENT_RATIO * wp - w, 0, PARENT_RATIO * hp - h))
            fine, expected, sent = up(fine), up(now.fine), up(cast(Tensor, now.sent))
            for done, tile in enumerate(boxes, start=1 + number * len(boxes)):
                below, pixels = _enlarged(tile, PARENT_RATIO), _enlarged(tile, COARSE.token_stride)
                look = partial(draw, sent[below], expected[below])
                known = Known(tokens.caption, coarse[tile][0].cpu().numpy())
                if sent[below].any():
                    fine[below] = search_tokens(
                        fine[below],
                        high.quantizer,
                        partial(look, low.quantizer.lookup(coarse[tile])),
                        x[pixels],
                        config=config,
                        bits=partial(self._bits, FINE, known),
                        movable=sent[below][:, 0] > 0,
                    )
                coarse[tile] = search_tokens(
                    coarse[tile],
                    low.quantizer,
                    partial(look, codes=high.quantizer.lookup(fine[below])),
                    x[pixels],
                    config=replace(config, curvature=low.search.curvature),
                    bits=partial(self._bits, COARSE, Known(tokens.caption)),
                    movable=~drawn[tile],
                )
                moved = coarse[0].cpu().numpy(), fine[0, :h, :w].cpu().numpy()
                tokens = tokens._replace(
                    coarse=_sent(moved[0], tokens.coarse, above),
                    fine=_sent(moved[1], tokens.fine, said.fine),
                )
                yield done / (_PASSES * len(boxes) + 1), tokens

    def _bits(self, kind: Level, known: Known, tile: Tensor) -> Tensor:
        """(h, w) tokens -> (K, h, w) what each code would take in each place; in one order, so that
        files of all orders send the same tokens."""
        prior = self.levels[kind.name].prior
        found = prior.choices(tile.cpu().numpy(), known, schedule=DEFAULT_SCHEDULE)
        return torch.from_numpy(found).to(tile.device)


def _sent(moved: Ints, found: Ints | None, said: LevelContents) -> Ints | None:
    """What was found, and moved where it is sent."""
    return None if found is None else np.where(said.sent, moved, found)


def _enlarged(box: Box, ratio: int) -> Box:
    _, rows, columns = box
    rows, columns = (slice(ratio * part.start, ratio * part.stop) for part in (rows, columns))
    return (..., rows, columns)
