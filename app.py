"""The web demo: load the codec, build the page, serve it."""

import gc
import os

from percov2_core.errors import PerCoError
from percov2_core.ui import host


def main() -> None:
    gc.disable()  # imports stay: to look through them for garbage takes a tenth of the start
    host.prepare()
    # Only now: they look for their folders, and for a GPU, when they are imported.
    from percov2_core.ui.border import Painters
    from percov2_core.ui.device import with_shared_gpu
    from percov2_core.ui.page import build_demo, launch_options
    from percov2_core.weights import load_codec, open_painter, warm_up

    try:
        codec = load_codec(os.environ.get("PERCOV2_MODEL", "embedded"))
        warm_up(codec)
        painter = os.environ.get("PERCOV2_PAINTER", "")
        painters = Painters(painter, open_painter(codec, painter))
    except PerCoError as error:
        raise SystemExit(f"percov2: {error}") from None
    gc.freeze()
    gc.enable()
    host.serve(build_demo(with_shared_gpu(codec), painters), **launch_options())


if __name__ == "__main__":
    main()
