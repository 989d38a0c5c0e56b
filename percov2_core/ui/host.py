"""What the machine that hosts the page asks for, before any library is loaded.

Only the standard library: the others look for their folders when they are imported.
"""

from __future__ import annotations

import os
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

SHARED_GPU_VARIABLE = "SPACES_ZERO_GPU"  # set by hosts that lend a GPU call by call (ZeroGPU)

# Variable -> its folder, for libraries that otherwise write into the home folder.
_CACHES = {
    "HF_HOME": "huggingface",
    "MPLCONFIGDIR": "matplotlib",
    "TORCH_HOME": "torch",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "cache",
}


def prepare() -> None:
    """Settle folders and shared hardware. Call it first."""
    use_temporary_folders()
    if has_shared_gpu():
        # It has to see torch before anybody uses it: on such hosts there is no GPU yet.
        import_module("spaces")


def use_temporary_folders() -> None:
    """Uploads go into the temporary folder; caches too where the home folder is read-only.

    What the environment names already stays as it is.
    """
    folder = Path(tempfile.gettempdir()) / "percov2"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(folder / "uploads"))
    if not _writable(Path.home()):
        for variable, name in _CACHES.items():
            os.environ.setdefault(variable, str(folder / name))


def has_shared_gpu() -> bool:
    """True where a GPU is borrowed for each call, and the host's module for that is there."""
    asked = os.environ.get(SHARED_GPU_VARIABLE, "").lower() in ("1", "t", "true")
    return asked and find_spec("spaces") is not None


def _writable(folder: Path) -> bool:
    # Asking for permissions is not enough: file systems can be read-only, even for root.
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
