"""The page as a Space runs it: its files, two cores, nothing writable but TMPDIR; and below a path,
behind a reverse proxy, in a frame."""

import os
import shutil
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import httpx

from percov2_core.deploy.spacefile import ROOT, make_plan, read_manifest
from tests.ui_server import Quiet, free_port, listening, running

CORES = 2
PREFIX = "/spaces/demo"
FRAME_PX = 700
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
_FRAME = (
    "<!doctype html><title>embedding</title>"
    f'<iframe title="demo" src="{PREFIX}/?__theme=dark" width="{FRAME_PX}" height="1000"></iframe>'
)


@contextmanager
def start(folder, *, model, script=(), **environment):
    """Upload into `folder`, let Python run `app.py` there, or `script`; wait until it answers."""
    manifest, port = read_manifest(), free_port()
    app, temporary, log = folder / "app", folder / "temporary", folder / "log"
    for path in make_plan(manifest, ROOT).files:
        (app / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, app / path)
    temporary.mkdir()
    home, address = unwritable_home(folder), f"http://127.0.0.1:{port}/"
    environment["PERCOV2_MODEL"] = str(model)
    how = {"cwd": app, "env": hosted(manifest, home, temporary, port) | environment}
    command = [sys.executable, *(script or [manifest.page.app_file])]
    with running(command, address, log, preexec_fn=_two_cores, **how) as process:
        more = {"home": home, "temporary": temporary, "log": log}
        yield SimpleNamespace(address=address, port=port, process=process, app=app, **more)


def hosted(manifest, home, temporary, port):
    """The environment of a Space; here the page listens to this machine only."""
    words = "LANG=C.UTF-8 SYSTEM=spaces SPACE_ID=somebody/percov2 SPACE_AUTHOR_NAME=somebody "
    words += "SPACE_HOST=somebody-percov2.hf.space SPACE_REPO_NAME=percov2 HF_HUB_OFFLINE=1 "
    words += "GRADIO_SERVER_NAME=127.0.0.1 PYTHONDONTWRITEBYTECODE=1"
    own = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(temporary)}
    own |= dict(word.split("=") for word in words.split())
    return manifest.settings.variables | own | {"GRADIO_SERVER_PORT": str(port)}


def unwritable_home(folder):
    """A home that nobody may write to. Permissions do not stop root: then a kernel's folder."""
    home = folder / "home"
    home.mkdir(mode=0o555)
    return Path("/proc") if os.access(home, os.W_OK) and os.path.isdir("/proc") else home


def _two_cores():
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-CORES:])


def proxy(port):
    """-> the address of this host; the page on `port` is below `PREFIX`, its frame at /frame."""
    return listening(_Handler, page_port=port)


class _Handler(Quiet):
    def _serve(self):
        if self.path == "/frame":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(_FRAME.encode())
        elif self.path.startswith(PREFIX):
            self._forward(self.path.removeprefix(PREFIX) or "/")
        else:
            self.send_error(404)

    do_GET = do_POST = do_HEAD = _serve

    def _forward(self, path):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        headers |= {"X-Forwarded-Host": self.headers["Host"], "X-Forwarded-Proto": "http"}
        page = f"http://127.0.0.1:{self.server.page_port}{path}"
        with suppress(BrokenPipeError, ConnectionResetError):  # the visitor left
            how = {"content": body, "headers": headers, "timeout": None}
            with httpx.stream(self.command, page, **how) as answer:
                self.send_response(answer.status_code)
                for name, value in answer.headers.multi_items():
                    if name not in _HOP:
                        self.send_header(name, value)
                self.end_headers()
                # Pieces as they come: the page's news never end.
                for piece in answer.iter_raw():
                    self.wfile.write(piece)
                    self.wfile.flush()
