"""The page as a Space runs it: its files, its Python, two cores, nothing writable but TMPDIR."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from percov2_core.deploy.spacefile import ROOT, make_plan, read_manifest
from tests.ui_server import free_port, running

CORES = 2
_NEEDED = "import gradio, torch, diffusers, constriction"


@dataclass(frozen=True)
class Space:
    """A running page."""

    address: str
    port: int
    process: subprocess.Popen[bytes]
    app: Path  # what was uploaded
    home: Path
    temporary: Path
    log: Path

    def errors(self):
        """Tracebacks that pass through our code; some versions of libraries have their own."""
        blocks = self.log.read_text(encoding="utf-8").split("Traceback")[1:]
        return [block for block in blocks if "percov2_core" in block]


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
    command = [space_python(manifest), *(script or [manifest.page.app_file])]
    with running(command, address, log, preexec_fn=_two_cores, **how) as process:
        yield Space(address, port, process, app, home, temporary, log)


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


def space_python(manifest):
    """The Spacefile's Python where it is installed with the libraries, else this one."""
    minor = ".".join(manifest.page.python_version.split(".")[:2])
    if sys.version.startswith(f"{minor}."):
        return sys.executable
    found = shutil.which(f"python{minor}")
    works = found and subprocess.run([found, "-c", _NEEDED], capture_output=True).returncode == 0
    return found if found and works else sys.executable


def listing(folder):
    """Every file below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _two_cores():
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-CORES:])
