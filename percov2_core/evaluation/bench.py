"""Where the time of an encode and a decode goes, box by box, and how much memory it takes."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.caption import packing
from percov2_core.codec import PerCoV2
from percov2_core.config import MODES

ENTROPY_BOXES = ("caption coding", "token coding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Medians over the repetitions.

    Attributes:
        mode: Key into `config.MODES`.
        size_bytes: Length of the file.
        encode_s, decode_s: Seconds of the whole call.
        boxes: Seconds of each box, both directions together.
        peak_bytes: Largest resident memory of the process so far.
    """

    mode: str
    size_bytes: int
    encode_s: float
    decode_s: float
    boxes: dict[str, float]
    peak_bytes: int

    @property
    def entropy_share(self) -> float:
        """Part of encode and decode together that entropy coding takes."""
        coding = sum(self.boxes.get(box, 0.0) for box in ENTROPY_BOXES)
        return coding / (self.encode_s + self.decode_s)


def bench(
    codec: PerCoV2,
    image: Image.Image,
    mode: str,
    *,
    repeats: int = 5,
    steps: int | None = None,
    guidance: float | None = None,
) -> Timing:
    """Time `repeats` runs after one that warms up."""
    encodes, decodes, boxes = [], [], defaultdict(list)
    for i in range(repeats + 1):
        spent: dict[str, float] = defaultdict(float)
        with _timed(codec, mode, spent):
            began = time.perf_counter()
            data = codec.encode(image, mode).to_bytes()
            middle = time.perf_counter()
            codec.decode(Stream.from_bytes(data), steps=steps, guidance=guidance)
            ended = time.perf_counter()
        if i:
            encodes.append(middle - began)
            decodes.append(ended - middle)
            for box, seconds in spent.items():
                boxes[box].append(seconds)
    return Timing(
        mode=mode,
        size_bytes=len(data),
        encode_s=statistics.median(encodes),
        decode_s=statistics.median(decodes),
        boxes={box: statistics.median(values) for box, values in boxes.items()},
        peak_bytes=_peak_bytes(),
    )


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _boxes(codec: PerCoV2, mode: str) -> list[tuple[str, Any, str]]:
    """Label, owner and name of every method that is a box of the figure."""
    m = codec.rates[MODES[mode].rate]
    return [
        ("captioner", codec, "describe"),
        ("autoencoder", codec.vae, "encode"),
        ("hyper-encoder", m.encoder, "forward"),
        ("quantiser", m.quantizer, "tokens"),
        ("caption coding", packing, "write_caption"),
        ("token coding", m.prior, "compress"),
        ("caption coding", packing, "read_caption"),
        ("token coding", m.prior, "decompress"),
        ("quantiser", m.quantizer, "lookup"),
        ("hyper-decoder", m.decoder, "forward"),
        ("text encoder", m.text, "encode"),
        ("flow", m.flow, "forward"),
        ("autoencoder", codec.vae, "decode"),
    ]


@contextmanager
def _timed(codec: PerCoV2, mode: str, spent: dict[str, float]) -> Iterator[None]:
    """Put a stopwatch around every box while the block runs."""
    with ExitStack() as stack:
        for label, owner, name in _boxes(codec, mode):
            own = name in vars(owner)
            original = getattr(owner, name)
            setattr(owner, name, _watched(original, label, spent))
            undo = (setattr, owner, name, original) if own else (delattr, owner, name)
            stack.callback(*undo)
        yield


def _watched(
    function: Callable[..., Any], label: str, spent: dict[str, float]
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent[label] += time.perf_counter() - began
        return result

    return run
