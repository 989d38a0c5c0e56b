"""The files of the page's first screen: `python -m tests.gallery [MODEL] [OUTPUT]`.

Written by the model out of `assets/examples`, each with the small picture that is shown before
anybody clicks. Once weights change, they have to be made again.
"""

import io
import sys
from pathlib import Path

from percov2_core import image_io, load_codec
from percov2_core.bitstream import SUFFIX
from percov2_core.ui.gallery import EXAMPLES_DIR, GALLERY_DIR, PREVIEW_SUFFIX

# In these sizes each of them can be recognised, or nearly.
PICTURES = (
    ("kodim21-bay", 13), ("kodim13-stream", 24), ("kodim10-sailboats", 40),
    ("kodim20-airplane", 62), ("kodim19-lighthouse", 90), ("kodim21-bay", 124),
    ("kodim23-parrots", 240), ("kodim15-face-paint", 430), ("kodim07-shutters", 722),
)  # fmt: skip
PREVIEW_PX = 320
MAX_PREVIEW_BYTES = 15_000


def make(codec, out, pictures=PICTURES):
    """Write files and previews in place of those that are there."""
    made = {}
    for name, size in pictures:
        stream = codec.encode(image_io.load(EXAMPLES_DIR / f"{name}.jpg"), size=size)
        data = stream.to_bytes()
        preview(codec, stream).save(small := io.BytesIO(), "WEBP", quality=80, method=6)
        stem = f"{len(data):04d}-{name}"
        made |= {stem + SUFFIX: data, stem + PREVIEW_SUFFIX: small.getvalue()}
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob(f"*{SUFFIX}"), *out.glob(f"*{PREVIEW_SUFFIX}")):
        old.unlink()
    for name, data in made.items():
        (out / name).write_bytes(data)


def preview(codec, stream):
    return image_io.fitted(codec.decode(stream, preset="balanced"), PREVIEW_PX)


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    make(load_codec(given.get(0, "embedded"), device="cpu"), Path(given.get(1, GALLERY_DIR)))
