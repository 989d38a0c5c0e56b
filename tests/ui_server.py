"""The page in a process of its own, so that nothing of it is left behind in the tests'."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from tests.held_page import Work

ROOT = Path(__file__).parents[1]
START_S = 480  # generous: a busy machine takes its time to import everything


@dataclass(frozen=True)
class Server:
    address: str
    log: Path
    files: Path  # where uploads and temporary files go
    hold: Path  # of `held_page.py`
    pid: int = 0

    @property
    def work(self):
        """What the model has done so far, where the page is held."""
        return Work.read(self.hold.with_name("counts"))

    @property
    def memory_bytes(self):
        return psutil.Process(self.pid).memory_info().rss

    @contextmanager
    def holding(self):
        """Inside, painting stands still after its first step."""
        self.hold.touch()
        try:
            yield self.hold
        finally:
            self.hold.unlink(missing_ok=True)

    def errors(self):
        text = self.log.read_text(encoding="utf-8")
        return text if "Traceback" in text or "Error" in text else ""


@contextmanager
def serve(model, folder, *, held=False, late=False, keep_files_s=0, threads=1, painter=""):
    """Start `app.py`, wait until it answers, and stop it at the end.

    `held` heeds `Server.hold`, `late` does so before it loads the codec; `keep_files_s` over 0
    removes files sooner than the page does.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    server = Server(address, folder / "server.log", folder / "files", folder / "hold")
    script = ["app.py"]
    if held or keep_files_s:
        script = ["-m", "tests.held_page", str(folder), str(keep_files_s)]
    elif late:
        script = ["-m", "tests.late_page", str(server.hold)]
    environment = os.environ | {
        "PERCOV2_MODEL": str(model),
        "PERCOV2_PAINTER": str(painter),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(server.files),
        "OMP_NUM_THREADS": str(threads),
    }
    with running(
        [sys.executable, *script], address, server.log, cwd=ROOT, env=environment
    ) as process:
        yield replace(server, pid=process.pid)


@contextmanager
def running(command, address, log, **options):
    """A process that serves a page, from when it answers until the end."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, **options)
        try:
            eventually(lambda: process.poll() is not None or answers(address), START_S)
            if process.poll() is not None:
                pytest.fail(f"the page did not start:\n{log.read_text(encoding='utf-8')}")
            yield process
        finally:
            process.terminate()
            process.wait(60)


def answers(address):
    with suppress(OSError), urllib.request.urlopen(address, timeout=5):
        return True
    return False


def eventually(true, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def listening(handler, **state):
    """An HTTP server of this machine on a free port, with `state` beside it; -> its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    vars(server).update(state)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
