"""The page in a process of its own, around the tiny codec, and a browser to look at it."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Error, Locator, Page, Playwright

ROOT = Path(__file__).parents[1]
START_S = 240  # generous: a busy machine takes its time to import everything
SYSTEM_CHROMIUM = Path("/usr/bin/chromium")
_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(frozen=True)
class Server:
    """A running page."""

    address: str
    log: Path
    files: Path  # where uploads and temporary files go
    hold: Path  # while it exists, painting waits after its first step (see `held_page.py`)

    def errors(self) -> str:
        text = self.log.read_text(encoding="utf-8")
        return text if "Traceback" in text or "Error" in text else ""


@contextmanager
def serve(model: Path, folder: Path, *, held: bool = False) -> Iterator[Server]:
    """Start `app.py`, wait until it answers, and stop it at the end; `held` heeds `Server.hold`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    server = Server(address, folder / "server.log", folder / "files", folder / "hold")
    script = ["-m", "tests.held_page", str(server.hold)] if held else ["app.py"]
    environment = os.environ | {
        "PERCOV2_MODEL": str(model),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(server.files),
        "OMP_NUM_THREADS": "1",
    }
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *script], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            _wait(server, process)
            yield server
        finally:
            process.terminate()
            process.wait(30)


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(server.address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"the page did not start:\n{server.log.read_text(encoding='utf-8')}")


def launch(playwright: Playwright) -> Browser:
    """The system's Chromium, else Playwright's own; skips where there is neither."""
    path = str(SYSTEM_CHROMIUM) if SYSTEM_CHROMIUM.exists() else None
    try:
        return playwright.chromium.launch(executable_path=path, args=_QUIET)
    except Error:
        pytest.skip("needs Chromium: install it, or run `playwright install chromium`")


def pixels(image: Locator) -> bytes:
    """The decoded PNG of an <img> whose picture is inside the page."""
    source = image.get_attribute("src") or ""
    assert source.startswith("data:image/png;base64,")
    data = base64.b64decode(source.partition(",")[2])
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def choose_example(page: Page, number: int) -> None:
    """Click a thumbnail and wait until its caption is there."""
    box = page.locator("#pc-caption-box textarea")
    before = box.input_value()
    page.locator("#pc-examples button").nth(number).click()
    page.wait_for_function(
        "([before]) => { const now = document.querySelector('#pc-caption-box textarea').value;"
        " return now && now !== before }",
        arg=[before],
    )


def compress(page: Page) -> int:
    """Press the button, wait for the picture; -> the bytes in the headline."""
    page.evaluate("document.querySelector('#pc-stage figure')?.classList.add('seen')")
    page.locator("#pc-compress").click()
    page.wait_for_selector("#pc-stage figure:not(.seen) .pc-range")
    return int(page.locator("#pc-bytes").get_attribute("data-bytes") or 0)


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
