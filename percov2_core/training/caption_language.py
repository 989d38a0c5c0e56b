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

from percov2_core.caption import language
from percov2_core.caption.describer import VOCABULARY, describe
from percov2_core.caption.language import PUNCTUATION, CaptionLanguage, Lexicon, Vocabulary, Word
from percov2_core.caption.ngram import BOUNDARY, GROUP, LEVELS, STEPS_PER_OCTAVE, NGram, Successors
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

_CROPS, _CROP_PX = 12, (192, 256, 384, 512, 768)
_LEAST_COUNT = 2  # a word seen less often is spelled
# Order and least gain of the n-grams, see `fit_ngrams`.
_FREE, _GRAMMAR, _LETTERS = (4, 3.0), (6, 4.0), (5, 4.0)


def train_caption_language(options: RunOptions) -> None:
    """Fit the three models and write their tables. The same data gives the same file."""
    options.refuse_base("caption")
    captions = read_captions(options.needs("captions"))[:-HELD_OUT]
    photos = list_pictures(options.needs("data"))
    sentences = described_crops(p for i, p in enumerate(photos) if i % _HELD_OUT_PHOTOS)
    options.out.mkdir(parents=True, exist_ok=True)
    language.save_language(build_language(captions, sentences), options.out / LANGUAGE_FILE)


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
    # Without what the form of a caption tells: a capital in front, a full stop at the end.
    plain = (caption[:1].lower() + caption[1:].removesuffix(".") for caption in captions)
    texts = [language.split(caption) for caption in plain]
    counts = Counter(word.text for text in texts for word in text if not word.attached)
    kept = [word for word, count in counts.items() if count >= _LEAST_COUNT and word]
    frequent = sorted(kept, key=lambda word: (-counts[word], word))
    told = [language.split(sentence) for sentence in sentences]
    # Frequent words are never spelled.
    rare = [word for word in sorted(counts) if counts[word] < 10 * _LEAST_COUNT and word]
    spelled = [[byte + 1 for byte in word.encode()] for word in rare]
    return CaptionLanguage(
        grammar=_fit_lexicon(VOCABULARY, told, *_GRAMMAR),
        free=_fit_lexicon(frequent, texts, *_FREE),
        letters=fit_ngrams(spelled, language.LETTERS, order=_LETTERS[0], least_gain=_LETTERS[1]),
    )


def _fit_lexicon(
    words: Iterable[str], texts: Sequence[Sequence[Word]], order: int, least_gain: float
) -> Lexicon:
    words = (*PUNCTUATION, *(word for word in words if word not in PUNCTUATION))
    if (len(words) + language.RESERVED) % GROUP == 1:
        words = words[:-1]  # a group of one symbol would have nothing to code
    vocabulary = Vocabulary(words)
    sequences = [[vocabulary.symbol(word) for word in text] for text in texts]
    model = fit_ngrams(sequences, len(vocabulary), order=order, least_gain=least_gain)
    return Lexicon(vocabulary, model)


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
    """Fit a model to sequences of symbols in [1, V), without the boundary at their ends.
    `size` is V, and V ** `order`, the length of the longest n-gram, must fit into 63 bits;
    `least_gain` is how many bits over the whole training text an n-gram must save to be kept."""
    lengths = np.array([len(sequence) + 1 for sequence in sequences])
    flat = [symbol for sequence in sequences for symbol in (*sequence, BOUNDARY)]
    stream = np.array([BOUNDARY, *flat], dtype=np.int64)
    # Where the boundary in front of each symbol stands.
    starts = np.concatenate([[0], np.repeat(np.cumsum(lengths) - lengths, lengths)])
    grams = [_count(stream, starts, size=size, length=n) for n in range(1, order + 1)]
    for shorter, longer in pairwise(grams):
        distinct = np.bincount(longer.suffixes(shorter), minlength=len(shorter.keys))
        # Nothing stands in front of the start of a sequence: there, occurrences count.
        shorter.evidence = np.where(distinct > 0, distinct, shorter.counts)
    _smooth(grams[0], np.full(len(grams[0].keys), 1 / size))
    for shorter, longer in pairwise(grams):
        _smooth(longer, shorter.chance[longer.suffixes(shorter)])
    base = np.full(size, grams[0].rest[0] / size)
    base[grams[0].keys] = grams[0].chance
    base = np.maximum(base, 1 / (_BASE_FLOOR * size))
    orders = [_rounded(n, _gain(s, n) > least_gain) for s, n in pairwise(grams)]
    return NGram(_levels(base), orders)


def _count(stream: Ints, starts: Ints, *, size: int, length: int) -> _Grams:
    """Count the n-grams that lie within one sequence, its boundaries included."""
    last = np.arange(1, len(stream))
    last = last[last - length + 1 >= starts[1:]]
    keys = np.zeros(len(last), dtype=np.int64)
    for back in range(length - 1, -1, -1):
        keys = keys * size + stream[last - back]
    unique, counts = np.unique(keys, return_counts=True)
    return _Grams(length, size, unique, counts, counts)


def _smooth(grams: _Grams, shorter_chance: Floats) -> None:
    """Fill in mass, rest and chance from the evidence and the chance of the (M,) suffixes."""
    ones, twos, threes, fours = (np.count_nonzero(grams.evidence == n) + 1 for n in (1, 2, 3, 4))
    common = ones / (ones + 2 * twos)
    many = max(3 - 4 * common * fours / threes, 0.1)
    discounts = np.array([0, 1 - 2 * common * twos / ones, 2 - 3 * common * threes / twos, many])
    discount = np.clip(discounts, 0.1, 2.9)[np.minimum(grams.evidence, 3)]
    left = np.maximum(grams.evidence.astype(np.float64) - discount, 0.05)
    contexts = grams.keys // grams.size  # numbered 0, 0, 1, ...
    context = np.cumsum(np.diff(contexts, prepend=contexts[:1]) > 0, dtype=np.int64)
    total = np.bincount(context, weights=grams.evidence)[context]
    grams.mass = left / total
    told = np.asarray(np.bincount(context, weights=grams.mass), dtype=np.float64)[context]
    grams.rest = 1 - told
    grams.chance = grams.mass + grams.rest * shorter_chance


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
