"""Decode in a thread of its own, so that the page can show each step and cancel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple

from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.codec import PerCoV2, Step

PREVIEW_SHARE = 0.25  # of the painting time that previews may take
FIRST_PREVIEW_S = 0.6
NOTICE_S = 0.05  # after which a dropped painting is noticed, even in the middle of a step


class Look(NamedTuple):
    """How to paint: the settings that are not in the file."""

    steps: int
    guidance: float
    seed: int | None = None


class Frame(NamedTuple):
    """One state of the painting; `picture` is None where no preview was due."""

    step: int
    total: int
    picture: Image.Image | None
    step_s: float
    finished: bool = False


class Painted(NamedTuple):
    """The finished picture."""

    picture: Image.Image
    step_s: float  # seconds per step


class Cancelled(Exception):
    """Nobody wants the picture any more."""


@dataclass
class _Clock:
    """Decides when a preview is due."""

    start_s: float
    spent_s: float = 0.0

    def due(self) -> bool:
        passed = time.monotonic() - self.start_s
        return passed > FIRST_PREVIEW_S and self.spent_s <= PREVIEW_SHARE * passed

    def timed(self, preview: Callable[[], Image.Image]) -> Image.Image:
        began = time.monotonic()
        picture = preview()
        self.spent_s += time.monotonic() - began
        return picture


def paint(
    codec: PerCoV2, stream: Stream, look: Look, *, cancel: threading.Event
) -> Iterator[Frame | None]:
    """Decode `stream`; the last frame is finished and holds the picture.

    None instead of a frame says at once that `cancel` was set; asking on waits until the device
    is free.

    Raises:
        PerCoError: what `PerCoV2.decode` raises.
    """
    frames: SimpleQueue[Frame | BaseException] = SimpleQueue()
    # The visitor's request goes along: hosts that lend a GPU count the time as theirs.
    arguments = (_work, codec, stream, look, cancel, frames.put)
    worker = threading.Thread(target=copy_context().run, args=arguments, daemon=True)
    worker.start()
    try:
        while frame := _newest(frames, cancel):
            yield frame
            if frame.finished:
                return
        yield None
        worker.join()
    finally:
        cancel.set()  # a visitor who left must not keep the device busy


def _newest(frames: SimpleQueue[Frame | BaseException], cancel: threading.Event) -> Frame | None:
    """Wait for a frame and skip those that the page was too slow to show; None if cancelled."""
    latest: Frame | None = None
    while not cancel.is_set():
        try:
            frame = frames.get(timeout=0 if latest else NOTICE_S)
        except Empty:
            if latest:
                return latest
            continue
        if isinstance(frame, Cancelled):
            break
        if isinstance(frame, BaseException):
            raise frame
        preview = frame.picture or (latest and latest.picture)
        latest = frame._replace(picture=preview)
    return None


def _work(
    codec: PerCoV2,
    stream: Stream,
    look: Look,
    cancel: threading.Event,
    put: Callable[[Frame | BaseException], None],
) -> None:
    clock = _Clock(time.monotonic())

    def on_step(step: Step) -> None:
        if cancel.is_set():
            raise Cancelled
        last = step.index == step.total
        picture = clock.timed(step.preview) if not last and clock.due() else None
        step_s = (time.monotonic() - clock.start_s - clock.spent_s) / step.index
        put(Frame(step.index, step.total, picture, step_s))

    try:
        picture = codec.decode(
            stream, steps=look.steps, guidance=look.guidance, seed=look.seed, on_step=on_step
        )
        step_s = (time.monotonic() - clock.start_s - clock.spent_s) / look.steps
        put(Frame(look.steps, look.steps, picture, step_s, finished=True))
    except BaseException as error:  # raised again in the visitor's own thread
        put(error)
