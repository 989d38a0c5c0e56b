"""What the stand-ins for the Hub share: an HTTP server of this machine, with a state beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

TOKEN = "hf_standin"
H = TypeVar("H")


class Handler(BaseHTTPRequestHandler):
    """Quiet, and knows the state as `hub`."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Any:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[Handler], make: Callable[[str], H]) -> Iterator[H]:
    """Serve `make(address)` on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub = make(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
