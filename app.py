"""The web demo: load the codec, build the page, launch."""

import os

from percov2_core import PerCoError, load_codec
from percov2_core.ui.demo import build_demo
from percov2_core.ui.theme import launch_options

if __name__ == "__main__":
    try:
        codec = load_codec(os.environ.get("PERCOV2_MODEL", "embedded"))
    except PerCoError as error:
        raise SystemExit(f"percov2: {error}") from None
    build_demo(codec).launch(**launch_options())
