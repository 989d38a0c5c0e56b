"""How much of a picture's layout a caption alone carries: PSNR of 4 x 4 box means at k = 0.

python -m tests.layout KODAK [--preset faithful]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from percov2_core import load_codec
from percov2_core.evaluation.protocol import find_pictures


def means(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((4, 4), Image.Resampling.BOX), dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", default="faithful")
    args = parser.parse_args()
    codec, rows = load_codec(device="cpu"), []
    for picture in find_pictures(args.data):
        image = picture.open()
        stream = codec.encode(image, "hybrid", tokens=0)
        made = codec.decode(stream, preset=args.preset)
        mse = np.square(means(image) - means(made)).mean()
        rows.append((len(stream.to_bytes()), 10 * np.log10(255**2 / mse)))
    size, psnr = np.mean(rows, axis=0)
    print(f"{size:.1f} bytes, PSNR of 4 x 4 means {psnr:.2f} dB over {len(rows)} pictures")


if __name__ == "__main__":
    main()
