"""The page before its codec is loaded, and where it cannot be."""

import gc
import inspect
import re
import shutil
import sys
from threading import Event
from types import SimpleNamespace

import gradio as gr
import psutil
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from percov2_core.errors import WeightsError
from percov2_core.ui import border, host, text
from percov2_core.ui.archive import list_pictures
from percov2_core.ui.border import Painters
from percov2_core.ui.compress import CompressTab
from percov2_core.ui.device import LateCodec, Look, Turns, is_loading
from percov2_core.ui.gallery import Gallery
from percov2_core.ui.many import Batch, ManyTab
from percov2_core.ui.results import paint_file
from percov2_core.weights import read_model
from tests.tiny import picture, run, tiny_codec, tiny_folder
from tests.ui_browser import expect, new_page, starts
from tests.ui_server import serve

pytestmark = [
    pytest.mark.ui,
    pytest.mark.timeout(600),
    # Clients and the browser leave sockets and event loops to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
VISITOR = SimpleNamespace(session_hash="a", headers={})
# Which heavy libraries are there once the page is, and which stubs for editors were opened.
BUILT = """
import sys
stubs = []
sys.addaudithook(lambda what, told: what == "open" and stubs.append(str(told[0])))
from percov2_core.ui import host
host.prepare()
from percov2_core.ui.device import LateCodec
from percov2_core.ui.page import build_demo, launch_options
from percov2_core.weights import read_model
build_demo(LateCodec(read_model(), None)), launch_options()
print(sorted({"torch", "diffusers", "transformers", "plotly"} & set(sys.modules)))
print([path for path in stubs if path.endswith(".pyi") and "blocks_events" not in path])
"""


@pytest.fixture(autouse=True)
def leave_nothing_behind():
    yield
    gc.collect()


@pytest.fixture
def gate():
    """What the codec waits for."""
    return Event()


@pytest.fixture
def late(gate):
    return LateCodec(read_model(tiny_folder()), lambda: gate.wait(60) and tiny_codec())


def test_the_page_is_built_without_heavy_libraries_and_stubs():
    done = run(sys.executable, "-c", BUILT)
    assert (done.returncode, done.stdout.split("\n")) == (0, ["[]", "[]", ""]), done.stderr


def test_only_components_are_hidden_and_only_while_gradio_is_imported():
    found = inspect.getfile
    with host._without_stubs():
        assert inspect.getfile(Event) == found(Event)
        with pytest.raises(OSError, match="in no file"):
            inspect.getfile(gr.Button)
    assert inspect.getfile is found and found(gr.Button).endswith("button.py")


def test_what_the_files_say_is_there_at_once_and_all_else_waits(late, gate):
    plain = tiny_codec()
    known = (late.presets, late.captioner, late.fingerprint)
    assert known == (plain.presets, plain.captioner, plain.fingerprint) and is_loading(late)
    gate.set()
    assert late.name == plain.name and late.load() is plain
    assert not is_loading(late) and not is_loading(plain)


def test_a_codec_is_loaded_once_and_its_error_is_told_to_everybody():
    loads = []

    def load():
        loads.append(1)
        raise WeightsError("model 'x': no such")

    codec = LateCodec(read_model(tiny_folder()), load)
    for _ in range(2):
        with pytest.raises(WeightsError, match="model 'x': no such"):
            codec.encode(picture(), "extreme")
    assert len(loads) == 1 and not is_loading(codec)


@pytest.fixture
def sea(tmp_path, monkeypatch):
    """An upload, as gradio tells of it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    picture().save(tmp_path / "sea.png")
    return {"path": str(tmp_path / "sea.png"), "orig_name": "sea.png"}


def test_opened_files_and_many_pictures_say_that_they_wait(late, gate, sea, tmp_path):
    stream = tiny_codec().encode(picture(), "ultra-low")
    painting = paint_file(late, Turns(), stream, "a", "sea", look=Look(2, 1.0))
    assert text.LOADING in next(painting)[0]
    with gr.Blocks():
        tab = ManyTab(late, Turns())
    batch = Batch(list_pictures(sea), "ultra-low", None, "fast", tmp_path / "zips" / "a.zip")
    steps = tab.step(batch, 1, VISITOR)
    assert next(steps) == {tab.said: gr.skip()} and text.LOADING in next(steps)[tab.said]
    gate.set()
    *_, (_, opened) = painting
    *_, done = steps
    assert opened.decoded == tiny_codec().decode(stream, steps=2, guidance=1.0)
    assert "1 of 1 done" in done[tab.said]


def test_a_caption_says_that_it_waits_and_follows(late, gate, sea):
    with gr.Blocks():
        tab = CompressTab(late, Turns(), gr.State(), Gallery(late, Turns()), Painters())
    chosen = border.read_picture(sea)
    assert tab.caption_cost("the sea") == text.CAPTION_LATER
    waiting, captioning = (tab.describe(chosen, "describer") for _ in range(2))
    assert next(waiting) == next(captioning) == {tab.cost: text.CAPTION_LATER}
    gate.set()
    assert list(captioning) == [{tab.suggested: tiny_codec().describe(chosen.image)}]
    assert "bits" in tab.caption_cost("the sea")


def test_compress_waits_for_the_model_in_words_and_goes_on(tmp_path, browser):
    (tmp_path / "hold").touch()
    with serve(tiny_folder(), tmp_path, late=True) as server:
        other, page = (new_page(browser, server) for _ in range(2))
        for visitor in (other, page):  # whose picture is read while the other's caption waits
            visitor.locator("#pc-examples button").first.click()
            expect(visitor.locator("#pc-compress")).to_be_enabled()
        expect(other.locator("#pc-cost")).to_contain_text(text.CAPTION_LATER)
        other.locator("#pc-caption-box textarea").fill("a sail at sea")
        starts(page, text.LOADING)
        server.hold.unlink()
        page.wait_for_selector("#pc-stage .pc-range")
        expect(page.locator("#pc-caption-box textarea")).not_to_have_value("")
        expect(page.locator("#pc-numbers [role=status]")).to_have_count(0)
        expect(other.locator("#pc-cost")).to_contain_text("bits")
        expect(other.locator("#pc-caption-box textarea")).to_have_value("a sail at sea")
        assert not page.complaints and not server.errors()
        for visitor in (other, page):
            visitor.context.close()


def test_a_model_that_cannot_be_loaded_is_told_to_who_waits_and_ends_the_page(tmp_path, photo):
    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    told = f"weights: no file at {str(weights)!r}"
    with serve(model, tmp_path) as server:
        client = Client(server.address, verbose=False)
        with pytest.raises(AppError, match=re.escape(told)):
            client.predict(handle_file(photo), "extreme", api_name="/compress")
        assert psutil.Process(server.pid).wait(60) == 1
    assert server.log.read_text("utf-8").endswith(f"\npercov2: {told}\n")
    assert not server.errors()


def test_a_model_that_is_not_there_ends_the_start():
    done = run(sys.executable, "app.py", PERCOV2_MODEL="nowhere")
    told = "percov2: weights: no file at 'nowhere/model.json'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)
