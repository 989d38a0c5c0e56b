"""What all tests share: no network, no clock, and data that may be absent."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Set before any library is imported. The tests never leave the machine, and one thread each is
# faster than many that wait for each other where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

# The same examples on every run, and no limit that a busy machine could miss.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photos and captions beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data folder {SHARED.name!r} beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def kodak(shared: Path) -> list[Path]:
    """The Kodak pictures, in order. For evaluation only."""
    pictures = sorted((shared / "data" / "kodak").glob("*.png"))
    if not pictures:
        pytest.skip("needs the Kodak pictures in the data folder")
    return pictures
