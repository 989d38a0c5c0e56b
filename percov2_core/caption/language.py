"""The caption language model: words after words, and letters of words that it does not know.

Words are what stands between single spaces, with the stops and commas at their ends as words of
their own. `join(split(text)) == text` for every string.

Three n-gram models in integers: `grammar` for the sentences of the describer, `free` for all
other text, `letters` for the UTF-8 bytes of words that are not in the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from percov2_core.caption.ngram import NGram, Successors
from percov2_core.errors import WeightsError

PUNCTUATION = ",.;:!?"  # stands without a space before it
_MARKS = frozenset(PUNCTUATION)
_CHUNK = re.compile(rf"(.*[^{PUNCTUATION}])([{PUNCTUATION}]*)", re.DOTALL)

UNKNOWN = 1  # the symbol of a word that is spelled; 0 is the boundary
RESERVED = 2
LETTERS = 249  # the boundary and the 248 bytes that UTF-8 uses


class Word(NamedTuple):
    """One word of a caption; `attached` to the one before (a comma) or after a space."""

    text: str
    attached: bool = False


def split(text: str) -> list[Word]:
    """Split at single spaces and before closing punctuation."""
    words = []
    for chunk in text.split(" ") if text else []:
        word, marks = found.groups() if (found := _CHUNK.fullmatch(chunk)) else (chunk, "")
        words += [Word(word), *(Word(mark, attached=True) for mark in marks)]
    return words


def join(words: Iterable[Word]) -> str:
    """Put the words of `split` together again."""
    text = "".join(word.text if word.attached else f" {word.text}" for word in words)
    return text.removeprefix(" ")


@dataclass(frozen=True)
class Vocabulary:
    """The words that are not spelled; word i is symbol RESERVED + i."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if missing := _MARKS - set(self.words):
            problem = f"the marks {sorted(missing)} are not among its words"
            raise WeightsError(f"caption model: {problem}")

    def __len__(self) -> int:
        """How many symbols there are, the reserved ones included."""
        return RESERVED + len(self.words)

    @cached_property
    def _symbols(self) -> dict[str, int]:
        return {word: RESERVED + i for i, word in enumerate(self.words)}

    def symbol(self, word: Word) -> int:
        """The number of a word, or UNKNOWN."""
        known = word.attached == (word.text in _MARKS)
        return self._symbols.get(word.text, UNKNOWN) if known else UNKNOWN

    def word(self, symbol: int) -> Word:
        """The word of a number from RESERVED on."""
        text = self.words[symbol - RESERVED]
        return Word(text, attached=text in _MARKS)


@dataclass(frozen=True)
class Lexicon:
    """A vocabulary and the n-gram model over it."""

    vocabulary: Vocabulary
    model: NGram

    def __post_init__(self) -> None:
        found, wanted = len(self.model.base), len(self.vocabulary)
        if found != wanted:
            problem = f"tables for {found} symbols, the vocabulary has {wanted}"
            raise WeightsError(f"caption model: {problem}")


@dataclass(frozen=True)
class CaptionLanguage:
    """Everything that the caption coder needs."""

    grammar: Lexicon
    free: Lexicon
    letters: NGram


def load_language(path: Path) -> CaptionLanguage:
    """Read a model; WeightsError if the file is missing, damaged or lacks a part."""

    def lexicon(name: str) -> Lexicon:
        words = arrays[f"{name}.words"].tobytes().decode().split("\n")
        return Lexicon(Vocabulary(tuple(words)), _model(name, arrays))

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return CaptionLanguage(lexicon("grammar"), lexicon("free"), _model("letters", arrays))
    except (OSError, ValueError, KeyError, IndexError, BadZipFile) as error:
        raise WeightsError(f"caption model {path.name} cannot be read: {error}") from error


def save_language(language: CaptionLanguage, path: Path) -> None:
    """Write a model, always the same bytes: differences of keys and symbols, in planes of bytes."""
    arrays = {}
    for name, lexicon in (("grammar", language.grammar), ("free", language.free)):
        words = "\n".join(lexicon.vocabulary.words)
        arrays[f"{name}.words"] = np.frombuffer(words.encode(), dtype=np.uint8)
        arrays |= _model_arrays(name, lexicon.model)
    arrays |= _model_arrays("letters", language.letters)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _model_arrays(name: str, model: NGram) -> dict[str, NDArray[np.uint8]]:
    arrays = {f"{name}.base": model.base}
    for length, order in enumerate(model.orders, 1):
        counts = np.diff(order.ends, prepend=0)
        firsts = order.ends - counts
        steps = np.diff(order.symbols, prepend=0)
        steps[firsts] = order.symbols[firsts]
        key = f"{name}.{length}"
        arrays[f"{key}.contexts"] = _planes(np.diff(order.contexts, prepend=0))
        arrays[f"{key}.counts"] = _planes(counts)
        arrays[f"{key}.symbols"] = _planes(steps)
        arrays[f"{key}.levels"] = order.levels
    return arrays


def _model(name: str, arrays: Mapping[str, NDArray[np.uint8]]) -> NGram:
    orders: list[Successors] = []
    while (key := f"{name}.{len(orders) + 1}") + ".levels" in arrays:
        counts = _from_planes(arrays[f"{key}.counts"])
        ends = np.cumsum(counts)
        sums = np.cumsum(_from_planes(arrays[f"{key}.symbols"]))
        before = np.concatenate([[0], sums])[ends - counts]
        contexts = np.cumsum(_from_planes(arrays[f"{key}.contexts"]))
        symbols = sums - np.repeat(before, counts)
        orders.append(Successors(contexts, ends, symbols, levels=arrays[f"{key}.levels"]))
    return NGram(arrays[f"{name}.base"], orders)


def _planes(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(N,) non-negative integers -> (bytes, N), lowest byte first: they compress better so."""
    width = max(1, (int(values.max(initial=0)).bit_length() + 7) // 8)
    return np.stack([(values >> (8 * i)).astype(np.uint8) for i in range(width)])


def _from_planes(planes: NDArray[np.uint8]) -> NDArray[np.int64]:
    shifts = 8 * np.arange(len(planes))[:, None]
    values: NDArray[np.int64] = (planes.astype(np.int64) << shifts).sum(axis=0)
    return values
