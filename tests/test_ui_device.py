"""Which painting a visitor still wants, what Compress and Cancel answer, and shared hardware."""

import asyncio
import gc
import math
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import gradio as gr
import pytest
from gradio.routes import App

from percov2_core.codec import Found, PerCoV2
from percov2_core.errors import ConfigError, UnavailableError
from percov2_core.flow.transformer import FlowModel
from percov2_core.ui import border, device, text
from percov2_core.ui.border import Painters
from percov2_core.ui.compress import CompressTab
from percov2_core.ui.device import (
    MOST_S,
    Look,
    Turn,
    Turns,
    call_s,
    paint,
    painting_s,
    with_shared_gpu,
)
from percov2_core.ui.gallery import Gallery
from percov2_core.ui.host import SHARED_GPU_VARIABLE
from percov2_core.ui.page import build_demo
from tests.tiny import counted, picture, tiny_codec
from tests.tiny_sd3 import tiny_sd3_folder

pytestmark = [  # gradio leaves sockets and event loops to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
VISITOR = SimpleNamespace(session_hash="a", headers={})
CHOICES = {
    "mode": "ultra-low", "caption": "the sea", "captioner": "describer", "schedule": "qlds",
    "size": 110, "side": 1024, "effort": "normal", "steps": 3, "guidance": 1.0, "seed": 0,
    "painter": "own", "preset": "balanced",
}  # fmt: skip
SIZED = ("ultra-low", 110)


@pytest.fixture
def turns():
    return Turns()


@pytest.fixture
def blocks():
    with gr.Blocks() as blocks:
        yield blocks
    del blocks
    gc.collect()


@pytest.fixture
def tab(turns, blocks):
    gallery = Gallery(tiny_codec(), turns)
    return CompressTab(tiny_codec(), turns, gr.State(), gallery, Painters())


@pytest.fixture
def sea(tmp_path, monkeypatch):
    """An upload, as gradio tells of it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    picture().save(tmp_path / "sea.png")
    return {"path": str(tmp_path / "sea.png")}


@pytest.fixture
def chosen(sea):
    return border.read_picture(sea)


@pytest.fixture(scope="module")
def contents():
    return tiny_codec().read(tiny_codec().encode(picture(), "ultra-low"))


def test_the_newest_press_is_wanted_until_it_is_finished_or_cancelled(turns):
    turns.press("a", 1)
    with turns.take("a", 1) as older:
        assert not older.dropped.is_set()
        turns.press("a", 2)
        assert older.dropped.is_set() and turns.newest("a") == 2 and not turns.finish(older)
    with turns.take("a", 2) as newer:
        assert turns.finish(newer) and not turns.cancel("a", 2)
    assert not turns.cancel("a", 2)
    assert turns.cancel("a", 3) and not turns.press("a", 3)  # of which it heard second
    with turns.take("a", 3) as turn:
        assert turn.dropped.is_set()
    assert turns.press("a", 4)


def test_a_picture_is_compared_once_each_time_the_visitor_comes_to_it(turns):
    turns.press("ann", 1)
    place = turns.place("ann")
    assert turns.compare("ann", 1) and not turns.compare("ann", 1)
    turns.press("ann", 2)
    assert turns.place("ann") != place
    # The newer picture is not there yet when a late call compares the older one once more.
    assert turns.compare("ann", 1) and turns.compare("ann", 2) and not turns.compare("ann", 2)
    place = turns.place("ann")
    turns.look("ann")
    assert turns.place("ann") != place == (2, 0)
    assert turns.compare("ann", 1) and turns.compare("bob", 1)


def test_visitors_cancel_only_their_own(turns):
    with turns.take("a", 1) as turn, turns.take("a") as opened:
        turns.cancel("b", 5)
        assert not turn.dropped.is_set()
        turns.cancel("a", 1)
        assert turn.dropped.is_set() and not opened.dropped.is_set()
        turns.forget("a")
        assert opened.dropped.is_set()


def test_painting_ends_with_the_decoded_picture_and_previews_are_painted_when_due(
    contents, monkeypatch
):
    def pictures():
        frames = list(paint(tiny_codec(), contents, Look(3, 1.0), Turn("a", 1)))
        assert [(f.step, f.picture is None) for f in frames] == [(1, 1), (2, 1), (3, 0)]
        assert frames[-1].picture == tiny_codec().decode(contents.stream, steps=3, guidance=1.0)
        return [frame.preview and frame.preview.size for frame in frames]

    size = (contents.stream.width, contents.stream.height)
    monkeypatch.setattr(device, "PREVIEW_SHARE", math.inf)
    monkeypatch.setattr(device, "FIRST_PREVIEW_S", -1.0)
    assert pictures() == [size] * 3
    monkeypatch.setattr(device, "FIRST_PREVIEW_S", math.inf)
    assert pictures() == [None] * 3


def test_nothing_is_kept_of_a_visitor_who_left():
    demo = build_demo(tiny_codec())
    App.create_app(demo)
    sessions = demo.state_holder
    assert sessions["a"] is not sessions["b"]
    (forget,) = [one.fn for one in demo.fns.values() if one.name == "forget"]
    asyncio.run(forget(VISITOR))
    assert set(sessions.session_data) == set(sessions.time_last_used) == {"b"}
    del demo, sessions, forget
    gc.collect()


def test_a_picture_is_read_once_and_kept_without_a_captioner(tab, sea, monkeypatch):
    cleared, ready = tab.choose(sea, None, *SIZED)
    chosen = ready[tab.chosen]
    assert cleared[tab.chosen] is None and chosen
    (captioned,) = tab.describe(chosen, "describer")
    assert captioned == {tab.suggested: tiny_codec().describe(chosen.image)}
    for kept in (chosen, "fixed"), (None, "describer"):
        assert list(tab.describe(*kept)) == [{tab.suggested: ""}]
    with pytest.raises(gr.Error, match="is here already"):  # it is announced twice
        next(tab.choose(sea, chosen, *SIZED))
    (gone,) = tab.choose(None, chosen, *SIZED)
    assert gone[tab.chosen] is None
    monkeypatch.setattr(tiny_codec(), "captioners", Mock(side_effect=UnavailableError("no such")))
    with pytest.raises(UnavailableError, match="no such"):
        next(tab.describe(chosen, "blip"))


def given(tab, chosen, number, done=(), **choices):
    """What the page tells its listeners."""
    said = {getattr(tab.settings, name): v for name, v in {**CHOICES, **choices}.items()}
    return said | {tab.chosen: chosen, tab.presses: number, tab.done: [*done]}


def start(tab, chosen, number, **choices):
    return tab.compress(given(tab, chosen, number, **choices), VISITOR)


def test_a_click_reads_its_file_once_and_ends_with_a_run_or_a_message(tab, chosen, monkeypatch):
    read = counted(monkeypatch, PerCoV2, "read")
    tab.press(chosen, 1, 1024, VISITOR)
    nothing, *views = start(tab, chosen, 1)
    assert nothing == {tab.stage: gr.skip()}
    run = views[-1][tab.run]
    assert views[-1][tab.done] == [run]
    said = [view[tab.headline] for view in views[:-1] if tab.headline in view]
    assert f"{run.size_bytes} bytes" in said[0] and tab.headline not in views[0]
    assert "Where" not in tab.explain(run, VISITOR)[0] and len(read) == 1
    assert run.decoded == tiny_codec().decode(run.stream, steps=3, guidance=1.0)
    tab.press(chosen, 2, 1024, VISITOR)
    stages = []
    with pytest.raises(ConfigError, match="schedule must be one of"):
        stages.extend(view[tab.stage] for view in start(tab, chosen, 2, schedule="none such"))
    assert "Encoding" in stages[1] and text.EMPTY_STAGE in stages[-1]


def test_best_is_completed_with_what_the_controls_ask_for(tab, chosen, monkeypatch):
    asked = []

    def completing(codec, image, tokens, stream):
        asked.append((tokens, stream))
        yield Found(0.5)
        yield Found(1.0, tokens._replace(fine=(tokens.fine + 1) % 2, nearest=None))

    monkeypatch.setattr(PerCoV2, "completing", completing)
    tab.press(chosen, 1, 1024, VISITOR)
    *_, last = start(tab, chosen, 1)
    (tokens, stream), run = asked[0], last[tab.run]
    assert run.stream.tokens_sent == stream.tokens_sent and run.stream != stream
    assert run.tokens is tokens  # so that other sizes start from what was found
    # Painted otherwise it is the same file; of another size nobody waits for a search.
    for number, choice, expected in (
        (2, {"steps": 2}, run.stream),
        (3, {"mode": "extreme"}, tiny_codec().write(tokens, "extreme")),
    ):
        moved = {**given(tab, chosen, number, **choice), tab.done: last[tab.done]}
        *_, moved = tab.resize(moved, VISITOR)
        assert len(asked) == 1 and moved[tab.run].stream == expected
        assert moved[tab.run].tokens is tokens

    monkeypatch.setattr(PerCoV2, "completing", lambda *_: iter([Found(0.5)] * 9))
    tab.press(chosen, 4, 1024, VISITOR)
    views = start(tab, chosen, 4)
    while "2 %" not in str(next(views)) and tab.turns.newest("a") == 4 and len(asked) < 9:
        asked.append(0)
    tab.cancel(4, VISITOR)
    assert text.CANCELLED in list(views)[-1][tab.headline]


@pytest.mark.parametrize("seen", range(5))
def test_cancelling_at_any_moment_is_confirmed(tab, chosen, seen, monkeypatch):
    steps = counted(monkeypatch, FlowModel, "forward")
    tab.press(chosen, 1, 1024, VISITOR)
    views = start(tab, chosen, 1)
    for _ in range(seen):
        next(views)
    assert text.CANCELLED in tab.cancel(1, VISITOR)[tab.headline]
    *early, last = views
    assert text.CANCELLED in last[tab.headline] and last[tab.run] is None
    assert len(early) == (seen == 0)  # which says nothing yet
    assert len(steps) <= max(0, seen - 2)
    assert text.CANCELLED not in str(tab.cancel(1, VISITOR))
    with pytest.raises(gr.Error, match="Cancelled"):
        tab.press(chosen, 1, 1024, VISITOR)


def test_a_press_that_was_replaced_while_it_waited_never_starts(tab, chosen):
    for number in (1, 2):
        tab.press(chosen, number, 1024, VISITOR)
    assert list(start(tab, chosen, 1)) == [{tab.stage: gr.skip()}]


def test_visitors_read_how_many_are_before_them(tab, turns, chosen, monkeypatch):
    turns.press("b", 1)
    turns.press("c", 1)
    assert "2 visitors are before you" in tab.press(chosen, 1, 1024, VISITOR)[1]
    turns.cancel("b", 1)
    assert turns.before("a") == 1 and turns.before("c") == 0
    monkeypatch.setattr("percov2_core.ui.compress.MAX_WAITING", 1)
    with pytest.raises(gr.Error, match="The demo is full"):
        tab.press(chosen, 2, 1024, VISITOR)


def test_the_size_control_ends_in_proportion_to_the_tokens(tab):
    small, large = (tab.settings.sized("extreme", 50, (n, n)) for n in (512, 1024))
    assert small.value == small.maximum == 722 and large.maximum == 13 + 4 * 709
    hybrid = tab.settings.sized("hybrid", 5000, (512, 512))
    assert hybrid.value == hybrid.maximum and tab.settings.sized("hybrid", 50, (64, 64)).value < 50
    assert tab.settings.sized("ultra-low", 50, (512, 512), 900).maximum == 900


STAND_IN = Path(__file__).parent / "spaces_stand_in"
NEEDS_GPU = ("encode", "look", "complete", "paint")


@pytest.fixture
def spaces(monkeypatch):
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setenv(SHARED_GPU_VARIABLE, "true")
    monkeypatch.delitem(sys.modules, "spaces", raising=False)
    yield import_module("spaces")
    sys.modules.pop("spaces", None)


class Guarded:
    """The tiny codec, used only while the GPU is borrowed."""

    def __init__(self, spaces):
        self.spaces = spaces

    def __getattr__(self, name):
        if name in NEEDS_GPU:
            assert self.spaces.BORROWED, f"{name} without the GPU"
        return getattr(tiny_codec(), name)


@pytest.fixture
def codec(spaces):
    return with_shared_gpu(Guarded(spaces))


def test_every_call_that_sees_pixels_borrows_the_gpu_and_gives_the_same(codec, spaces):
    plain = tiny_codec()
    stream = codec.encode(picture(), "ultra-low", caption="a cat")
    assert stream == plain.encode(picture(), "ultra-low", caption="a cat")
    assert codec.write(codec.look(picture(), caption="a cat"), "ultra-low") == stream
    contents = codec.read(stream)
    assert contents.caption == "a cat"
    look = {"steps": 2, "guidance": 2.0, "seed": 3}
    first, last = codec.paint(contents, **look)
    assert [(step.index, step.total) for step in (first, last)] == [(1, 2), (2, 2)]
    assert first.picture is None and first.preview().size == picture().size
    assert last.picture.tobytes() == plain.decode(stream, **look).tobytes()
    assert codec.truncate(stream, tokens=2) == plain.truncate(stream, tokens=2)
    assert [call["task"] for call in spaces.CALLS] == ["call", "call", "paint"]
    found = plain.look(picture(), caption="a cat")
    assert [part.tokens for part in codec.completing(picture(), found, stream)] == [found]
    assert len(spaces.CALLS) == 3  # only for the effort "best"
    *_, last = codec.completing(picture(), found._replace(effort="best"), stream)
    assert last.tokens.size == picture().size and len(spaces.CALLS) == 4


def test_the_second_painter_borrows_the_gpu_as_the_first_does(codec, spaces, contents):
    look = {"painter": str(tiny_sd3_folder()), "steps": 4, "guidance": 2.0, "seed": 1}
    *steps, last = codec.paint(contents, **look)
    assert steps[0].index == 0 and last.index == last.total
    assert last.picture.tobytes() == tiny_codec().decode(contents.stream, **look).tobytes()
    assert [call["task"] for call in spaces.CALLS] == ["paint"] and spaces.BORROWED == []
    with pytest.raises(ConfigError, match="painter must be one of own, sd3-medium"):
        next(codec.paint(contents, painter="sd4", steps=1, guidance=1.0))


def test_what_needs_no_gpu_borrows_none_and_no_host_needs_nothing(codec, spaces, monkeypatch):
    assert codec.describe(picture(), captioner="describer") == tiny_codec().describe(picture())
    assert codec.caption_bits("a cat") == tiny_codec().caption_bits("a cat")
    assert codec.presets == tiny_codec().presets
    assert spaces.CALLS == []
    monkeypatch.delenv(SHARED_GPU_VARIABLE)
    assert with_shared_gpu(tiny_codec()) is tiny_codec()


def test_leaving_ends_the_work_on_the_gpu(codec, spaces, contents):
    frames = paint(codec, contents, Look(100, 1.0), Turn("a", 1))
    next(frames)
    assert spaces.BORROWED == ["paint"]
    frames.close()
    assert spaces.BORROWED == []


def test_errors_keep_their_words_and_a_bug_is_no_silence(codec, spaces, contents, monkeypatch):
    with pytest.raises(ConfigError, match="steps must be in"):
        next(codec.paint(contents, steps=101, guidance=1.0))
    with pytest.raises(ConfigError, match="effort must be one of"):
        codec.look(picture(), effort="endless")
    monkeypatch.setattr(type(tiny_codec()), "paint", Mock(side_effect=ZeroDivisionError("bug")))
    with pytest.raises(spaces.WorkerError, match="ZeroDivisionError"):
        next(codec.paint(contents, steps=1, guidance=1.0))


def test_the_time_asked_for_follows_steps_size_and_batch(contents):
    def seconds(steps=4, guidance=1.0, **size):
        sized = contents._replace(stream=replace(contents.stream, **size))
        return painting_s(sized, {"steps": steps, "guidance": guidance})

    small = seconds()
    assert seconds(steps=8) > small and seconds(guidance=3.0) > small
    assert seconds(width=150) < small
    hybrid = replace(contents.stream, mode="hybrid", width=4096, height=4096)
    assert painting_s(contents._replace(stream=hybrid), {"steps": 100, "guidance": 1}) == MOST_S
    encode = call_s("encode", (picture(320, 192), "extreme"), {})
    assert call_s("describe", (picture(320, 192),), {}) < encode
    assert encode < call_s("encode", (picture(640, 384),), {})
    assert call_s("look", (picture(320, 192),), {}) == encode
