"""The codec on shared GPU hardware, with a stand-in for the host's `spaces` module."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import pytest

from percov2_core.errors import BitstreamError, ConfigError
from percov2_core.ui.device import MOST_S, Look, Turn, call_s, paint, painting_s, with_shared_gpu
from percov2_core.ui.host import SHARED_GPU_VARIABLE
from tests.tiny import picture, tiny_codec

STAND_IN = Path(__file__).parent / "spaces_stand_in"
NEEDS_GPU = ("encode", "look", "write", "paint", "read", "truncate")


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


def test_every_call_borrows_the_gpu_and_gives_the_same(codec, spaces):
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
    assert [call["task"] for call in spaces.CALLS] == ["call"] * 4 + ["paint", "call"]


def test_what_needs_no_gpu_borrows_none_and_no_host_needs_nothing(codec, spaces, monkeypatch):
    assert codec.describe(picture(), captioner="describer") == tiny_codec().describe(picture())
    assert codec.caption_bits("a cat") == tiny_codec().caption_bits("a cat")
    assert codec.presets == tiny_codec().presets
    assert spaces.CALLS == []
    monkeypatch.delenv(SHARED_GPU_VARIABLE)
    assert with_shared_gpu(tiny_codec()) is tiny_codec()


@pytest.fixture(scope="module")
def contents():
    return tiny_codec().read(tiny_codec().encode(picture(), "ultra-low", caption=""))


def test_leaving_ends_the_work_on_the_gpu(codec, spaces, contents):
    frames = paint(codec, contents, Look(100, 1.0), Turn("a", 1))
    next(frames)
    assert spaces.BORROWED == ["paint"]
    frames.close()
    assert spaces.BORROWED == []


def test_errors_keep_their_words_and_a_bug_is_no_silence(codec, spaces, contents, monkeypatch):
    with pytest.raises(ConfigError, match="steps must be in"):
        next(codec.paint(contents, steps=101, guidance=1.0))
    with pytest.raises(BitstreamError, match="check value"):
        codec.read(replace(contents.stream, check=contents.stream.check ^ 1))
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
    assert call_s("read", (contents.stream,), {}) < encode
    assert encode < call_s("encode", (picture(640, 384),), {})
    assert call_s("look", (picture(320, 192),), {}) == encode
    found = tiny_codec().look(picture(), caption="")
    assert call_s("write", (found,), {}) == call_s("read", (contents.stream,), {})
