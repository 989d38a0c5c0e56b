"""The machine that hosts the page: its folders, its shared GPU, its way to stop, its headers.

Only light libraries at the top: the others look for their folders, and for a GPU, when they are
imported, and `prepare` comes before that.

On hosts that lend a GPU call by call (ZeroGPU) a call decorated with `spaces.GPU` runs in another
process, which alone has the GPU. What goes in and out is pickled, the codec itself comes along by
forking, and errors other than gradio's lose their text on the way: so errors travel as values, and
pictures as PIL images. Nothing is compiled there: a new process would compile again. Proven with a
stand-in for the `spaces` module (`tests/spaces_stand_in`), not on the hardware.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast
from urllib.parse import urlsplit, urlunsplit

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from percov2_core.errors import PerCoError

if TYPE_CHECKING:
    import gradio as gr
    from PIL import Image

    from percov2_core.codec import PerCoV2, Step
    from percov2_core.contents import Contents

logger = logging.getLogger(__name__)

SHARED_GPU_VARIABLE = "SPACES_ZERO_GPU"  # set by hosts that lend a GPU call by call
PREFIX_VARIABLE = "GRADIO_ROOT_PATH"  # set by hosts that serve the page below a path

FINISH_S = 20.0  # hosts kill what has not stopped some 30 s after they asked
QUIET_S = 1.0  # without any request: results are fetched by requests of their own
POLL_S = 0.1
MAX_CACHE_BYTES = 10**9
ROOM_BYTES = 250 * 10**6  # for uploads that arrive at the same moment
STOPPING = "This page is being restarted. Try again in a minute."

# Gradio's page has inline scripts and styles and makes functions of text; it needs no other host.
# The frame is that of the hosted Space.
HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; connect-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co https://*.hf.space",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}

# Seconds to borrow the GPU for. Allowances, not measurements: asking for too much costs the visitor
# a place in the host's queue, asking for too little ends the call half-way.
START_S = 10.0  # a new process, weights moved to the GPU
STEP_S = 0.5  # per step of the flow, megapixel and picture in the batch
DECODE_S = 4.0  # per megapixel: everything around the steps, previews included
ENCODE_S = 15.0  # per megapixel, the search for better tokens included
MOST_S = 120.0  # hosts refuse much more
PREVIEW_EVERY_S = 1.0
_BORROWING = ("encode", "read", "truncate", "describe")
_NO_GPU = ("describer", "fixed")  # captioners that run where the page runs

# Variable -> its folder, for libraries that otherwise write into the home folder.
_CACHES = {
    "HF_HOME": "huggingface",
    "MPLCONFIGDIR": "matplotlib",
    "TORCH_HOME": "torch",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "cache",
}
# Connections that stay open for as long as somebody looks at the page.
_STANDING = ("/heartbeat/", "/mcp", "/dev/reload")


def prepare() -> None:
    """Settle folders and shared hardware. Call it first."""
    use_temporary_folders()
    if has_shared_gpu():
        # It has to see torch before anybody uses it: on such hosts there is no GPU yet.
        import_module("spaces")


def use_temporary_folders() -> None:
    """Uploads go into the temporary folder; caches too where the home folder is read-only.

    What the environment names already stays as it is.
    """
    folder = Path(tempfile.gettempdir()) / "percov2"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(folder / "uploads"))
    if not _writable(Path.home()):
        for variable, name in _CACHES.items():
            os.environ.setdefault(variable, str(folder / name))


def _writable(folder: Path) -> bool:
    # Asking for permissions is not enough: file systems can be read-only, even for root.
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def has_shared_gpu() -> bool:
    """True where a GPU is borrowed for each call, and the host's module for that is there."""
    asked = os.environ.get(SHARED_GPU_VARIABLE, "").lower() in ("1", "t", "true")
    return asked and find_spec("spaces") is not None


def page_address(headers: Mapping[str, str]) -> str:
    """Where this page is, as the visitor's browser sees it, without query and fragment.

    Browsers that do not say it leave the host's word: its forwarded name, and its path prefix in
    the environment.
    """
    if seen := headers.get("referer"):
        parts = urlsplit(seen)
        return urlunsplit((parts.scheme, parts.netloc, parts.path or "/", "", ""))
    prefix = os.environ.get(PREFIX_VARIABLE, "").strip("/")
    if "://" in prefix:
        return f"{prefix}/"
    origin = headers.get("origin", "null")
    if origin == "null":  # what browsers send from inside some frames
        host = _first(headers.get("x-forwarded-host")) or headers.get("host", "")
        origin = f"{_first(headers.get('x-forwarded-proto')) or 'http'}://{host}"
    return f"{origin}/{prefix}/" if prefix else f"{origin}/"


def _first(listed: str | None) -> str:
    """What the outermost of several proxies said."""
    return (listed or "").partition(",")[0].strip()


class Door:
    """Every HTTP request goes through: refused, counted, given our headers on the way out.

    Closed, it lets no new work in.
    """

    def __init__(self, cache: Path, allowed_bytes: Callable[[str, str], int]) -> None:
        """`allowed_bytes`: what a method may send to a path; below 0 it has no business there."""
        self.cache = cache
        self.allowed_bytes = allowed_bytes
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._inside = 0
        self._quiet_since = time.monotonic()

    def quiet(self) -> bool:
        """True once nothing has been under way for a while."""
        with self._lock:
            return self._inside == 0 and time.monotonic() - self._quiet_since >= QUIET_S

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app` behind this door."""

        async def passed(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await self._answer(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return passed

    async def _answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))
        request = _Bounded(receive, send, self.allowed_bytes(method, path))
        standing = method == "GET" and any(part in path for part in _STANDING)
        if request.left_bytes < 0:
            await request.refuse(scope, 404, "Not found")
        elif standing:
            await app(scope, request.receive, request.send)
        elif method == "POST" and self.closed.is_set():
            await request.refuse(scope, 503, STOPPING)
        else:
            with self._counted():
                if method == "POST":
                    await asyncio.to_thread(trim, self.cache)
                try:
                    await app(scope, request.receive, request.send)
                except Exception as error:  # what gradio does not expect, such as unknown numbers
                    if request.answered:
                        raise
                    logger.warning("%s refused: %s", method, type(error).__name__)
                    await request.refuse(scope, *request.reason)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                self._quiet_since = time.monotonic()


class _Bounded:
    """One request that may send so many bytes, and its answer with our headers."""

    def __init__(self, receive: Receive, send: Send, left_bytes: int) -> None:
        self._receive, self._send = receive, send
        self.left_bytes = left_bytes
        self.answered = False
        self.reason = (400, "This request cannot be answered.")

    async def receive(self) -> Message:
        message = await self._receive()
        self.left_bytes -= len(message.get("body", b""))
        if self.left_bytes < 0:
            self.reason = (413, "This is more than the page takes at once.")
            raise ValueError("too long")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answered = True
            MutableHeaders(scope=message).update(HEADERS)
        await self._send(message)

    async def refuse(self, scope: Scope, status: int, said: str) -> None:
        headers = {"Retry-After": "60"} if status == 503 else None
        answer = JSONResponse({"detail": said}, status, headers)
        await answer(scope, self._receive, self.send)


def serve(demo: gr.Blocks, **options: Any) -> NoReturn:
    """Launch, and end this process with status 0 once the host or the keyboard stops the page.

    On SIGTERM no new work is taken (503), what runs is answered, for at most `FINISH_S`.
    On Ctrl+C it stops at once.

    Args:
        options: Arguments of `gr.Blocks.launch`.
    """
    from gradio.utils import get_upload_folder

    from percov2_core.ui.border import allowed_bytes

    door, stop = Door(Path(get_upload_folder()), allowed_bytes), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    middleware = [Middleware(door.around)]
    demo.launch(prevent_thread_lock=True, app_kwargs={"middleware": middleware}, **options)
    with contextlib.suppress(KeyboardInterrupt):
        stop.wait()
        door.closed.set()
        if not wait_until_quiet(door):
            logger.warning("stopped with work under way after %.0f s", FINISH_S)
    demo.close(verbose=False)
    sys.stdout.flush()
    # Not `sys.exit`: it would wait for threads that still paint.
    os._exit(0)


def wait_until_quiet(door: Door) -> bool:
    deadline = time.monotonic() + FINISH_S
    while not door.quiet():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def trim(folder: Path, *, limit_bytes: int = MAX_CACHE_BYTES - ROOM_BYTES) -> None:
    """Delete the oldest files until those that are left have at most `limit_bytes`."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # swept by gradio in the meantime
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_mtime, status.st_size, path))
    left_bytes = sum(size_bytes for _, size_bytes, _ in found)
    for _, size_bytes, path in sorted(found):
        if left_bytes <= limit_bytes:
            return
        path.unlink(missing_ok=True)
        left_bytes -= size_bytes


def with_shared_gpu(codec: PerCoV2) -> PerCoV2:
    """`codec` itself, or the same borrowing its GPU where the host wants that."""
    if not has_shared_gpu():
        return codec
    return cast("PerCoV2", SharedGpuCodec(codec, import_module("spaces").GPU))


class Painted(NamedTuple):
    """One step of a painting, as it travels back from the GPU."""

    step: int = 0
    total: int = 0
    shown: Image.Image | None = None  # a preview
    picture: Image.Image | None = None
    error: PerCoError | None = None


class SharedGpuCodec:
    """Has the methods of `PerCoV2`; those that need its device borrow it."""

    def __init__(self, codec: PerCoV2, gpu: Callable[..., Any]) -> None:
        """`gpu` is `spaces.GPU`."""
        self._codec = codec

        def call(method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            try:
                return getattr(codec, method)(*arguments, **options)
            except PerCoError as error:
                return error

        def paint(contents: Contents, options: dict[str, Any]) -> Iterator[Painted]:
            yield from _painted(codec, contents, options)

        self._call = gpu(duration=call_s)(call)
        self._paint = gpu(duration=painting_s)(paint)

    def __getattr__(self, name: str) -> Any:
        if name not in _BORROWING:
            return getattr(self._codec, name)

        def borrowed(*arguments: Any, **options: Any) -> Any:
            if options.get("captioner") in _NO_GPU and name == "describe":
                return self._codec.describe(*arguments, **options)
            answer = self._call(name, arguments, options)
            if isinstance(answer, PerCoError):
                raise answer
            return answer

        return borrowed

    def paint(self, contents: Contents, **options: Any) -> Generator[Step, None, None]:
        """As `PerCoV2.paint`; previews come at the first step and then once a second."""
        from percov2_core.codec import Step

        latest: Image.Image | None = None
        with contextlib.closing(self._paint(contents, options)) as painting:
            for painted in painting:
                if painted.error is not None:
                    raise painted.error
                latest = painted.shown or latest
                preview = cast("Callable[[], Image.Image]", lambda shown=latest: shown)
                yield Step(painted.step, painted.total, preview, painted.picture)


def _painted(codec: PerCoV2, contents: Contents, options: dict[str, Any]) -> Iterator[Painted]:
    """Paint, with previews: they are made here, where the GPU is. Closing it ends the painting."""
    shown_s = -PREVIEW_EVERY_S
    try:
        with contextlib.closing(codec.paint(contents, **options)) as steps:
            for step in steps:
                preview = None
                if step.picture is None and time.monotonic() - shown_s >= PREVIEW_EVERY_S:
                    preview, shown_s = step.preview(), time.monotonic()
                yield Painted(step.index, step.total, preview, step.picture)
    except PerCoError as error:
        yield Painted(error=error)


def painting_s(contents: Contents, options: dict[str, Any]) -> float:
    """Seconds to borrow for one painting; guidance doubles the batch."""
    batch = 2 if options["guidance"] > 1.0 else 1
    per_megapixel_s: float = DECODE_S + STEP_S * options["steps"] * batch
    return min(MOST_S, START_S + per_megapixel_s * _megapixels(contents.stream))


def call_s(method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> float:
    """Seconds to borrow for any other method of the codec."""
    per_megapixel_s = ENCODE_S if method == "encode" else DECODE_S
    return min(MOST_S, START_S + per_megapixel_s * _megapixels(arguments[0]))


def _megapixels(sized: Any) -> float:
    """Of a picture or a stream."""
    return float(sized.width * sized.height / 1e6)
