"""What people type and see: arguments with their limits, help with defaults, progress."""

from __future__ import annotations

import argparse
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias, TypeVar

from percov2_core.config import MAX_GUIDANCE, MAX_SIDE_PX, MAX_STEPS, MIN_SIDE_PX

# argparse has no public name for what `add_subparsers` returns.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

Number = TypeVar("Number", int, float)

PATIENCE_S = 2.0  # what takes less is done before anybody wonders
_WIDTH = 60


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something, lists as they are typed."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, [], ""):
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def add_model(parser: argparse.ArgumentParser, *, more: str = "") -> None:
    names = f"embedded, a model folder, sd3-medium:CHECKPOINT{more}"
    parser.add_argument("--model", default="embedded", metavar="NAME_OR_DIR", help=names)


def add_device(parser: argparse.ArgumentParser) -> None:
    kinds = "cpu or cuda (default: a GPU if there is one)"
    parser.add_argument("--device", type=device, help=kinds)


def within(low: Number, high: Number) -> Callable[[str], Number]:
    """An argparse type: a number in [low, high], whole if they are."""
    kind = type(low)

    def parse(text: str) -> Number:
        with suppress(ValueError):
            if text.isascii() and low <= (number := kind(text)) <= high:
                return number
        named = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"expected {named} from {low} to {high}, got {text!r}")

    return parse


SIDE = within(MIN_SIDE_PX, MAX_SIDE_PX)
STEPS = within(1, MAX_STEPS)
GUIDANCE = within(1.0, MAX_GUIDANCE)


def device(text: str) -> str:
    """An argparse type: what torch calls a device."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:NUMBER, got {text!r}")
    return text


class Progress:
    """A line that says `what` takes so long, on a terminal only; it goes at the context's end. Who
    sets `share`, what part of the work is done, lets it say what is left."""

    def __init__(self, what: str) -> None:
        self.what, self.share = what, 0.0
        self._done = threading.Event()
        self._line = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._line.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._line.is_alive():
            self._line.join()

    def _show(self) -> None:
        start = time.monotonic()
        if self._done.wait(PATIENCE_S):
            return
        with suppress(OSError, ValueError):  # nobody looks any more
            while not self._done.wait(0.5):
                spent_s = time.monotonic() - start
                line = f"{self.what}, {spent_s:.0f} s"
                if 0 < self.share < 1:
                    line += f", about {spent_s * (1 / self.share - 1):.0f} s left"
                print(f"\r{line:<{_WIDTH}}", end="", file=sys.stderr, flush=True)
            print(f"\r{'':<{_WIDTH}}\r", end="", file=sys.stderr, flush=True)
