"""Build the caption language model from captions and from the describer's own sentences."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

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
from percov2_core.caption.ngram import GROUP, NGram
from percov2_core.errors import ConfigError
from percov2_core.evaluation.protocol import list_pictures
from percov2_core.training.ngram_fit import fit

HELD_OUT = 2000  # last captions of the file, never trained on
HELD_OUT_PHOTOS = 20  # every 20th photo's sentences are not trained on

_CROPS = 12
_CROP_PX = (192, 256, 384, 512, 768)
_LEAST_COUNT = 2  # a word seen less often is spelled
_FREE_ORDER, _FREE_GAIN = 4, 3.0
_GRAMMAR_ORDER, _GRAMMAR_GAIN = 6, 4.0
_LETTERS_ORDER, _LETTERS_GAIN = 5, 4.0


def train_caption_language(captions_gz: Path, photos_dir: Path, out_file: Path) -> CaptionLanguage:
    """Fit the three models and write them. The same data gives the same file.

    Args:
        captions_gz: One caption per line, UTF-8, gzip.
        photos_dir: Photos whose random crops are described.
        out_file: Gets the tables (.npz).
    """
    captions = read_captions(captions_gz)[:-HELD_OUT]
    sentences = described_crops(training_photos(photos_dir))
    language = build_language(captions, sentences)
    save_language(language, out_file)
    return language


def read_captions(captions_gz: Path) -> list[str]:
    """All lines, each text once.

    Raises:
        ConfigError: if there are too few to hold some out.
    """
    with gzip.open(captions_gz, "rt", encoding="utf-8") as file:
        lines = list(dict.fromkeys(line.rstrip("\n") for line in file))
    if len(lines) <= 2 * HELD_OUT:
        raise ConfigError(f"captions file holds {len(lines)} lines, needs over {2 * HELD_OUT}")
    return lines


def training_photos(photos_dir: Path) -> list[Path]:
    """All photos but the held-out ones."""
    return [path for i, path in enumerate(list_pictures(photos_dir)) if i % HELD_OUT_PHOTOS]


def held_out_photos(photos_dir: Path) -> list[Path]:
    """Photos whose sentences the models are measured on."""
    return list_pictures(photos_dir)[::HELD_OUT_PHOTOS]


def described_crops(paths: Iterable[Path], *, crops: int = _CROPS) -> list[str]:
    """Sentences about each photo: the whole of it, its mirror image, then random crops."""
    sentences = []
    for number, path in enumerate(paths):
        dice = random.Random(number)
        with Image.open(path) as file:
            photo = file.convert("RGB")
        sentences += [describe(photo), describe(ImageOps.mirror(photo))]
        sentences += [describe(_crop(photo, dice)) for _ in range(crops - 2)]
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
    model = fit(sequences, len(vocabulary), order=order, least_gain=least_gain)
    return Lexicon(vocabulary, model)


def _fit_letters(counts: Counter[str]) -> NGram:
    """Spellings of all words that occur rarely, because the frequent ones are never spelled."""
    spelled = [word for word in sorted(counts) if counts[word] < 10 * _LEAST_COUNT and word]
    sequences = [[byte + 1 for byte in word.encode()] for word in spelled]
    return fit(sequences, LETTERS, order=_LETTERS_ORDER, least_gain=_LETTERS_GAIN)
