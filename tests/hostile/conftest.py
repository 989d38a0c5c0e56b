"""One server for all strangers, secrets beside it, and somebody who must not be called."""

from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import pytest

from tests import gallery
from tests.hostile.stranger import Visitor
from tests.hostile.values import places
from tests.tiny import tiny_codec, tiny_folder
from tests.ui_server import Server, listening, serve


@dataclass
class Target:
    """The server under attack: what it must not open, and requests that reached loopback."""

    server: Server
    places: dict[str, str]
    called: list[str]
    seen: int = 0  # letters of the log

    def complaints(self):
        """What the log has said about faults since the last time."""
        log = self.server.log.read_text(encoding="utf-8", errors="replace")[self.seen :]
        self.seen, at = self.seen + len(log), log.find("Traceback")
        return log[max(0, at - 200) : at + 6000] if at >= 0 else ""


@pytest.fixture(scope="session")
def target(tmp_path_factory):
    folder, owner = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("owner")
    called = []
    gallery.make(tiny_codec(), folder / "gallery", gallery.PICTURES[5:6])

    class Listener(BaseHTTPRequestHandler):
        def handle(self):
            called.append(str(self.rfile.readline()))

    with listening(Listener) as address, serve(tiny_folder(), folder, held=True) as server:
        yield Target(server, places(owner, server.files, urlsplit(address).port), called)


@pytest.fixture
def visitor(target):
    with Visitor(target.server.address) as visitor:
        yield visitor
