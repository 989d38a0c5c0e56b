"""The `app.py` of this folder, watched and held: `python -m tests.held_page FOLDER SECONDS`.

Painting waits after its first step while FOLDER/hold exists, and files are removed after SECONDS
where that is above 0. FOLDER/gallery takes the place of the page's own. FOLDER/counts holds the
work that was done: a test that measured time instead would fail on a busy machine.
"""

import os
import runpy
import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

from percov2_core.codec import PerCoV2
from percov2_core.entropy.coder import SymbolReader
from percov2_core.entropy.prior import Draws
from percov2_core.flow.transformer import FlowModel
from percov2_core.ui import border, gallery

_LAYOUT = struct.Struct("<QQQ")


class Work(NamedTuple):
    looks: int  # pictures that were encoded
    symbols: int  # tokens and letters that were decoded or drawn
    cells: int  # that were painted, times steps

    @classmethod
    def read(cls, file):
        return cls(*_LAYOUT.unpack(file.read_bytes()))


def hold_while(file):
    forward = FlowModel.forward

    def held(self, x, t, *rest):
        while file.exists() and float(t.max()) < 1:
            time.sleep(0.01)
        return forward(self, x, t, *rest)

    FlowModel.forward = held


def watch(file):
    counts, kept = [0, 0, 0], os.open(file, os.O_RDWR | os.O_CREAT)

    def save():
        os.pwrite(kept, _LAYOUT.pack(*counts), 0)  # in one piece: somebody reads along

    def count(owner, name, place, work):
        method = getattr(owner, name)

        def counted(self, first, *rest, **named):
            counts[place] += work(first)
            save()
            return method(self, first, *rest, **named)

        setattr(owner, name, counted)

    save()
    count(PerCoV2, "looking", 0, lambda image: 1)
    count(SymbolReader, "read", 1, len)
    count(Draws, "take", 1, len)
    count(FlowModel, "forward", 2, lambda x: len(x) * x.shape[-2] * x.shape[-1])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    hold_while(folder / "hold")
    watch(folder / "counts")
    gallery.GALLERY_DIR = folder / "gallery"
    border.KEEP_FILES_S = int(sys.argv[2]) or border.KEEP_FILES_S
    runpy.run_path("app.py", run_name="__main__")
