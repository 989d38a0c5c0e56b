"""`app.py` as it is, except for two clocks that a test sets: `python -m tests.held_page FILE S`.

Painting waits after its first step while FILE exists, and files are removed after S seconds
where S is above 0. A file `looks` beside FILE grows by a byte with every picture that is encoded.
"""

import runpy
import sys
import time
from pathlib import Path

from percov2_core.codec import PerCoV2
from percov2_core.flow.transformer import FlowModel
from percov2_core.ui import border

ROOT = Path(__file__).parents[1]


def hold_while(file):
    forward = FlowModel.forward

    def held(self, x, t, *rest):
        while file.exists() and float(t.max()) < 1:
            time.sleep(0.01)
        return forward(self, x, t, *rest)

    FlowModel.forward = held


def count_looks(file):
    look = PerCoV2.look

    def counted(*given, **named):
        with file.open("a") as out:
            out.write(".")
        return look(*given, **named)

    PerCoV2.look = counted


if __name__ == "__main__":
    hold_while(Path(sys.argv[1]))
    count_looks(Path(sys.argv[1]).with_name("looks"))
    border.KEEP_FILES_S = int(sys.argv[2]) or border.KEEP_FILES_S
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
