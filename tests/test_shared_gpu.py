"""The codec on shared GPU hardware, with a stand-in for the host's `spaces` module."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from percov2_core.codec import Step
from percov2_core.errors import BitstreamError, ConfigError
from percov2_core.ui import shared_gpu
from percov2_core.ui.host import SHARED_GPU_VARIABLE
from percov2_core.ui.painting import Look, paint
from percov2_core.ui.shared_gpu import MOST_S, Painting, call_s, painting_s, with_shared_gpu
from percov2_core.weights.residency import Residency
from tests.tiny import picture, tiny_codec

STAND_IN = Path(__file__).parent / "spaces_stand_in"
NEEDS_GPU = ("encode", "decode", "read", "truncate")


@pytest.fixture
def spaces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setenv(SHARED_GPU_VARIABLE, "true")
    monkeypatch.delitem(sys.modules, "spaces", raising=False)
    yield import_module("spaces")
    sys.modules.pop("spaces", None)


class Guarded:
    """The tiny codec, used only while the GPU is borrowed."""

    def __init__(self, spaces: ModuleType) -> None:
        self.spaces = spaces

    def __getattr__(self, name: str) -> Any:
        if name in NEEDS_GPU:
            assert self.spaces.BORROWED, f"{name} without the GPU"
        return getattr(tiny_codec(), name)


@pytest.fixture
def codec(spaces: Any) -> Any:
    return with_shared_gpu(Guarded(spaces))  # type: ignore[arg-type]


def test_every_call_borrows_the_gpu_and_gives_the_same(codec: Any, spaces: Any) -> None:
    plain = tiny_codec()
    stream = codec.encode(picture(), "ultra-low", caption="a cat")
    assert stream == plain.encode(picture(), "ultra-low", caption="a cat")
    assert stream.cuts  # what the page truncates
    assert codec.decode(stream, seed=3).tobytes() == plain.decode(stream, seed=3).tobytes()
    assert codec.read(stream).caption == "a cat"
    assert codec.truncate(stream, tokens=2) == plain.truncate(stream, tokens=2)
    assert [call["task"] for call in spaces.CALLS] == ["call", "paint", "call", "call"]


def test_what_needs_no_gpu_borrows_none(codec: Any, spaces: Any) -> None:
    assert codec.describe(picture(), captioner="describer") == tiny_codec().describe(picture())
    assert codec.caption_bits("a cat") == tiny_codec().caption_bits("a cat")
    assert codec.presets == tiny_codec().presets
    assert spaces.CALLS == []


def test_steps_arrive_with_previews_and_the_last_is_the_picture(codec: Any) -> None:
    stream = tiny_codec().encode(picture(), "ultra-low", caption="")
    seen: list[Step] = []
    decoded = codec.decode(stream, steps=3, guidance=2.0, on_step=seen.append)
    assert [(step.index, step.total) for step in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(step.preview().size == picture().size for step in seen)
    assert decoded.tobytes() == tiny_codec().decode(stream, steps=3, guidance=2.0).tobytes()


def test_cancelling_ends_the_work_on_the_gpu(codec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = tiny_codec().encode(picture(), "ultra-low", caption="")
    steps: list[int] = []
    on_step = shared_gpu._Painter.on_step
    monkeypatch.setattr(
        shared_gpu._Painter,
        "on_step",
        lambda self, step: (steps.append(step.index), on_step(self, step)),
    )

    def cancel(step: Step) -> None:
        raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        codec.decode(stream, steps=100, on_step=cancel)
    assert len(steps) < 100


def test_painting_counts_as_the_visitors(
    codec: Any, spaces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor: ContextVar[str] = ContextVar("visitor")
    visitor.set("somebody")
    seen: list[str | None] = []
    monkeypatch.setattr(spaces, "_note", lambda *_: seen.append(visitor.get(None)))
    stream = tiny_codec().encode(picture(), "ultra-low", caption="")
    frames = list(paint(codec, stream, Look(2, 1.0), cancel=threading.Event()))
    assert frames[-1] and frames[-1].finished
    assert seen == ["somebody"]


def test_errors_keep_their_words(codec: Any) -> None:
    stream = tiny_codec().encode(picture(), "ultra-low", caption="")
    with pytest.raises(ConfigError, match="steps must be in"):
        codec.decode(stream, steps=101)
    with pytest.raises(ConfigError, match="preset must be one of"):
        codec.decode(stream, preset="none")
    damaged = replace(stream, check=stream.check ^ 1)
    with pytest.raises(BitstreamError, match="check value"):
        codec.read(damaged)


def test_a_bug_on_the_gpu_is_no_silence(
    codec: Any, spaces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = tiny_codec().encode(picture(), "ultra-low", caption="")

    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(type(tiny_codec()), "decode", broken)
    with pytest.raises(spaces.WorkerError, match="ZeroDivisionError"):
        codec.decode(stream)


def painting(**changes: Any) -> Painting:
    stream = tiny_codec().encode(picture(), "ultra-low", caption="")
    base = Painting(stream, 4, 1.0, "balanced", None, False)
    return base._replace(**changes)


def test_the_time_asked_for_follows_steps_size_and_batch(spaces: Any) -> None:
    small = painting_s(painting())
    assert painting_s(painting(steps=8)) > small
    assert painting_s(painting(guidance=3.0)) > small
    large = tiny_codec().encode(picture(320, 192), "ultra-low", caption="")
    assert painting_s(painting(stream=large)) > small
    huge = replace(large, mode="hybrid", width=4096, height=4096)
    assert painting_s(painting(stream=huge, steps=100)) == MOST_S
    encode = call_s("encode", (picture(320, 192), "extreme"), {})
    assert call_s("read", (large,), {}) < encode < call_s("encode", (picture(640, 384),), {})


def test_without_such_a_host_the_codec_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, spaces: Any
) -> None:
    monkeypatch.delenv(SHARED_GPU_VARIABLE)
    assert with_shared_gpu(tiny_codec()) is tiny_codec()


def test_nothing_compiles_or_warms_up_there(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Residency(device="cuda", compile=True)
    assert wanted.compile_allowed and wanted.warms_up
    monkeypatch.setenv(SHARED_GPU_VARIABLE, "true")
    assert not wanted.compile_allowed and not wanted.warms_up
