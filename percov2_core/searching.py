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
from typing import NamedTuple, cast

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

        def draw(known: Codes) -> Tensor:
            *_, latent = self.painter.latents(known, tokens.caption, manner, times)[1]
            assert latent is not None  # the last one
            return self.vae.decode(latent)

        grid = (x.shape[2] // COARSE.token_stride, x.shape[3] // COARSE.token_stride)
        boxes = search_boxes(grid, COARSE.token_stride)
        for number in range(_PASSES):
            said, now = given(tokens)
            grids = _Grids.of(said, now, grid)
            for done, tile in enumerate(boxes, start=1 + number * len(boxes)):
                self._complete(grids, tile, x[_enlarged(tile, COARSE.token_stride)], draw, said)
                tokens = grids.into(tokens, said)
                yield done / (_PASSES * len(boxes) + 1), tokens

    def _complete(
        self,
        grids: _Grids,
        tile: Box,
        x: Tensor,
        draw: Callable[[Codes], Tensor],
        said: Contents,
    ) -> None:
        """Move the tokens of one tile of coarse ones, and of the fine ones below, if they are sent;
        `x` is the picture there."""
        low, high = (self.levels[kind.name] for kind in (COARSE, FINE))
        config = replace(high.search, rounds=_ROUNDS, rate=_BIT)
        below = _enlarged(tile, PARENT_RATIO)
        sent, expected = grids.sent[below], grids.expected[below]

        def look(codes: Tensor, parents: Tensor) -> Tensor:
            return draw(Codes(torch.where(sent > 0, codes, expected), sent, parents))

        if sent.any():
            known = Known(said.caption, grids.coarse[tile][0].cpu().numpy())
            grids.fine[below] = search_tokens(
                grids.fine[below],
                high.quantizer,
                partial(look, parents=low.quantizer.lookup(grids.coarse[tile])),
                x,
                config=config,
                bits=partial(self._bits, FINE, known),
                movable=sent[:, 0] > 0,
            )
        grids.coarse[tile] = search_tokens(
            grids.coarse[tile],
            low.quantizer,
            partial(look, high.quantizer.lookup(grids.fine[below])),
            x,
            config=replace(config, curvature=low.search.curvature),
            bits=partial(self._bits, COARSE, Known(said.caption)),
            movable=~grids.drawn[tile],
        )

    def _bits(self, kind: Level, known: Known, tile: Tensor) -> Tensor:
        """(h, w) tokens -> (K, h, w) what each code would take in each place; in one order, so that
        files of all orders send the same tokens."""
        prior = self.levels[kind.name].prior
        found = prior.choices(tile.cpu().numpy(), known, schedule=DEFAULT_SCHEDULE)
        return torch.from_numpy(found).to(tile.device)


class _Grids(NamedTuple):
    """What a file says, its fine grid up to whole parents as if not sent there."""

    coarse: Tensor  # (1, hp, wp) int64, with those that the decoder draws
    drawn: Tensor  # (1, hp, wp) bool, which these are
    fine: Tensor  # (1, h, w) int64
    sent: Tensor  # (1, 1, h, w) float, 1 where a fine token is
    expected: Tensor  # (1, D, h, w) float, what stands where it is not

    @classmethod
    def of(cls, said: Contents, now: Codes, grid: tuple[int, int]) -> _Grids:
        above = cast(LevelContents, said.coarse)
        coarse, drawn, fine = (
            torch.tensor(values, device=now.fine.device)[None]
            for values in (above.tokens, ~above.sent, said.fine.tokens)
        )
        h, w = (PARENT_RATIO * n - m for n, m in zip(grid, fine.shape[1:], strict=True))
        up = partial(F.pad, pad=(0, w, 0, h))
        return cls(coarse, drawn, up(fine), up(cast(Tensor, now.sent)), up(now.fine))

    def into(self, tokens: Tokens, said: Contents) -> Tokens:
        """The tokens found, with those that are sent as they are here."""
        coarse, fine = (grid[0].cpu().numpy() for grid in (self.coarse, self.fine))
        h, w = said.fine.tokens.shape
        return tokens._replace(
            coarse=_sent(coarse, tokens.coarse, cast(LevelContents, said.coarse)),
            fine=_sent(fine[:h, :w], tokens.fine, said.fine),
        )


def _sent(moved: Ints, found: Ints | None, said: LevelContents) -> Ints | None:
    """What was found, and moved where it is sent."""
    return None if found is None else np.where(said.sent, moved, found)


def _enlarged(box: Box, ratio: int) -> Box:
    _, rows, columns = box
    rows, columns = (slice(ratio * part.start, ratio * part.stop) for part in (rows, columns))
    return (..., rows, columns)
