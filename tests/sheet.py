"""A contact sheet, and what captions carry: `python -m tests.sheet KODAK OUT.jpg [NUMBER ...]`.

Prints the PSNR of 4 x 4 box means of all pictures with no token sent, faithful. The sheet has a
column per numbered picture: the original, extreme, files of at most so many bytes, and the caption
alone, all vivid.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from percov2_core import load_codec
from percov2_core.evaluation.protocol import find_pictures

CELL_PX = 256
NUMBERS = (3, 5, 7, 13, 15, 23)
FILES = ({"mode": "extreme"}, *({"size": size} for size in (430, 240, 124, 62)), {"count": 0})


def means(image):
    return np.asarray(image.resize((4, 4), Image.Resampling.BOX), dtype=float)


def main(folder, out, numbers):
    codec, pictures, rows = load_codec(device="cpu"), find_pictures(folder), []
    for image in (picture.open() for picture in pictures):
        stream = codec.encode(image, "hybrid")
        mse = np.square(means(image) - means(codec.decode(stream, preset="faithful"))).mean()
        rows.append((len(stream.to_bytes()), 10 * np.log10(255**2 / mse)))
    size, psnr = np.mean(rows, axis=0)
    print(f"{size:.1f} bytes, PSNR of 4 x 4 means {psnr:.2f} dB over {len(rows)} pictures")
    sheet = Image.new("RGB", (CELL_PX * len(numbers), CELL_PX * (1 + len(FILES))))
    for i, number in enumerate(numbers):
        picture = pictures[number - 1].open()
        found = codec.look(picture)
        made = (codec.decode(codec.write(found, **how), preset="vivid") for how in FILES)
        for j, image in enumerate([picture, *made]):
            sheet.paste(image.resize((CELL_PX, CELL_PX)), (i * CELL_PX, j * CELL_PX))
    sheet.save(out, quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), tuple(map(int, sys.argv[3:])) or NUMBERS)
