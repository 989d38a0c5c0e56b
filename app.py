"""The web demo: build the page, serve it, load the codec behind it."""

import gc
import os

from percov2_core.errors import PerCoError
from percov2_core.ui import host


def main() -> None:
    # Until the codec is loaded: imports stay, and to look through them takes a tenth of the start.
    gc.disable()
    host.prepare()
    # Only now: they look for their folders, and for a GPU, when they are imported.
    from percov2_core.ui.border import Painters
    from percov2_core.ui.device import LateCodec, with_shared_gpu
    from percov2_core.ui.page import build_demo, launch_options
    from percov2_core.weights import load_codec, open_painter, read_model, warm_up

    model = os.environ.get("PERCOV2_MODEL", "embedded")
    painter = os.environ.get("PERCOV2_PAINTER", "")

    def load():
        codec = load_codec(model)
        warm_up(codec)
        return codec

    try:
        codec = LateCodec(read_model(model), load)
        # The page says whether the second painter can be had; lent GPUs want it in this process.
        if painter or host.has_shared_gpu():
            codec.load()
        painters = Painters(painter, open_painter(codec, painter))
    except PerCoError as error:
        raise SystemExit(f"percov2: {error}") from None
    host.serve(build_demo(with_shared_gpu(codec), painters), codec.load, **launch_options())


if __name__ == "__main__":
    main()
