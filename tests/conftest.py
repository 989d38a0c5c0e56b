"""What all tests share: no network, no clock, and data that may be absent."""

import os
from copy import copy
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

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
def shared():
    """The folder of photos and captions beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data folder {SHARED.name!r} beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def kodak(shared):
    """The Kodak pictures, in order. For evaluation only."""
    pictures = sorted((shared / "data" / "kodak").glob("*.png"))
    if not pictures:
        pytest.skip("needs the Kodak pictures in the data folder")
    return pictures


@pytest.fixture(scope="session")
def shipped():
    from percov2_core.weights import load_codec
    from percov2_core.weights.find import EMBEDDED_DIR

    if not (EMBEDDED_DIR / "model.json").is_file():
        pytest.skip("the embedded model is not in place")
    return load_codec(device="cpu")


@pytest.fixture(scope="session")
def unsearched(shipped):
    """The embedded model that takes the nearest codes: its encoder is much faster."""
    from percov2_core.config import SearchConfig

    codec = copy(shipped)
    codec.levels = {n: replace(m, search=SearchConfig()) for n, m in shipped.levels.items()}
    return codec


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    from tests.tiny import picture

    folder = tmp_path_factory.mktemp("photos")
    for i in range(6):
        picture(150 + 10 * i, 140, seed=i).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def photo(tmp_path):
    from tests.tiny import picture

    picture().save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


@pytest.fixture(scope="module")
def sd3_base():
    """The tiny base folder, named to the package."""
    from tests.tiny_sd3 import tiny_sd3_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERCOV2_SD3_BASE", str(tiny_sd3_folder()))
        yield tiny_sd3_folder()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The page around the tiny codec and a tiny second painter, in a process of its own."""
    from tests import gallery
    from tests.tiny import tiny_codec, tiny_folder
    from tests.tiny_sd3 import tiny_sd3_folder
    from tests.ui_server import serve

    folder = tmp_path_factory.mktemp("page")
    gallery.make(tiny_codec(), folder / "gallery", gallery.PICTURES[5:7])
    with serve(tiny_folder(), folder, held=True, painter=tiny_sd3_folder()) as running:
        yield running
        assert not running.errors()


@pytest.fixture(scope="module")
def browser():
    """Chromium; per module, because an open one leaves no event loop to the tests after it."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    from tests.ui_browser import launch

    with api.sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """`visit(query)` opens the page as a new visitor. No console may complain, nor the server;
    and no browser may ask another host for anything (data: and blob: have none)."""
    from tests.ui_browser import new_page

    visitors = []

    def enter(query="", **options):
        visitors.append(new_page(browser, server, query, **options))
        return visitors[-1]

    yield enter
    for visitor in visitors:
        visitor.context.close()
    assert [visitor.complaints for visitor in visitors] == [[]] * len(visitors)
    asked = set().union(*(visitor.hosts for visitor in visitors))
    assert asked <= {"", urlsplit(server.address).netloc}
    assert not server.errors()


@pytest.fixture
def page(visit):
    return visit()


@pytest.fixture
def hold(server):
    with server.holding() as file:
        yield file
