"""Build the caption language model from captions and from the describer's own sentences.

Its n-gram models have interpolated modified Kneser-Ney smoothing (Chen and Goodman 1999) and are
pruned by weighted difference (Seymore and Rosenfeld 1996). Floats are used here only: what is
saved is integers. V symbols, M n-grams of one length, K contexts (n-grams less their last symbol).
"""

from __future__ import annotations

import gzip
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from percov2_core.caption.describer import VOCABULARY, describe
from percov2_core.caption.language import (
    LETTERS,
    PUNCTUATION,
    RESERVED,
    CaptionLanguage,
    Lexicon,
    Vocabulary,
    Word,
    save_language,
    split,
)
from percov2_core.caption.ngram import (
    BOUNDARY,
    GROUP,
    LEVELS,
    STEPS_PER_OCTAVE,
    NGram,
    Successors,
)
from percov2_core.errors import ConfigError
from percov2_core.evaluation.protocol import list_pictures
from percov2_core.weights.files import LANGUAGE_FILE

if TYPE_CHECKING:
    from percov2_core.training.recipes import RunOptions

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_BASE_FLOOR = 16  # no symbol is less likely than 1 / (16 V), seen in training or not

HELD_OUT = 2000  # last captions of the file, never trained on
_HELD_OUT_PHOTOS = 20  # every 20th photo's sentences are not trained on

_CROPS = 12
_CROP_PX = (192, 256, 384, 512, 768)
_LEAST_COUNT = 2  # a word seen less often is spelled
_FREE_ORDER, _FREE_GAIN = 4, 3.0
_GRAMMAR_ORDER, _GRAMMAR_GAIN = 6, 4.0
_LETTERS_ORDER, _LETTERS_GAIN = 5, 4.0


def train_caption_language(options: RunOptions) -> None:
    """Fit the three models and write their tables. The same data gives the same file."""
    options.refuse_base("caption")
    captions = read_captions(options.needs("captions"))[:-HELD_OUT]
    photos = list_pictures(options.needs("data"))
    sentences = described_crops(p for i, p in enumerate(photos) if i % _HELD_OUT_PHOTOS)
    options.out.mkdir(parents=True, exist_ok=True)
    save_language(build_language(captions, sentences), options.out / LANGUAGE_FILE)


def read_captions(captions_gz: Path) -> list[str]:
    """All lines of a gzipped text, each once; ConfigError if there are too few to hold some out."""
    with gzip.open(captions_gz, "rt", encoding="utf-8") as file:
        lines = list(dict.fromkeys(line.rstrip("\n") for line in file))
    if len(lines) <= 2 * HELD_OUT:
        raise ConfigError(f"captions file holds {len(lines)} lines, needs over {2 * HELD_OUT}")
    return lines


def described_crops(paths: Iterable[Path]) -> list[str]:
    """Sentences about each photo: the whole of it, its mirror image, then random crops."""
    sentences = []
    for number, path in enumerate(paths):
        dice = random.Random(number)
        with Image.open(path) as file:
            photo = file.convert("RGB")
        sentences += [describe(photo), describe(ImageOps.mirror(photo))]
        sentences += [describe(_crop(photo, dice)) for _ in range(_CROPS - 2)]
    return sentences


def _crop(photo: Image.Image, dice: random.Random) -> Image.Image:
    side = min(dice.choice(_CROP_PX), *photo.size)
    left = dice.randint(0, photo.width - side)
    top = dice.randint(0, photo.height - side)
    crop = photo.crop((left, top, left + side, top + side))
    return ImageOps.mirror(crop) if dice.random() < 0.5 else crop


def build_language(captions: Sequence[str], sentences: Sequence[str]) -> CaptionLanguage:
    """Fit all three models."""
    texts = [split(_plain(caption)) for caption in captions]
    counts = Counter(word.text for text in texts for word in text if not word.attached)
    free = _fit_lexicon(_frequent(counts), texts, order=_FREE_ORDER, least_gain=_FREE_GAIN)
    told = [split(sentence) for sentence in sentences]
    grammar = _fit_lexicon(
        tuple(word for word in VOCABULARY if word not in PUNCTUATION),
        told,
        order=_GRAMMAR_ORDER,
        least_gain=_GRAMMAR_GAIN,
    )
    return CaptionLanguage(grammar, free, _fit_letters(counts))


def _plain(caption: str) -> str:
    """Without what the form of a caption tells: a capital in front, a full stop at the end."""
    return caption[:1].lower() + caption[1:].removesuffix(".")


def _frequent(counts: Counter[str]) -> tuple[str, ...]:
    """Words by descending count, ties by spelling."""
    kept = [word for word, count in counts.items() if count >= _LEAST_COUNT and word]
    return tuple(sorted(kept, key=lambda word: (-counts[word], word)))


def _fit_lexicon(
    words: tuple[str, ...], texts: Sequence[Sequence[Word]], *, order: int, least_gain: float
) -> Lexicon:
    words = (*PUNCTUATION, *(word for word in words if word not in PUNCTUATION))
    if (len(words) + RESERVED) % GROUP == 1:
        words = words[:-1]  # a group of one symbol would have nothing to code
    vocabulary = Vocabulary(words)
    sequences = [[vocabulary.symbol(word) for word in text] for text in texts]
    model = fit_ngrams(sequences, len(vocabulary), order=order, least_gain=least_gain)
    return Lexicon(vocabulary, model)


def _fit_letters(counts: Counter[str]) -> NGram:
    """Spellings of all words that occur rarely, because the frequent ones are never spelled."""
    spelled = [word for word in sorted(counts) if counts[word] < 10 * _LEAST_COUNT and word]
    sequences = [[byte + 1 for byte in word.encode()] for word in spelled]
    return fit_ngrams(sequences, LETTERS, order=_LETTERS_ORDER, least_gain=_LETTERS_GAIN)


@dataclass
class _Grams:
    """All n-grams of one length, ascending."""

    length: int
    size: int  # V
    keys: Ints  # (M,) the symbols as digits, base V
    counts: Ints  # (M,) occurrences
    evidence: Ints  # (M,) what smoothing counts: occurrences, or distinct symbols in front
    mass: Floats = field(init=False)  # (M,) discounted share of the context
    rest: Floats = field(init=False)  # (M,) what the context of each n-gram leaves
    chance: Floats = field(init=False)  # (M,) interpolated probability

    def suffixes(self, shorter: _Grams) -> Ints:
        """(M,) index in `shorter` of each n-gram less its first symbol."""
        index: Ints = np.searchsorted(shorter.keys, self.keys % self.size**shorter.length)
        return index


def fit_ngrams(
    sequences: Sequence[Sequence[int]], size: int, *, order: int, least_gain: float
) -> NGram:
    """Fit a model to sequences of symbols in [1, size).

    Args:
        sequences: Without the boundary symbol, which is added at both ends.
        size: V; size**order must fit into 63 bits.
        order: Length of the longest n-gram, the predicted symbol included.
        least_gain: Bits over the whole training text that an n-gram must save to be kept.
    """
    stream, starts = _stream(sequences)
    grams = [_count(stream, starts, size=size, length=n) for n in range(1, order + 1)]
    for shorter, longer in pairwise(grams):
        _count_continuations(shorter, longer)
    _smooth(grams[0], np.full(len(grams[0].keys), 1 / size))
    for shorter, longer in pairwise(grams):
        _smooth(longer, shorter.chance[longer.suffixes(shorter)])
    base = np.full(size, grams[0].rest[0] / size)
    base[grams[0].keys] = grams[0].chance
    base = np.maximum(base, 1 / (_BASE_FLOOR * size))
    orders = [_rounded(n, _gain(s, n) > least_gain) for s, n in pairwise(grams)]
    return NGram(_levels(base), orders)


def _stream(sequences: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """One array with boundaries, and the index of the boundary in front of each symbol."""
    lengths = np.array([len(sequence) + 1 for sequence in sequences])
    flat = [symbol for sequence in sequences for symbol in (*sequence, BOUNDARY)]
    firsts = np.cumsum(lengths) - lengths
    starts = np.concatenate([[0], np.repeat(firsts, lengths)])
    return np.array([BOUNDARY, *flat], dtype=np.int64), starts


def _count(stream: Ints, starts: Ints, *, size: int, length: int) -> _Grams:
    """Count the n-grams that lie within one sequence, its boundaries included."""
    last = np.arange(1, len(stream))
    last = last[last - length + 1 >= starts[1:]]
    keys = np.zeros(len(last), dtype=np.int64)
    for back in range(length - 1, -1, -1):
        keys = keys * size + stream[last - back]
    unique, counts = np.unique(keys, return_counts=True)
    return _Grams(length, size, unique, counts, counts)


def _count_continuations(shorter: _Grams, longer: _Grams) -> None:
    distinct = np.bincount(longer.suffixes(shorter), minlength=len(shorter.keys))
    # Nothing stands in front of the start of a sequence: there, occurrences count.
    shorter.evidence = np.where(distinct > 0, distinct, shorter.counts)


def _smooth(grams: _Grams, shorter_chance: Floats) -> None:
    """Fill in mass, rest and chance from the evidence and the chance of the (M,) suffixes."""
    ones, twos, threes, fours = (np.count_nonzero(grams.evidence == n) + 1 for n in (1, 2, 3, 4))
    common = ones / (ones + 2 * twos)
    many = max(3 - 4 * common * fours / threes, 0.1)
    discounts = np.array([0, 1 - 2 * common * twos / ones, 2 - 3 * common * threes / twos, many])
    discount = np.clip(discounts, 0.1, 2.9)[np.minimum(grams.evidence, 3)]
    left = np.maximum(grams.evidence.astype(np.float64) - discount, 0.05)
    context = _context_index(grams)
    total = np.bincount(context, weights=grams.evidence)[context]
    grams.mass = left / total
    told = np.asarray(np.bincount(context, weights=grams.mass), dtype=np.float64)[context]
    grams.rest = 1 - told
    grams.chance = grams.mass + grams.rest * shorter_chance


def _context_index(grams: _Grams) -> Ints:
    """(M,) 0, 0, 1, ...: the same number for the same context."""
    contexts = grams.keys // grams.size
    return np.cumsum(np.diff(contexts, prepend=contexts[:1]) > 0, dtype=np.int64)


def _gain(shorter: _Grams, longer: _Grams) -> Floats:
    """(M,) bits that each n-gram saves over the training text, against the shorter one alone."""
    alone = (longer.rest + longer.mass) * shorter.chance[longer.suffixes(shorter)]
    bits: Floats = longer.counts.astype(np.float64) * np.log2(longer.chance / alone)
    return bits


def _rounded(grams: _Grams, keep: NDArray[np.bool_]) -> Successors:
    contexts, counts = np.unique(grams.keys[keep] // grams.size, return_counts=True)
    return Successors(
        contexts=contexts,
        ends=np.cumsum(counts),
        symbols=grams.keys[keep] % grams.size,
        levels=_levels(grams.mass[keep]),
    )


def _levels(chances: Floats) -> NDArray[np.uint8]:
    steps = np.rint(-np.log2(chances) * STEPS_PER_OCTAVE - 0.5)
    return np.clip(steps, 0, LEVELS - 1).astype(np.uint8)
