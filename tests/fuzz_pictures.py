"""Damaged pictures through the intake, with their time and memory.

    python -m tests.fuzz_pictures [--count 20000] [--seed 0]

Ends with status 1 if anything but `ImageError` was raised, if a Python warning was given, if one
picture took more than 2 s of one core, or if memory grew by more than 500 MB.
"""

import random
import resource
import sys
import time
import warnings
from collections import Counter

import numpy as np
from PIL import Image, ImageCms

from percov2_core import image_io
from percov2_core.errors import ImageError
from tests.picture_files import exif, saved
from tests.tiny import options, picture

LIMIT_S = 2.0
LIMIT_BYTES = 500 * 2**20
FIT_PX = 2048


def seeds():
    """Whole pictures of every format, with what files have around their pixels."""
    plain = picture(96, 80)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    around = {"exif": b"Exif\0\0" + exif(6, "<"), "icc_profile": profile}
    moving = {"save_all": True, "append_images": [picture(96, 80, seed=k) for k in (1, 2)]}
    deep = Image.fromarray((np.arange(96 * 80, dtype=np.uint16) * 7).reshape(80, 96))
    for name, image, format, how in (
        ("jpeg", plain, "JPEG", around),
        ("progressive jpeg", plain, "JPEG", {"progressive": True}),
        ("cmyk jpeg", plain.convert("CMYK"), "JPEG", {}),
        ("png", plain, "PNG", around),
        ("palette png", plain.quantize(40), "PNG", {"transparency": 3}),
        ("moving png", plain, "PNG", {**moving, "default_image": True}),
        ("deep png", deep, "PNG", {}),
        ("webp", plain, "WEBP", around),
        ("lossless webp", plain.convert("RGBA"), "WEBP", {"lossless": True}),
        ("moving webp", plain, "WEBP", moving),
        ("avif", plain, "AVIF", around),
        ("tiff", plain, "TIFF", {}),
        ("packed tiff", plain, "TIFF", {"compression": "tiff_lzw", **around}),
        ("deep tiff", deep, "TIFF", {"compression": "tiff_deflate"}),
        ("fax tiff", plain.convert("1"), "TIFF", {"compression": "group4"}),
        ("gif", plain, "GIF", moving),
        ("bmp", plain, "BMP", {}),
    ):
        yield name, saved(image, format, **how)


def mutate(data, dice):
    """Change a few bytes, most often near the start; cut, repeat or lose a part."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        reach = dice.choice((64, 512, len(out)))
        at = dice.randrange(min(reach, len(out)))
        length = dice.randrange(1, 65)
        kind = dice.randrange(6)
        if kind == 0:
            out[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            out[at] = dice.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            out[at : at + 4] = dice.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)))
        elif kind == 3:
            out[at : at + length] = b""
        elif kind == 4:
            out[at:at] = out[at : at + length]
        else:
            out[at : at + length] = dice.randbytes(length)
        if not out:
            break
    return bytes(out[: dice.randrange(len(out) + 1)] if dice.random() < 0.1 else out)


def peak_bytes():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(count, seed):
    """What became of the pictures, and what should not have happened."""
    wholes = list(seeds())
    for _, data in wholes:
        image_io.load(data, fit=FIT_PX)
    before, tally, faults = peak_bytes(), Counter(), []
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        name, whole = wholes[number % len(wholes)]
        mutant = mutate(whole, dice)
        start = time.process_time()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                image_io.load(mutant, fit=FIT_PX if number % 2 else None)
                tally["read"] += 1
            except ImageError as error:
                tally["refused"] += 1
                if not str(error).isprintable() or len(str(error)) > 300:
                    faults.append(f"{number} {name}: says {error}")
            except Exception as error:
                faults.append(f"{number} {name}: {error!r}")
        took_s = time.process_time() - start
        tally["slowest, ms"] = max(tally["slowest, ms"], int(took_s * 1000))
        faults += [f"{number} {name}: warns {warning.message}" for warning in warned]
        if took_s > LIMIT_S:
            faults.append(f"{number} {name}: took {took_s:.1f} s")
    grown = peak_bytes() - before
    tally["grown, MB"] = grown // 2**20
    if grown > LIMIT_BYTES:
        faults.append(f"memory grew by {grown / 2**20:.0f} MB")
    return tally, faults


def main(count, seed):
    tally, faults = run(count, seed)
    print(", ".join(f"{name}: {value}" for name, value in sorted(tally.items())))
    print(*faults[:50], sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(**vars(options(__doc__, count=20_000, seed=0))))
