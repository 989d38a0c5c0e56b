"""How often a painted picture, encoded again, gives back its tokens.

`python -m tests.agreement KODAK` prints, for files of at most so many bytes at both ends of the
presets, the mean share of the tokens sent that come back, by level.
"""

import sys
from pathlib import Path

import numpy as np

from percov2_core import load_codec
from percov2_core.evaluation.protocol import find_pictures
from percov2_core.evaluation.studies import BUDGETS_BYTES

PRESETS = ("faithful", "vivid")


def kept(codec, stream, preset):
    """Shares of the coarse and of the fine tokens; nan where none were sent."""
    said = codec.read(stream)
    again = codec.look(codec.decode(stream, preset=preset), caption="", effort="fast")
    levels = ((said.coarse, again.coarse), (said.fine, again.fine))
    same = (
        np.mean(a.tokens[a.sent] == b[a.sent]) if a and a.sent.any() else np.nan for a, b in levels
    )
    return list(same)


def main(folder):
    codec, rows = load_codec(device="cpu"), []
    for picture in find_pictures(folder):
        found = codec.look(picture.open(), effort="fast")
        streams = [codec.write(found, size=size) for size in BUDGETS_BYTES]
        rows.append([[kept(codec, stream, preset) for preset in PRESETS] for stream in streams])
    for size, of_size in zip(BUDGETS_BYTES, np.nanmean(rows, axis=0), strict=True):
        for preset, (coarse, fine) in zip(PRESETS, of_size, strict=True):
            print(f"{size:4} bytes, {preset:8}: coarse {coarse:.1%}, fine {fine:.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
