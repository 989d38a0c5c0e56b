"""A size in bytes -> the mode and the number of tokens that use it best."""

from __future__ import annotations

from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.codec import PerCoV2
from percov2_core.errors import ConfigError


def encode_within(
    codec: PerCoV2, image: Image.Image, *, size_bytes: int, caption: str, schedule: str, seed: int
) -> Stream:
    """The richest stream of at most `size_bytes`: extreme, else ultra-low, else hybrid.

    Raises:
        ConfigError: if not even the caption fits.
    """
    for mode in ("extreme", "ultra-low"):
        stream = codec.encode(image, mode, caption=caption, schedule=schedule, seed=seed)
        if len(stream.to_bytes()) <= size_bytes:
            return stream
    return longest_part(codec, stream, size_bytes=size_bytes)


def longest_part(codec: PerCoV2, stream: Stream, *, size_bytes: int) -> Stream:
    """The hybrid stream with the most tokens in `size_bytes`.

    `stream` is an ultra-low one, fresh from the encoder.
    """
    sizes = [len(stream.truncate(stage).to_bytes()) for stage in range(len(stream.cuts))]
    fitting = [stage for stage, size in enumerate(sizes) if size <= size_bytes]
    if not fitting:
        raise ConfigError(
            f"target size: this caption alone makes {min(sizes)} bytes, got {size_bytes}: "
            "shorten the caption or allow more"
        )
    best = stream.truncate(fitting[-1])
    end = stream.cuts[min(fitting[-1] + 1, len(stream.cuts) - 1)].tokens
    for tokens in range(best.tokens_sent + 1, end + 1):
        longer = codec.truncate(stream, tokens=tokens)
        if len(longer.to_bytes()) > size_bytes:
            break
        best = longer
    return best
