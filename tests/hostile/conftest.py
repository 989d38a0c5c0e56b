"""One server for all strangers, secrets beside it, and somebody who must not be called."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from tests.hostile.stranger import Visitor
from tests.hostile.values import places
from tests.hostile.watched_page import Work
from tests.tiny import tiny_folder
from tests.ui_server import Server, serve


@dataclass
class Target:
    """The server under attack: what it must not open, and requests that reached loopback."""

    server: Server
    places: dict[str, str]
    called: list[str]
    seen: int = 0  # letters of the log

    @property
    def work(self) -> Work:
        """What the model has done so far."""
        return Work.read(self.server.hold.with_name("counts"))

    @property
    def memory_bytes(self) -> int:
        return int(psutil.Process(self.server.pid).memory_info().rss)

    def complaints(self) -> str:
        """What the log has said about faults since the last time."""
        log = self.server.log.read_text(encoding="utf-8", errors="replace")[self.seen :]
        self.seen, at = self.seen + len(log), log.find("Traceback")
        return log[max(0, at - 200) : at + 6000] if at >= 0 else ""


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder, owner = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("owner")
    called: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def handle(self) -> None:
            called.append(str(self.rfile.readline()))

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        script = [
            "-m",
            "tests.hostile.watched_page",
            *map(str, (folder / "counts", folder / "hold")),
        ]
        with serve(tiny_folder(), folder, script=script) as server:
            found = places(owner, server.files, listener.server_port)
            yield Target(server, found, called)
        listener.shutdown()


@pytest.fixture
def visitor(target: Target) -> Iterator[Visitor]:
    with Visitor(target.server.address) as visitor:
        yield visitor
