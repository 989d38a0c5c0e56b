"""`app.py` as it is, counting its work: `python -m tests.hostile.watched_page COUNTS HOLD`.

COUNTS holds the tokens and letters that were decoded or drawn so far, and the cells that were
painted times steps: a test that measured time instead would fail on a busy machine. HOLD stops
painting, see `tests.held_page`.
"""

from __future__ import annotations

import os
import runpy
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

from percov2_core.entropy.coder import SymbolReader
from percov2_core.entropy.prior import Draws
from percov2_core.flow.transformer import FlowModel
from tests.held_page import ROOT, hold_while

_LAYOUT = struct.Struct("<QQ")


class Work(NamedTuple):
    """Counts since the start."""

    symbols: int
    cells: int

    @classmethod
    def read(cls, file: Path) -> Work:
        return cls(*_LAYOUT.unpack(file.read_bytes()))


def watch(file: Path) -> None:
    counts, kept = [0, 0], os.open(file, os.O_RDWR | os.O_CREAT)

    def save() -> None:
        os.pwrite(kept, _LAYOUT.pack(*counts), 0)  # in one piece: somebody reads along

    def count(owner: type, name: str, place: int) -> None:
        method = getattr(owner, name)

        def counted(self: Any, first: Any, *rest: Any, **named: Any) -> Any:
            counts[place] += len(first) * (first.shape[-2] * first.shape[-1] if place else 1)
            save()
            return method(self, first, *rest, **named)

        setattr(owner, name, counted)

    save()
    count(SymbolReader, "read", 0)
    count(Draws, "take", 0)
    count(FlowModel, "forward", 1)


if __name__ == "__main__":
    hold_while(Path(sys.argv[2]))
    watch(Path(sys.argv[1]))
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
