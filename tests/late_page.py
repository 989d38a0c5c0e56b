"""The `app.py` of this folder, whose codec is not loaded while FILE exists: `python -m
tests.late_page FILE`."""

import runpy
import sys
import time
from pathlib import Path

from percov2_core import weights

load_codec = weights.load_codec


def load_late(name):
    while Path(sys.argv[1]).exists():
        time.sleep(0.01)
    return load_codec(name)


if __name__ == "__main__":
    weights.load_codec = load_late
    runpy.run_path("app.py", run_name="__main__")
