"""Contact sheet of the embedded model: `python -m tests.sheet KODAK OUT.jpg [NUMBER ...]`.

A column per picture: the original, extreme, ultra-low and hybrid with no token sent, all vivid.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from percov2_core import load_codec
from percov2_core.evaluation.protocol import find_pictures

CELL_PX = 256
NUMBERS = (3, 5, 7, 13, 15, 23)
MODES = ("extreme", "ultra-low", "hybrid")


def main(folder: Path, out: Path, numbers: tuple[int, ...]) -> None:
    codec, pictures = load_codec(), find_pictures(folder)
    sheet = Image.new("RGB", (CELL_PX * len(numbers), CELL_PX * (1 + len(MODES))))
    for i, number in enumerate(numbers):
        picture = pictures[number - 1].open()
        made = (codec.decode(codec.encode(picture, mode), preset="vivid") for mode in MODES)
        for j, image in enumerate([picture, *made]):
            sheet.paste(image.resize((CELL_PX, CELL_PX)), (i * CELL_PX, j * CELL_PX))
    sheet.save(out, quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), tuple(map(int, sys.argv[3:])) or NUMBERS)
