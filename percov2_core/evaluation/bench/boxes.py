"""Where the time of an encode and a decode goes, box by box, and how much memory it takes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from percov2_core import codec as figure
from percov2_core.bitstream import Stream
from percov2_core.caption import packing
from percov2_core.codec import PerCoV2
from percov2_core.config import MODES
from percov2_core.evaluation.bench.machine import clock, forget_peak, peak_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Medians over the repetitions, for one picture.

    Attributes:
        size_bytes: Length of the file.
        encode_s, decode_s: Seconds of the whole call.
        encode_boxes, decode_boxes: Seconds of each box.
        peak_bytes: Most memory in use, see `machine.peak_bytes`.
    """

    size_bytes: int
    encode_s: float
    decode_s: float
    encode_boxes: dict[str, float]
    decode_boxes: dict[str, float]
    peak_bytes: int


@dataclass
class _Watch:
    """A stopwatch for calls; one inside another belongs to the outer one."""

    device: torch.device
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    busy: bool = False

    def around(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.busy:
                return function(*args, **kwargs)
            self.busy, began = True, clock(self.device)
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[label] += clock(self.device) - began
                self.busy = False

        return run


def time_boxes(
    codec: PerCoV2,
    image: Image.Image,
    mode: str,
    *,
    repeats: int = 5,
    steps: int | None = None,
    guidance: float | None = None,
) -> Timing:
    """Time `repeats` encodes and decodes after one of each that warms up."""
    forget_peak(codec.device)
    encodes, decodes = [], []
    for _ in range(repeats + 1):
        made, seconds = _timed(codec, mode, lambda: codec.encode(image, mode))
        data = made.to_bytes()
        encodes.append(seconds)
        stream = Stream.from_bytes(data)
        _, seconds = _timed(
            codec, mode, lambda s=stream: codec.decode(s, steps=steps, guidance=guidance)
        )
        decodes.append(seconds)
    encode_s, encode_boxes = _medians(encodes[1:])
    decode_s, decode_boxes = _medians(decodes[1:])
    return Timing(
        size_bytes=len(data),
        encode_s=encode_s,
        decode_s=decode_s,
        encode_boxes=encode_boxes,
        decode_boxes=decode_boxes,
        peak_bytes=peak_bytes(codec.device),
    )


_WHOLE = ""  # among the boxes: the call itself


def _timed(codec: PerCoV2, mode: str, call: Callable[..., Any]) -> tuple[Any, dict[str, float]]:
    watch = _Watch(codec.device)
    with _watched(codec, mode, watch):
        began = clock(codec.device)
        result = call()
        watch.spent[_WHOLE] = clock(codec.device) - began
    return result, dict(watch.spent)


def _medians(runs: list[dict[str, float]]) -> tuple[float, dict[str, float]]:
    """Seconds of the whole call, and of each box."""
    boxes = {box: statistics.median(run[box] for run in runs) for box in runs[0]}
    return boxes.pop(_WHOLE), boxes


def _boxes(codec: PerCoV2, mode: str) -> list[tuple[str, Any, str]]:
    """Label, owner and name of every call that is a box of the figure."""
    m = codec.rates[MODES[mode].rate]
    return [
        ("captioner", codec, "describe"),
        ("autoencoder", codec.vae, "encode"),
        ("hyper-encoder", m.encoder, "forward"),
        ("quantiser", m.quantizer, "tokens"),
        ("search", figure, "search_tokens"),
        ("caption coding", packing, "write_caption"),
        ("token coding", m.prior, "compress"),
        ("caption coding", packing, "read_caption"),
        ("token coding", m.prior, "decompress"),
        ("quantiser", m.quantizer, "lookup"),
        ("hyper-decoder", m.decoder, "forward"),
        ("text encoder", m.text, "encode"),
        ("flow", figure, "sample"),
        ("autoencoder", codec.vae, "decode"),
    ]


@contextmanager
def _watched(codec: PerCoV2, mode: str, watch: _Watch) -> Iterator[None]:
    """Put the stopwatch around every box while the block runs."""
    with ExitStack() as stack:
        for label, owner, name in _boxes(codec, mode):
            own = name in vars(owner)
            original = getattr(owner, name)
            setattr(owner, name, watch.around(original, label))
            undo = (setattr, owner, name, original) if own else (delattr, owner, name)
            stack.callback(*undo)
        yield
