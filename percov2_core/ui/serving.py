"""Serve the page until the host stops it: finish what runs, take nothing new, bound the cache."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger(__name__)

FINISH_S = 20.0  # hosts kill what has not stopped some 30 s after they asked
QUIET_S = 1.0  # without any request: results are fetched by requests of their own
POLL_S = 0.1
MAX_CACHE_BYTES = 10**9
ROOM_BYTES = 250 * 10**6  # for uploads that arrive at the same moment
STOPPING = "This page is being restarted. Try again in a minute."

_WORK = ("/queue/join", "/upload", "/call/", "/run/", "/api/", "/mcp")
# Connections that stay open for as long as somebody looks at the page.
_STANDING = ("/heartbeat/", "/mcp", "/dev/reload")


class Door:
    """Knows which requests are under way; closed, it lets no new work in."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._lock = threading.Lock()
        self._inside = 0
        self._quiet_since = time.monotonic()
        self._closed = False

    def close(self) -> None:
        self._closed = True

    def enter(self, method: str, path: str) -> bool:
        """-> whether this request may pass."""
        if self._closed and method == "POST" and any(part in path for part in _WORK):
            return False
        with self._lock:
            self._inside += 1
        return True

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            self._quiet_since = time.monotonic()

    def quiet(self) -> bool:
        """True once nothing has been under way for a while."""
        with self._lock:
            return self._inside == 0 and time.monotonic() - self._quiet_since >= QUIET_S


class DoorMiddleware:
    """Sends every HTTP request past a `Door`."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app = app
        self.door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        standing = any(part in path for part in _STANDING) and scope.get("method") == "GET"
        if scope["type"] != "http" or standing:
            await self.app(scope, receive, send)
            return
        if not self.door.enter(scope["method"], path):
            refusal = JSONResponse({"detail": STOPPING}, 503, {"Retry-After": "60"})
            await refusal(scope, receive, send)
            return
        try:
            if scope["method"] == "POST":
                await asyncio.to_thread(trim, self.door.cache)
            await self.app(scope, receive, send)
        finally:
            self.door.leave()


def serve(demo: gr.Blocks, **options: Any) -> NoReturn:
    """Launch, and end this process with status 0 once the host or the keyboard stops the page.

    On SIGTERM no new work is taken (503), what runs is answered, for at most `FINISH_S`.
    On Ctrl+C it stops at once.

    Args:
        options: Arguments of `gr.Blocks.launch`.
    """
    door, stop = Door(Path(get_upload_folder())), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    middleware = [Middleware(DoorMiddleware, door=door)]
    demo.launch(prevent_thread_lock=True, app_kwargs={"middleware": middleware}, **options)
    with contextlib.suppress(KeyboardInterrupt):
        stop.wait()
        door.close()
        if not _wait_until_quiet(door):
            logger.warning("stopped with work under way after %.0f s", FINISH_S)
    demo.close(verbose=False)
    sys.stdout.flush()
    # Not `sys.exit`: it would wait for threads that still paint.
    os._exit(0)


def _wait_until_quiet(door: Door) -> bool:
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
        try:
            status = path.stat()
        except FileNotFoundError:  # swept by gradio in the meantime
            continue
        if path.is_file():
            found.append((status.st_mtime, status.st_size, path))
    left_bytes = sum(size_bytes for _, size_bytes, _ in found)
    for _, size_bytes, path in sorted(found):
        if left_bytes <= limit_bytes:
            return
        path.unlink(missing_ok=True)
        left_bytes -= size_bytes
