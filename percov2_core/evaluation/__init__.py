"""Measuring codecs on a folder of pictures: one row per codec, setting and picture."""

from __future__ import annotations

import argparse

# Of the picture files in a folder.
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jp2", ".jpeg", ".jpg", ".jxl", ".png"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)


def add_machine(parser: argparse.ArgumentParser) -> None:
    """What `evaluate` and the studies take: the model, the machine, and how many pictures."""
    add = parser.add_argument
    add("--limit", type=at_least_one, metavar="N", help="only the first N pictures")
    add("--model", default="embedded", metavar="NAME_OR_DIR", help="of our codec")
    add("--device", default="cpu", help="cpu, cuda, or auto (one GPU per process)")
    add("--processes", type=at_least_one, default=1, metavar="N", help="that share the work")


def at_least_one(text: str) -> int:
    """A count on the command line; argparse puts the option before the error."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)
