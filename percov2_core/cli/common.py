"""What the commands share: `-` for the standard streams, limits, and the model to use."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TypeAlias

from percov2_core.bitstream import MAX_FILE_BYTES, MAX_SEED, Stream
from percov2_core.errors import ConfigError

# argparse has no public name for what `add_subparsers` returns.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

STANDARD = "-"


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="embedded",
        metavar="NAME_OR_DIR",
        help="embedded (the default), a model folder, or sd3-medium:CHECKPOINT",
    )


def read_stream(name: str) -> Stream:
    """Parse the file `name`, or standard input.

    Raises:
        BitstreamError: if it is no file of this format.
    """
    # One byte over the limit is enough to be refused by name.
    if name == STANDARD:
        return Stream.from_bytes(sys.stdin.buffer.read(MAX_FILE_BYTES + 1))
    with open(name, "rb") as file:
        return Stream.from_bytes(file.read(MAX_FILE_BYTES + 1))


def check_output(name: str) -> None:
    """Refuse an output that cannot be written, before the work is done.

    Raises:
        ConfigError: if its folder does not exist, or if it is a folder.
    """
    if name == STANDARD:
        return
    if not (folder := Path(name).parent).is_dir():
        raise ConfigError(f"output: no folder {str(folder)!r}")
    if Path(name).is_dir():
        raise ConfigError(f"output: must be a file, got the folder {name!r}")


def write_bytes(name: str, data: bytes) -> None:
    """Write to the file `name`, or to standard output."""
    if name == STANDARD:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with open(name, "wb") as file:
        file.write(data)


def report(text: str, *, output: str) -> None:
    """Print a line for people; beside the data when that is on standard output."""
    print(text, file=sys.stderr if output == STANDARD else sys.stdout)


def seed(text: str) -> int:
    """An argparse type: a seed that a file can hold."""
    if not text.isdecimal() or not text.isascii() or len(text) > 10 or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 0 to {MAX_SEED}, got {text!r}"
        )
    return int(text)
