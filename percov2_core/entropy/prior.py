"""Token grids <-> the coder's stream, stage by stage, with the integer twin's frequencies.

h x w token grid, N = h * w tokens, K codebook size. Flat positions count row by row.

A grid is coded in one total order: stage by stage, in each stage tile by tile, in each tile along
the schedule's own order. A file that holds k tokens holds the first k of this order, and the
decoder draws the others from the model, see `Draws`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import log2
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from percov2_core.entropy.coder import PRECISION, TOTAL, SymbolReader, SymbolWriter
from percov2_core.entropy.exact import ExactModel
from percov2_core.entropy.masked_model import word_ids
from percov2_core.entropy.schedule import Grid, Ints, Tile
from percov2_core.entropy.session import Session

# The encoder takes stages together up to so many tokens: calls of few tokens cost more than their
# numbers, and of many the numbers are wasted on what each stage hides from the others.
TOKENS_AT_ONCE = 224

# Tokens are drawn in proportion to frequency ** 2 (temperature 1/2): of the powers 1, 2 and 3 it
# came nearest to the true codes, by mean squared distance at 8 x 8. Part of the format.
SAMPLING_POWER = 2

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Decompressed(NamedTuple):
    """What a reader gets."""

    tokens: Ints  # (h, w) in [0, K)
    bits: NDArray[np.float64]  # (h, w) what each token took, 0 where it was drawn


class Step(NamedTuple):
    """One stage of one tile."""

    positions: Ints  # (n,) flat positions in the whole grid
    freqs: NDArray[np.uint32]  # (n, K), each row sums to 2**16


class TokenPrior:
    """The entropy model of one rate."""

    def __init__(self, model: ExactModel) -> None:
        self.model = model
        self.codebook_size = model.config.codebook_size

    def compress(
        self, tokens: Ints, caption: str, *, schedule: str, writer: SymbolWriter, sent: int
    ) -> Iterator[int]:
        """Write the first tokens of a grid, stage by stage, as the iterator is asked.

        Args:
            tokens: (h, w) in [0, K).
            caption: What the reader will know before the tokens.
            schedule: One of `config.SCHEDULES`.
            writer: The stream, open; what is in it already stays.
            sent: How many tokens to write.

        Yields:
            How many are written, from 0 on: where the file may end.
        """
        done = 0
        yield done
        steps = self._walk(tokens, caption, schedule=schedule, sent=sent, full=True)
        while done < sent:
            positions, freqs = next(steps)
            here = positions[: sent - done]
            writer.write(tokens.ravel()[here], freqs[: len(here)])
            done += len(here)
            yield done

    def decompress(
        self, reader: SymbolReader, grid: Grid, *, caption: str, schedule: str, sent: int, seed: int
    ) -> Decompressed:
        """Read the tokens that were sent and draw the others.

        Raises:
            BitstreamError: if the stream is damaged or too short.
        """
        tokens, bits = np.zeros(grid, dtype=np.int64), np.zeros(grid)
        # No token takes less than the likeliest one can: what cannot hold so many is not begun.
        likeliest = TOTAL - self.codebook_size + 1
        if schedule == "uniform":
            likeliest = int(self._uniform(1).max())
        reader.expect(sent, sent * (PRECISION - log2(likeliest)))
        flat, flat_bits, done, draws = tokens.reshape(-1), bits.reshape(-1), 0, None
        known: list[Ints] = []
        for positions, freqs in self._walk(tokens, caption, schedule=schedule, sent=sent):
            count = min(len(positions), sent - done)
            here, drawn = positions[:count], positions[count:]
            flat[here] = reader.read(freqs[:count])
            flat_bits[here] = _bits(freqs[np.arange(count), flat[here]])
            known.append(flat[here])
            done += count
            if len(drawn):
                draws = draws or Draws(seed, caption, np.concatenate(known))
                flat[drawn] = draws.take(freqs[count:])
        return Decompressed(tokens, bits)

    def choices(self, tokens: Ints, caption: str, *, schedule: str) -> NDArray[np.float32]:
        """(h, w) tokens -> (K, h, w) bits that each code would take in each place."""
        bits = np.empty((self.codebook_size, tokens.size), dtype=np.float32)
        steps = self._walk(tokens, caption, schedule=schedule, sent=tokens.size, full=True)
        for positions, freqs in steps:
            bits[:, positions] = _bits(freqs.T)
        return bits.reshape(-1, *tokens.shape)

    def _walk(
        self, tokens: Ints, caption: str, *, schedule: str, sent: int, full: bool = False
    ) -> Iterator[Step]:
        """Yield all stages. `tokens` must hold those of a step before the next is asked for.

        The encoder brings all tokens (`full`), the decoder fills them in: both see the same
        frequencies.
        """
        parts, known = Tile.all_of(tokens.shape), None
        if schedule == "uniform":
            positions = np.concatenate([part.positions for part in parts])[:sent]
            if sent:
                yield Step(positions, self._uniform(sent))
            if sent == tokens.size:
                return
            # Without a model nothing could be drawn: what was not sent follows in `qlds` stages.
            schedule, known = "qlds", np.isin(np.arange(tokens.size), positions)
        words = word_ids(caption, self.model.config)
        walks = [
            self._walk_tile(tokens, words, part, schedule=schedule, known=known, full=full)
            for part in parts
        ]
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
        part: Tile,
        *,
        schedule: str,
        known: NDArray[np.bool_] | None,
        full: bool,
    ) -> Iterator[Step]:
        """Yield the stages of one tile, less what is known already."""
        flat, plan, number = tokens.reshape(-1), part.stages(schedule, known=known), 0
        session = Session(self.model, part.grid, words)
        if known is not None:
            first = plan.pop(0)
            session.reveal(first, flat[part.positions[first]])
        for group in _together(plan) if full else [[here] for here in plan]:
            positions = [part.positions[here] for here in group]
            number += len(group)
            if len(group) > 1:
                found = session.foresee(group, flat[np.concatenate(positions)])
                yield from map(Step, positions, found)
            else:
                yield Step(positions[0], session.frequencies(group[0]))
                if number < len(plan):
                    session.reveal(group[0], flat[positions[0]])

    def _uniform(self, count: int) -> NDArray[np.uint32]:
        """(count, K) frequencies as equal as integers can be."""
        share, rest = divmod(TOTAL, self.codebook_size)
        row = np.full(self.codebook_size, share, dtype=np.uint32)
        row[:rest] += 1
        return np.broadcast_to(row, (count, self.codebook_size))


class Draws:
    """The random numbers of the format: the same tokens are drawn on every machine.

    SplitMix64 (Steele, Lea and Flood 2014), seeded by SHA-256 over the seed, the caption and the
    tokens sent.
    """

    def __init__(self, seed: int, caption: str, sent: Ints) -> None:
        text = f"{seed}\n{len(sent)}\n{' '.join(str(t) for t in sent.tolist())}\n{caption}"
        digest = hashlib.sha256(text.encode()).digest()
        self._state = np.uint64(int.from_bytes(digest[:8], "little"))

    def take(self, freqs: NDArray[np.uint32]) -> Ints:
        """(n, K) frequencies -> (n,) tokens drawn in proportion to frequency ** 2."""
        ends = np.cumsum(freqs.astype(np.uint64) ** np.uint64(SAMPLING_POWER), axis=1)
        # The sum of squares stays below 2**32, so this product fits into 64 bits.
        at = (self._next(len(freqs)) >> np.uint64(32)) * ends[:, -1] >> np.uint64(32)
        found: Ints = (ends <= at[:, None]).sum(axis=1)
        return found

    def _next(self, count: int) -> NDArray[np.uint64]:
        """SplitMix64: (count,) numbers of 64 bits."""
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
