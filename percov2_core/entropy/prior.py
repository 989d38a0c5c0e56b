"""Token grids <-> the coder's stream, stage by stage, with the integer twin's frequencies.

h x w token grid, N = h * w tokens, K codebook size. Flat positions count row by row.

A grid is coded in one total order: stage by stage, in each stage tile by tile, in each tile along
the schedule's own order. A file that holds k tokens holds the first k of this order, and the
decoder finds the others with the model: on the coarse level it draws them, see `Draws`, on the fine
level it says how likely each code is. Both are integers, the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from math import log2
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from percov2_core.entropy.coder import PRECISION, TOTAL, SymbolReader
from percov2_core.entropy.exact import ExactModel, Floats
from percov2_core.entropy.masked_config import word_ids
from percov2_core.entropy.schedule import Grid, Ints, Tile, coding_order
from percov2_core.entropy.session import Session, read_parents

# The encoder takes stages together up to so many tokens: calls of few tokens cost more than their
# numbers, and of many the numbers are wasted on what each stage hides from the others.
TOKENS_AT_ONCE = 224

# Tokens are drawn in proportion to frequency ** 2 (temperature 1/2): of the powers 1, 2 and 3 it
# came nearest to the true codes, by mean squared distance at 8 x 8. Part of the format.
SAMPLING_POWER = 2

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Known(NamedTuple):
    """What the reader of a grid knows before its tokens."""

    caption: str
    parents: Ints | None = None  # (hp, wp) tokens of the coarser level; None if there are none


class Decompressed(NamedTuple):
    """What a reader gets."""

    tokens: Ints  # (h, w) in [0, K)
    bits: NDArray[np.float64]  # (h, w) what each token took, 0 where it was not sent
    guesses: NDArray[np.uint16] | None  # (n, K) frequencies of the tokens not sent, row by row


class Step(NamedTuple):
    """One stage of one tile."""

    positions: Ints  # (n,) flat positions in the whole grid
    freqs: NDArray[np.uint32]  # (n, K), each row sums to 2**16
    rest: bool = False  # whether these are what no file holds


class TokenPrior:
    """The entropy model of one level."""

    def __init__(self, model: ExactModel) -> None:
        self.model = model
        self.codebook_size = model.config.codebook_size

    def compress(self, tokens: Ints, known: Known, *, schedule: str, sent: int) -> Iterator[Step]:
        """Frequencies of the first `sent` tokens of a grid, (h, w) in [0, K), stage by stage."""
        return self._walk(tokens, known, schedule=schedule, sent=sent, full=True)

    def decompress(
        self,
        reader: SymbolReader,
        grid: Grid,
        known: Known,
        *,
        schedule: str,
        sent: int,
        draws: Draws | None,
    ) -> Decompressed:
        """Read the tokens that were sent and find the others; BitstreamError if the stream is
        damaged or too short. The others are drawn by `draws`, stage by stage; None guesses them,
        all at once: each gets its likeliest token, and `guesses` says how sure that is."""
        tokens, bits = np.zeros(grid, dtype=np.int64), np.zeros(grid)
        # No token takes less than the likeliest one can: what cannot hold so many is not begun.
        likeliest = TOTAL - self.codebook_size + 1
        if schedule == "uniform":
            likeliest = int(self._uniform(1).max())
        reader.expect(sent, sent * (PRECISION - log2(likeliest)))
        flat, flat_bits, done = tokens.reshape(-1), bits.reshape(-1), 0
        guessed: list[tuple[Ints, NDArray[np.uint16]]] = []
        steps = self._walk(tokens, known, schedule=schedule, sent=sent, draw=draws is not None)
        for positions, freqs, rest in steps:
            count = 0 if rest else min(len(positions), sent - done)
            here, others = positions[:count], positions[count:]
            flat[here] = reader.read(freqs[:count])
            flat_bits[here] = _bits(freqs[np.arange(count), flat[here]])
            done += count
            if draws:
                draws.tell(flat[here])
            if draws and len(others):
                flat[others] = draws.take(freqs[count:])
            elif len(others):
                flat[others] = freqs[count:].argmax(axis=1)
                guessed.append((others, freqs[count:].astype(np.uint16)))
        if not guessed:
            return Decompressed(tokens, bits, None)
        places, rows = (np.concatenate(parts) for parts in zip(*guessed, strict=True))
        return Decompressed(tokens, bits, rows[np.argsort(places)])

    def choices(self, tokens: Ints, known: Known, *, schedule: str) -> NDArray[np.float32]:
        """(h, w) tokens -> (K, h, w) bits that each code would take in each place."""
        bits = np.empty((self.codebook_size, tokens.size), dtype=np.float32)
        steps = self.compress(tokens, known, schedule=schedule, sent=tokens.size)
        for positions, freqs, _ in steps:
            bits[:, positions] = _bits(freqs.T)
        return bits.reshape(-1, *tokens.shape)

    def _walk(
        self,
        tokens: Ints,
        known: Known,
        *,
        schedule: str,
        sent: int,
        full: bool = False,
        draw: bool = False,
    ) -> Iterator[Step]:
        """Yield the stages of what is sent, then those to be drawn, or else the rest at once. Both
        sides see the same frequencies: the encoder brings all tokens (`full`) and asks for nothing
        that is not sent; the decoder fills in those of a step before it asks for the next."""
        parts, first = Tile.all_of(tokens.shape), None
        if schedule == "uniform":
            positions = np.concatenate([part.positions for part in parts])[:sent]
            if sent:
                yield Step(positions, self._uniform(sent))
            # Without a model nothing can be found: what was not sent follows in `qlds` stages.
            schedule, first = "qlds", np.isin(np.arange(tokens.size), positions)
        if (full and sent == 0) or (first is not None and (full or sent == tokens.size)):
            return
        asked = coding_order(schedule, tokens.shape)[:sent] if first is None else positions
        within = np.full(tokens.size, draw)
        within[asked] = True
        words = word_ids(known.caption, self.model.config)
        above = read_parents(self.model, known.parents, tokens.shape)
        walk_tile = partial(self._walk_tile, tokens, words, above, within=within, full=full)
        walks = [walk_tile(part, schedule=schedule, first=first) for part in parts]
        while walks:
            # A tile takes no memory before its first turn: a short file that claims a large grid
            # is found out before most of them.
            for walk in list(walks):
                if (step := next(walk, None)) is None:
                    walks.remove(walk)
                else:
                    yield step

    def _walk_tile(
        self,
        tokens: Ints,
        words: list[int],
        above: Floats | None,
        part: Tile,
        *,
        schedule: str,
        first: NDArray[np.bool_] | None,
        within: NDArray[np.bool_],
        full: bool,
    ) -> Iterator[Step]:
        """Yield the stages of one tile as far as `within` goes, less what is known `first`."""
        flat, plan = tokens.reshape(-1), part.stages(schedule, known=first)
        here = None if above is None else above[part.positions]
        session, wanted = Session(self.model, part.grid, words, here), within[part.positions]
        if first is not None:
            session.reveal(plan[0], flat[part.positions[plan[0]]])
            plan = plan[1:]
        nothing = np.zeros(0, dtype=np.int64)  # a tile may be known as a whole
        rest = np.concatenate([nothing, *(here[~wanted[here]] for here in plan)])
        plan = [sent for here in plan if len(sent := here[wanted[here]])]
        for group in _together(plan) if full else [[here] for here in plan]:
            positions = [part.positions[here] for here in group]
            last = group[-1] is plan[-1] and (full or not len(rest))
            if len(group) > 1:
                found = session.foresee(group, flat[np.concatenate(positions)])
                yield from map(Step, positions, found)
            else:
                yield Step(positions[0], session.frequencies(group[0]))
                if not last:
                    session.reveal(group[0], flat[positions[0]])
        if len(rest) and not full:
            freqs = session.frequencies(rest)
            del session  # its memory, before the other tiles take theirs
            yield Step(part.positions[rest], freqs, rest=True)

    def _uniform(self, count: int) -> NDArray[np.uint32]:
        """(count, K) frequencies as equal as integers can be."""
        share, rest = divmod(TOTAL, self.codebook_size)
        row = np.full(self.codebook_size, share, dtype=np.uint32)
        row[:rest] += 1
        return np.broadcast_to(row, (count, self.codebook_size))


class Draws:
    """The random numbers of the format, the same on every machine: SplitMix64 (Steele, Lea and
    Flood 2014), seeded by SHA-256 over the seed, the caption and the tokens sent."""

    def __init__(self, seed: int, caption: str) -> None:
        self._seed, self._caption = seed, caption
        self._sent: list[int] = []
        self._state: np.uint64 | None = None

    def tell(self, sent: Ints) -> None:
        """Say which tokens were sent; all of them before the first is drawn."""
        self._sent += sent.tolist()

    def take(self, freqs: NDArray[np.uint32]) -> Ints:
        """(n, K) frequencies -> (n,) tokens drawn in proportion to frequency ** 2."""
        if self._state is None:
            listed = " ".join(map(str, self._sent))
            text = f"{self._seed}\n{len(self._sent)}\n{listed}\n{self._caption}"
            digest = hashlib.sha256(text.encode()).digest()
            self._state = np.uint64(int.from_bytes(digest[:8], "little"))
        ends = np.cumsum(freqs.astype(np.uint64) ** np.uint64(SAMPLING_POWER), axis=1)
        # The sum of squares stays below 2**32, so this product fits into 64 bits.
        at = (self._next(len(freqs)) >> np.uint64(32)) * ends[:, -1] >> np.uint64(32)
        found: Ints = (ends <= at[:, None]).sum(axis=1)
        return found

    def _next(self, count: int) -> NDArray[np.uint64]:
        """SplitMix64: (count,) numbers of 64 bits."""
        assert self._state is not None
        z = self._state + _GAMMA * np.arange(1, count + 1, dtype=np.uint64)
        self._state = z[-1]
        z = (z ^ (z >> np.uint64(30))) * _MIX[0]
        z = (z ^ (z >> np.uint64(27))) * _MIX[1]
        mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
        return mixed


def _bits(freqs: NDArray[np.uint32]) -> NDArray[np.float64]:
    """What symbols of these frequencies take."""
    bits: NDArray[np.float64] = PRECISION - np.log2(freqs)
    return bits


def _together(plan: list[Ints]) -> list[list[Ints]]:
    """Put stages that follow each other together, as long as they stay small."""
    groups: list[list[Ints]] = []
    for here in plan:
        if groups and len(here) + sum(map(len, groups[-1])) <= TOKENS_AT_ONCE:
            groups[-1].append(here)
        else:
            groups.append([here])
    return groups
