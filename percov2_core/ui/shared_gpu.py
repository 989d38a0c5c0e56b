"""A codec that borrows the GPU for each call, on hosts that lend one call by call (ZeroGPU).

On such a host a call decorated with `spaces.GPU` runs in another process, which alone has the GPU.
What goes in and out is pickled, the codec itself comes along by forking, and errors other than
gradio's lose their text on the way: so errors travel as values, and pictures as PIL images.
Nothing is compiled there: a new process would compile again.

Proven with a stand-in for the `spaces` module that pickles both ways and records the calls
(`tests/spaces_stand_in`), not on the hardware.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from queue import SimpleQueue
from typing import Any, NamedTuple, cast

from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.codec import PerCoV2, Step
from percov2_core.errors import PerCoError
from percov2_core.ui import host

# Seconds to borrow the GPU for. Allowances, not measurements: asking for too much costs the visitor
# a place in the host's queue, asking for too little ends the call half-way.
START_S = 10.0  # a new process, weights moved to the GPU
STEP_S = 0.5  # per step of the flow, megapixel and picture in the batch
DECODE_S = 4.0  # per megapixel: everything around the steps, previews included
ENCODE_S = 15.0  # per megapixel, the search for better tokens included
MOST_S = 120.0  # hosts refuse much more

PREVIEW_EVERY_S = 1.0
_NO_GPU = ("describer", "fixed")  # captioners that run where the page runs


class Outcome(NamedTuple):
    """What a call gave: a value, or the error to raise."""

    value: Any = None
    error: PerCoError | None = None


class Painting(NamedTuple):
    """One decoding, as it travels to the GPU; None takes what the codec takes."""

    stream: Stream
    steps: int | None
    guidance: float | None
    preset: str
    seed: int | None
    previews: bool


class State(NamedTuple):
    """One state of a decoding, as it travels back."""

    step: int = 0  # 1..total
    total: int = 0
    preview: Image.Image | None = None
    outcome: Outcome | None = None  # set in the last state


def with_shared_gpu(codec: PerCoV2) -> PerCoV2:
    """`codec` itself, or the same borrowing its GPU where the host wants that."""
    if not host.has_shared_gpu():
        return codec
    return cast(PerCoV2, SharedGpuCodec(codec, import_module("spaces").GPU))


def painting_s(painting: Painting) -> float:
    """Seconds to borrow for one decoding; guidance doubles the batch."""
    megapixels = _megapixels(painting.stream.width, painting.stream.height)
    batch = 2 if (painting.guidance or 1.0) > 1.0 else 1
    per_megapixel_s = DECODE_S + STEP_S * (painting.steps or 1) * batch
    return min(MOST_S, START_S + per_megapixel_s * megapixels)


def call_s(method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> float:
    """Seconds to borrow for any other method of the codec."""
    first = arguments[0]
    width, height = first.size if isinstance(first, Image.Image) else (first.width, first.height)
    per_megapixel_s = ENCODE_S if method == "encode" else DECODE_S
    return min(MOST_S, START_S + per_megapixel_s * _megapixels(width, height))


def _megapixels(width_px: int, height_px: int) -> float:
    return width_px * height_px / 1e6


class SharedGpuCodec:
    """Has the methods of `PerCoV2`; those that need its device borrow it."""

    def __init__(self, codec: PerCoV2, gpu: Callable[..., Any]) -> None:
        """`gpu` is `spaces.GPU`."""
        self._codec = codec

        def call(method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Outcome:
            return _outcome(lambda: getattr(codec, method)(*arguments, **options))

        def paint(painting: Painting) -> Iterator[State]:
            yield from _states(codec, painting)

        self._call = gpu(duration=call_s)(call)
        self._paint = gpu(duration=painting_s)(paint)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def encode(self, *arguments: Any, **options: Any) -> Any:
        return self._borrow("encode", *arguments, **options)

    def read(self, *arguments: Any, **options: Any) -> Any:
        return self._borrow("read", *arguments, **options)

    def truncate(self, *arguments: Any, **options: Any) -> Any:
        return self._borrow("truncate", *arguments, **options)

    def describe(self, image: Image.Image, *, captioner: str | None = None) -> Any:
        if captioner in _NO_GPU:
            return self._codec.describe(image, captioner=captioner)
        return self._borrow("describe", image, **({"captioner": captioner} if captioner else {}))

    def decode(
        self,
        stream: Stream,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        preset: str = "balanced",
        seed: int | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Any:
        """As `PerCoV2.decode`; previews come at the first step and then once a second."""
        if named := self._codec.presets[stream.mode].get(preset):
            steps = named.steps if steps is None else steps
            guidance = named.guidance if guidance is None else guidance
        painting = Painting(stream, steps, guidance, preset, seed, on_step is not None)
        latest: Image.Image | None = None
        with contextlib.closing(self._paint(painting)) as states:
            for state in states:
                if state.outcome is not None:
                    return _unwrapped(state.outcome)
                latest = state.preview or latest
                if on_step is not None:
                    on_step(Step(state.step, state.total, lambda z=latest: z))  # type: ignore[misc]
        raise AssertionError("the last state has an outcome")

    def _borrow(self, method: str, *arguments: Any, **options: Any) -> Any:
        return _unwrapped(self._call(method, arguments, options))


def _outcome(work: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(work())
    except PerCoError as error:
        return Outcome(error=error)


def _unwrapped(outcome: Outcome) -> Any:
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


class _Unwanted(Exception):
    """Nobody waits for the picture any more."""


@dataclass
class _Painter:
    """Turns the codec's callbacks into states; previews are made here, where the GPU is."""

    put: Callable[[State], None]
    unwanted: threading.Event
    previews: bool
    shown_s: float = -PREVIEW_EVERY_S

    def on_step(self, step: Step) -> None:
        if self.unwanted.is_set():
            raise _Unwanted
        due = self.previews and time.monotonic() - self.shown_s >= PREVIEW_EVERY_S
        preview = step.preview() if due else None
        if due:
            self.shown_s = time.monotonic()
        self.put(State(step.index, step.total, preview))


def _states(codec: PerCoV2, painting: Painting) -> Iterator[State]:
    """Decode, and yield each step; closing it ends the decoding."""
    states: SimpleQueue[State | BaseException] = SimpleQueue()
    painter = _Painter(states.put, threading.Event(), painting.previews)

    def decode() -> Image.Image:
        return codec.decode(
            painting.stream,
            steps=painting.steps,
            guidance=painting.guidance,
            preset=painting.preset,
            seed=painting.seed,
            on_step=painter.on_step,
        )

    def work() -> None:
        try:
            states.put(State(outcome=_outcome(decode)))
        except BaseException as error:  # raised again where somebody sees it
            states.put(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            state = states.get()
            if isinstance(state, BaseException):
                raise state
            yield state
            if state.outcome is not None:
                return
    finally:
        painter.unwanted.set()
        worker.join()  # the GPU is given back when this ends
