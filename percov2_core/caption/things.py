"""Things that a caption names in front of the rest: "lighthouse and fence: white sky, ...".

`labels.txt` holds the everyday word of each of the 1,000 classes of ImageNet, in their order. An
empty line is a class that is never named: what nobody would call by its name, textures that the
network sees everywhere, underwear, and apes and monkeys, which networks have taken people for.

The words and how many classes share one are part of the file format: a file names a thing by its
place among them. Another word needs a new version of the format.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from importlib.resources import files
from typing import NamedTuple

MOST = 2  # things in a caption
_AND, _COLON = " and ", ": "


class Parted(NamedTuple):
    """A caption in two."""

    things: tuple[str, ...]  # up to `MOST` of `counts()`, none twice
    rest: str


@cache
def classes() -> tuple[str, ...]:
    """The word of each of the 1,000 classes; "" for one that is never named."""
    text = files(__package__).joinpath("labels.txt").read_text(encoding="utf-8")
    return tuple(text.removesuffix("\n").split("\n"))


@cache
def counts() -> dict[str, int]:
    """How many classes each word stands for, in the order in which the words first stand there."""
    return dict(Counter(filter(None, classes())))


def part(caption: str) -> Parted:
    """Take the things off a caption that begins with some."""
    head, colon, rest = caption.partition(_COLON)
    things = tuple(head.split(_AND))
    named = colon and len(things) <= MOST and len(set(things)) == len(things)
    return Parted(things, rest) if named and counts().keys() >= set(things) else Parted((), caption)


def join(parted: Parted) -> str:
    """The caption that `part` took apart."""
    return f"{_AND.join(parted.things)}{_COLON}{parted.rest}" if parted.things else parted.rest
