"""Captions as words, and back, exactly.

Words are what stands between single spaces, with the stops and commas at their ends as words of
their own. `join(split(text)) == text` for every string.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

PUNCTUATION = ",.;:!?"
_CHUNK = re.compile(rf"(.*[^{PUNCTUATION}])([{PUNCTUATION}]*)", re.DOTALL)


class Word(NamedTuple):
    """One word of a caption; `attached` to the one before (a comma) or after a space."""

    text: str
    attached: bool = False


def split(text: str) -> list[Word]:
    """Split at single spaces and before closing punctuation."""
    words = []
    for chunk in text.split(" ") if text else []:
        match = _CHUNK.fullmatch(chunk)
        if match is None:
            words.append(Word(chunk))
        else:
            words.extend([Word(match[1]), *(Word(mark, attached=True) for mark in match[2])])
    return words


def join(words: Iterable[Word]) -> str:
    """Put the words of `split` together again."""
    text = "".join(word.text if word.attached else f" {word.text}" for word in words)
    return text.removeprefix(" ")
