"""The page in a process of its own, so that nothing of it is left behind in the tests'."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
START_S = 480  # generous: a busy machine takes its time to import everything


@dataclass(frozen=True)
class Server:
    """A running page."""

    address: str
    log: Path
    files: Path  # where uploads and temporary files go
    hold: Path  # while it exists, painting waits after its first step (see `held_page.py`)
    pid: int = 0

    def errors(self) -> str:
        text = self.log.read_text(encoding="utf-8")
        return text if "Traceback" in text or "Error" in text else ""


@contextmanager
def serve(
    model: Path | str,
    folder: Path,
    *,
    held: bool = False,
    keep_files_s: int = 0,
    threads: int = 1,
    script: Sequence[str] = ("app.py",),
) -> Iterator[Server]:
    """Start `app.py`, wait until it answers, and stop it at the end.

    `held` heeds `Server.hold`; `keep_files_s` over 0 removes files sooner than the page does;
    `script` is what Python runs.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    server = Server(address, folder / "server.log", folder / "files", folder / "hold")
    if held or keep_files_s:
        script = ["-m", "tests.held_page", str(server.hold), str(keep_files_s)]
    environment = os.environ | {
        "PERCOV2_MODEL": str(model),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(server.files),
        "OMP_NUM_THREADS": str(threads),
    }
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *script], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            wait_for(address, process, server.log)
            yield replace(server, pid=process.pid)
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the page answers."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the page did not start:\n{log.read_text(encoding='utf-8')}")
