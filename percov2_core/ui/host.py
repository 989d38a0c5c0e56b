"""The machine that hosts the page: its folders, its way to stop, what passes its door.

Only light libraries at the top: the others look for their folders, and for a GPU, when they are
imported, and `prepare` comes before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import inspect
import logging
import os
import signal
import stat
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from percov2_core.errors import PerCoError

if TYPE_CHECKING:
    from percov2_core.ui.page import Page

logger = logging.getLogger(__name__)

SHARED_GPU_VARIABLE = "SPACES_ZERO_GPU"  # set by hosts that lend a GPU call by call
PREFIX_VARIABLE = "GRADIO_ROOT_PATH"  # set by hosts that serve the page below a path

FINISH_S = 20.0  # hosts kill what has not stopped some 30 s after they asked
QUIET_S = 1.0  # without any request: results are fetched by requests of their own
POLL_S = 0.1
VISITOR_S = 4.0  # for the first one to come, before the codec is loaded for whoever comes later
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
    """Settle folders and shared hardware, and import gradio. Call it first."""
    # Spinning threads were seen to take ten times as long on cores that others use as well.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of NumPy, whose products are small
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")  # a millisecond: small products are many
    # Gradio's statistics of 10,000 events, made anew after each, took half of a busy server's time.
    # An event that they forget before it ends is lost, so that more are kept than may wait.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1000")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
    use_temporary_folders()
    # Other versions may not expect it, and are imported as ever by whoever needs them next.
    with _without_stubs(), contextlib.suppress(OSError):
        import_module("gradio")
    if has_shared_gpu():
        # It has to see torch before anybody uses it: on such hosts there is no GPU yet.
        import_module("spaces")


@contextlib.contextmanager
def _without_stubs() -> Iterator[None]:
    """Inside, gradio writes no stubs (`.pyi`) for editors beside its components: each time that it
    is imported it parses all of them, which takes a third of that time. It leaves out components
    that are in no file, and asks `inspect` where they are."""
    found = inspect.getfile

    def getfile(object: Any) -> str:
        if type(object).__name__ == "ComponentMeta":
            raise OSError("said to be in no file")
        return found(object)

    inspect.getfile = getfile  # its argument is named as that of Python's own
    try:
        yield
    finally:
        inspect.getfile = found


def use_temporary_folders() -> None:
    """Uploads go into the temporary folder; caches too where the home folder is read-only.
    What the environment names already stays as it is."""
    folder = Path(tempfile.gettempdir()) / "percov2"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(folder / "uploads"))
    if not _writable(Path.home()):
        for variable, name in _CACHES.items():
            os.environ.setdefault(variable, str(folder / name))


def _writable(folder: Path) -> bool:
    # Asking for permissions is not enough: file systems can be read-only, even for root.
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder):
        return True
    return False


def has_shared_gpu() -> bool:
    """True where a GPU is borrowed for each call, and the host's module for that is there."""
    asked = os.environ.get(SHARED_GPU_VARIABLE, "").lower() in ("1", "t", "true")
    return asked and find_spec("spaces") is not None


def return_memory() -> None:
    """Collect what a visitor left; give back what glibc keeps of freed memory for each thread."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def page_address(headers: Mapping[str, str]) -> str:
    """Where this page is, as the visitor's browser sees it, without query and fragment.
    Browsers that do not say it leave the host's word: its forwarded name, and `PREFIX_VARIABLE`."""
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
    """Refuses or counts requests, and gives answers our headers; closed, it lets no new work in."""

    def __init__(self, cache: Path, allowed_bytes: Callable[[str, str], int]) -> None:
        """`allowed_bytes`: what a method may send to a path; below 0 it has no business there."""
        self.cache, self.allowed_bytes = cache, allowed_bytes
        self.closed, self.visited = threading.Event(), threading.Event()
        self._inside = 0
        self._quiet_since = time.monotonic()

    def quiet(self) -> bool:
        """True once nothing has been under way for a while."""
        return self._inside == 0 and time.monotonic() - self._quiet_since >= QUIET_S

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app` behind this door."""
        return partial(self._answer, app)

    async def _answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))
        request = _Bounded(receive, send, self.allowed_bytes(method, path))
        if request.left_bytes < 0:
            await request.refuse(scope, 404, "Not found")
        elif method == "GET" and any(part in path for part in _STANDING):
            await app(scope, request.receive, request.send)
        elif method == "POST" and self.closed.is_set():
            await request.refuse(scope, 503, STOPPING)
        else:
            self._inside += 1  # on the server's one thread, as what follows
            if method == "GET" and path == "/":
                self.visited.set()
            try:
                if method == "POST":
                    await asyncio.to_thread(trim, self.cache)
                await app(scope, request.receive, request.send)
            except Exception as error:  # what gradio does not expect, such as unknown numbers
                known = isinstance(error.__cause__, HTTPException)  # within a stream
                if request.answered and not known:
                    raise
                logger.warning("%s refused: %s", method, type(error).__name__)
                if request.answered:
                    await request.send({"type": "http.response.body"})
                else:
                    await request.refuse(scope, *request.reason)
            finally:
                self._quiet_since = time.monotonic()
                self._inside -= 1


class _Bounded:
    """One request that may send so many bytes, and its answer with our headers."""

    def __init__(self, receive: Receive, send: Send, left_bytes: int) -> None:
        self._receive, self._send, self.left_bytes = receive, send, left_bytes
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


def serve(demo: Page, load: Callable[[], object], **options: Any) -> NoReturn:
    """Launch, `load` what the page needs, and end this process with status 0 once the host or the
    keyboard stops the page. On SIGTERM no new work is taken (503), what runs is answered, for at
    most `FINISH_S`; on Ctrl+C it stops at once. Where `load` fails, it stops as on SIGTERM, says
    why, and ends with status 1. `options` are arguments of `gr.Blocks.launch`."""
    from gradio.utils import get_upload_folder

    from percov2_core.ui.border import allowed_bytes

    door, stop = Door(Path(get_upload_folder()), allowed_bytes), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    middleware = [Middleware(door.around), Middleware(demo.around)]
    demo.launch(prevent_thread_lock=True, app_kwargs={"middleware": middleware}, **options)
    loading = ThreadPoolExecutor(1).submit(_load_after_page, load, door)
    loading.add_done_callback(lambda done: stop.set() if done.exception() else None)
    with contextlib.suppress(KeyboardInterrupt):
        stop.wait()
        door.closed.set()
        if not wait_until_quiet(door):
            logger.warning("stopped with work under way after %.0f s", FINISH_S)
    demo.close(verbose=False)
    error = loading.exception() if loading.done() else None
    if isinstance(error, PerCoError):
        print(f"percov2: {error}", file=sys.stderr)
    elif error:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not `sys.exit`: it would wait for threads that still paint.
    os._exit(1 if error else 0)


def _load_after_page(load: Callable[[], object], door: Door) -> None:
    """Imports hold the interpreter, which whoever is just opening the first page would feel."""
    door.visited.wait(VISITOR_S)
    wait_until_quiet(door)
    load()
    gc.freeze()  # what is loaded by now stays; `return_memory` need not look at it again
    gc.enable()


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
    for path in (Path(parent, name) for parent, _, names in os.walk(folder) for name in names):
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
