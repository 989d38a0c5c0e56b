"""`app.py` as it is, except that painting waits after its first step while a file is there.

`python -m tests.held_page FILE`: a test that makes the file decides how long a step takes.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from percov2_core.flow.transformer import FlowModel

ROOT = Path(__file__).parents[1]


def hold_while(file: Path) -> None:
    forward = FlowModel.forward

    def held(self: FlowModel, x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        while file.exists() and float(t.max()) < 1:
            time.sleep(0.01)
        return forward(self, x, t, *rest)

    FlowModel.forward = held


if __name__ == "__main__":
    hold_while(Path(sys.argv[1]))
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
