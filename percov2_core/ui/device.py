"""Who may use the device: queues, which painting each visitor wants, a codec that is still being
loaded, a GPU that a host lends.

What gradio wants of listeners that yield: one yield at least, since outputs that are never given
are emptied; and in the last yield every update (`gr.Button(...)`) of the ones before, since its
client changes updates in place, and on a busy machine only the last state of one is seen.

On hosts that lend a GPU by the call (ZeroGPU) what `spaces.GPU` decorates runs in a forked process,
which alone has the GPU. What goes in and out is pickled, and errors other than gradio's lose their
text: so errors travel as values, and pictures as PIL images.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from PIL import Image

from percov2_core.config import EFFORTS, OWN_PAINTER
from percov2_core.errors import PerCoError
from percov2_core.ui import host

if TYPE_CHECKING:
    from percov2_core.bitstream import Stream
    from percov2_core.codec import Found, PerCoV2
    from percov2_core.contents import Contents, Tokens
    from percov2_core.painting import Step
    from percov2_core.weights.files import About

# Options of gradio's listeners: callbacks that wait for nobody;
FREE: dict[str, Any] = {
    "concurrency_limit": None,
    "api_visibility": "private",
    "show_progress": "hidden",
}
# one queue for everything that needs the model; reading a picture need not wait for it, nor
# describing or measuring one, nor anybody for the slow classic codecs.
DEVICE, INTAKE, DESCRIBE, MEASURE, CLASSICS = (
    {**FREE, "concurrency_id": queue, "concurrency_limit": 1}
    for queue in ("device", "intake", "describe", "measure", "classics")
)
MAX_QUEUE = 200  # events that wait, of all visitors and kinds together
MAX_WAITING = 60  # visitors who wait for a picture; the next one is told that the demo is full

PREVIEW_SHARE = 0.25  # of the painting time that previews may take
FIRST_PREVIEW_S = 0.6

# Seconds to borrow the GPU for. Allowances, not measurements: asking for too much costs the visitor
# a place in the host's queue, asking for too little ends the call half-way.
START_S = 10.0  # a new process, weights moved to the GPU
STEP_S = 0.5  # per step of the flow, megapixel and picture in the batch
DECODE_S = 4.0  # per megapixel: everything around the steps, previews included
ENCODE_S = 15.0  # per megapixel, the search for better tokens included
MOST_S = 120.0  # hosts refuse much more
PREVIEW_EVERY_S = 1.0
_BORROWING = ("encode", "look", "complete", "describe")
_NO_GPU = ("describer", "objects")  # captioners that run where the page runs


class Look(NamedTuple):
    """How to paint: the settings that are not in the file."""

    steps: int
    guidance: float
    seed: int | None = None
    painter: str = OWN_PAINTER
    preset: str = "balanced"  # how much another painter repaints


class Frame(NamedTuple):
    """One step of a painting; the last one has the picture."""

    step: int
    total: int
    preview: Image.Image | None  # the newest, None where none was due yet
    picture: Image.Image | None
    step_s: float  # seconds that a step takes, previews not counted
    share: float  # of the whole work that is done
    left_s: float  # seconds that the rest should take


@dataclass(frozen=True, eq=False)
class Turn:
    """One painting of one visitor, from its start on the device to the picture."""

    session: str
    number: int  # of the visitor's press of Compress, from 1; 0 for what no press began
    dropped: threading.Event = field(default_factory=threading.Event)  # nobody wants it any more


def paint(codec: PerCoV2, contents: Contents, look: Look, turn: Turn) -> Iterator[Frame]:
    """Paint step by step; ends without a picture once nobody wants it, or gradio closes it because
    the visitor's connection ended. Raises what `PerCoV2.paint` raises."""
    steps_s, previews_s, preview = 0.0, 0.0, None
    painting = codec.paint(contents, **look._asdict())
    with closing(painting) as steps:
        began = time.monotonic()
        for step in steps:
            steps_s += time.monotonic() - began
            if turn.dropped.is_set():
                return
            affordable = previews_s <= PREVIEW_SHARE * (steps_s + previews_s)
            if step.picture is None and affordable and steps_s > FIRST_PREVIEW_S:
                began = time.monotonic()
                preview = step.preview()
                previews_s += time.monotonic() - began
            step_s = steps_s / (step.share * step.total)
            left_s = steps_s * (1 / step.share - 1)
            yield Frame(step.index, step.total, preview, step.picture, step_s, step.share, left_s)
            began = time.monotonic()  # what the page does with a frame takes no time of ours


@dataclass
class _Visit:
    pressed: int = 0  # the newest press
    over: int = 0  # the newest press that was cancelled, or whose picture was shown
    place: int = 0  # of the newest press among those of all visitors
    looks: int = 0  # how often the visitor went back to an earlier picture
    compared: tuple[int, int, int] | None = None  # press, look and picture of the newest comparison
    turns: set[Turn] = field(default_factory=set)

    def wants(self, number: int) -> bool:
        return number == 0 or (number > self.over and number >= self.pressed)

    def drop_unwanted(self) -> None:
        for turn in self.turns:
            if not self.wants(turn.number):
                turn.dropped.set()


class Turns:
    """Which painting each visitor still wants: pressing Compress again replaces the one before.
    Counts by the browser's own numbers, so that requests may arrive in any order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._visits: dict[str, _Visit] = {}
        self._presses = 0

    def press(self, session: str, number: int) -> bool:
        """Compress was pressed; earlier presses count no longer. False if this one is over."""
        with self._visit(session) as visit:
            self._presses += 1
            visit.pressed, visit.place = max(visit.pressed, number), self._presses
            visit.drop_unwanted()
            return visit.wants(number)

    def before(self, session: str) -> int:
        """How many other visitors pressed earlier and have no picture yet."""
        with self._lock:
            place = self._visits[session].place if session in self._visits else self._presses + 1
            return sum(v.place < place and v.pressed > v.over for v in self._visits.values())

    def cancel(self, session: str, number: int) -> bool:
        """Cancel was pressed after `number` presses. False if nothing was under way."""
        with self._visit(session) as visit:
            under_way = number > visit.over
            visit.over = max(visit.over, number)
            visit.drop_unwanted()
            return under_way

    @contextmanager
    def take(self, session: str, number: int = 0) -> Iterator[Turn]:
        """A turn on the device; it is dropped from the start if nobody wants it any more."""
        turn = Turn(session, number)
        with self._visit(session) as visit:
            visit.turns.add(turn)
            visit.pressed = max(visit.pressed, number)
            visit.drop_unwanted()
        try:
            yield turn
        finally:
            turn.dropped.set()
            with self._lock:  # the visitor may have left and be forgotten
                visit.turns.discard(turn)
                visit.over = max(visit.over, number)

    def finish(self, turn: Turn) -> bool:
        """The picture is there: True if it may be shown, and then cancelling comes too late."""
        with self._visit(turn.session) as visit:
            if turn.dropped.is_set():
                return False
            visit.over = max(visit.over, turn.number)
            return True

    def newest(self, session: str) -> int:
        """Number of the visitor's newest press, 0 if there was none."""
        return self.place(session)[0]

    def look(self, session: str) -> None:
        """The visitor went back to an earlier picture."""
        with self._visit(session) as visit:
            visit.looks += 1

    def place(self, session: str) -> tuple[int, int]:
        """Changes whenever the visitor goes on to another picture, by a press or by going back."""
        with self._lock:
            visit = self._visits.get(session, _Visit())
            return visit.pressed, visit.looks

    def compare(self, session: str, number: int) -> bool:
        """True once each time the visitor comes to the picture of a press."""
        with self._visit(session) as visit:
            before, visit.compared = visit.compared, (visit.pressed, visit.looks, number)
            return visit.compared != before

    def forget(self, session: str) -> None:
        """A visitor left: whatever they started is dropped."""
        with self._lock:
            left = self._visits.pop(session, _Visit())
        for turn in left.turns:
            turn.dropped.set()

    @contextmanager
    def _visit(self, session: str) -> Iterator[_Visit]:
        with self._lock:
            yield self._visits.setdefault(session, _Visit())


class LateCodec:
    """Has the methods of `PerCoV2`. What `about` says is there at once; whoever asks for more waits
    until `load` has answered, and gets what it raised."""

    def __init__(self, about: About, load: Callable[[], PerCoV2]) -> None:
        self.presets, self.captioner = about.file_presets, about.captioner
        self.fingerprint = bytes.fromhex(about.digest)[0]
        self._load, self._lock = load, threading.Lock()
        self._loaded: Future[PerCoV2] = Future()

    @property
    def ready(self) -> bool:
        """Whether nobody has to wait any more."""
        return self._loaded.done()

    def load(self) -> PerCoV2:
        """The codec: loaded here, or by whoever came first."""
        with self._lock:
            if not self.ready:
                try:
                    self._loaded.set_result(self._load())
                except Exception as error:
                    self._loaded.set_exception(error)
        return self._loaded.result()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.load(), name)


def is_loading(codec: PerCoV2 | LateCodec) -> bool:
    """Whether the next who needs the codec waits for it, which visitors are told."""
    return isinstance(codec, LateCodec) and not codec.ready


def with_shared_gpu(codec: PerCoV2) -> PerCoV2:
    """`codec` itself, or the same borrowing its GPU where the host wants that."""
    if not host.has_shared_gpu():
        return codec
    return cast("PerCoV2", SharedGpuCodec(codec, import_module("spaces").GPU))


class SharedGpuCodec:
    """Has the methods of `PerCoV2`; those that need its device borrow it."""

    def __init__(self, codec: PerCoV2, gpu: Callable[..., Any]) -> None:
        self._codec = codec

        def call(method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            try:
                return getattr(codec, method)(*arguments, **options)
            except PerCoError as error:
                return error

        def paint(contents: Contents, options: dict[str, Any]) -> Iterator[Step | PerCoError]:
            # Previews are made here, where the GPU is. Closing this ends the painting.
            shown, shown_s = None, -PREVIEW_EVERY_S
            try:
                with closing(codec.paint(contents, **options)) as steps:
                    for step in steps:
                        if step.picture is None and time.monotonic() - shown_s >= PREVIEW_EVERY_S:
                            shown, shown_s = step.preview(), time.monotonic()
                        shown = shown or step.picture
                        # A method of the picture, since what travels has to be pickled.
                        preview = cast(Image.Image, shown).copy
                        yield replace(step, preview=preview)
            except PerCoError as error:
                yield error

        self._call = gpu(duration=call_s)(call)
        self._paint = gpu(duration=painting_s)(paint)

    def __getattr__(self, name: str) -> Any:
        if name not in _BORROWING:
            return getattr(self._codec, name)

        def borrowed(*arguments: Any, **options: Any) -> Any:
            if name == "describe" and self._codec.captioners(options["captioner"]).name in _NO_GPU:
                return self._codec.describe(*arguments, **options)
            answer = self._call(name, arguments, options)
            if isinstance(answer, PerCoError):
                raise answer
            return answer

        return borrowed

    def looking(self, image: Image.Image, **options: Any) -> Generator[Found, None, None]:
        """As `PerCoV2.looking`, in one part: what runs elsewhere does not report."""
        from percov2_core.codec import Found

        yield Found(1.0, self.look(image, **options))

    def completing(
        self, image: Image.Image, tokens: Tokens, stream: Stream
    ) -> Generator[Found, None, None]:
        """As `PerCoV2.completing`, likewise."""
        from percov2_core.codec import Found

        best = tokens.effort == EFFORTS[-1]
        yield Found(1.0, self.complete(image, tokens, stream) if best else tokens)

    def paint(self, contents: Contents, **options: Any) -> Generator[Step, None, None]:
        """As `PerCoV2.paint`; previews come at the first step and then once a second."""
        with closing(self._paint(contents, options)) as painting:
            for step in painting:
                if isinstance(step, PerCoError):
                    raise step
                yield step


def painting_s(contents: Contents, options: dict[str, Any]) -> float:
    """Seconds to borrow for one painting; guidance doubles the batch."""
    batch = 2 if options["guidance"] > 1.0 else 1
    per_megapixel_s: float = DECODE_S + STEP_S * options["steps"] * batch
    return min(MOST_S, START_S + per_megapixel_s * _megapixels(contents.stream))


def call_s(method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> float:
    """Seconds to borrow for any other method of the codec."""
    per_megapixel_s = ENCODE_S if method in ("encode", "look", "complete") else DECODE_S
    return min(MOST_S, START_S + per_megapixel_s * _megapixels(arguments[0]))


def _megapixels(sized: Any) -> float:
    """Of a picture or of a stream."""
    width, height = getattr(sized, "size", None) or (sized.width, sized.height)
    return float(width * height / 1e6)
