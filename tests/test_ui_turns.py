"""Which painting a visitor still wants, and what Compress and Cancel answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from percov2_core.errors import UnavailableError
from percov2_core.flow.transformer import FlowModel
from percov2_core.ui import text
from percov2_core.ui.handlers import Handlers, Intake, View
from percov2_core.ui.intake import Chosen, read_upload
from percov2_core.ui.turns import Turns
from tests.held_page import hold_while
from tests.tiny import picture, tiny_codec

VISITOR: Any = SimpleNamespace(session_hash="a", headers={})
CHOICES = ("ultra-low", "the sea", "describer", "qlds", 0, None, 1024, 3, 1.0, 0)


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def handlers(turns: Turns) -> Handlers:
    return Handlers(tiny_codec(), {}, turns)


@pytest.fixture
def chosen(tmp_path: Path) -> Chosen:
    picture().save(tmp_path / "sea.png")
    return read_upload(tmp_path / "sea.png", "sea.png")


def test_a_newer_press_replaces_the_older_one(turns: Turns) -> None:
    turns.press("a", 1)
    with turns.take("a", 1) as older:
        assert not older.dropped.is_set()
        turns.press("a", 2)
        assert older.dropped.is_set() and turns.newest("a") == 2
        assert not turns.finish(older)
    with turns.take("a", 2) as newer:
        assert turns.finish(newer)


def test_cancelling_counts_even_if_it_is_heard_of_first(turns: Turns) -> None:
    assert turns.cancel("a", 1)
    assert not turns.press("a", 1)
    with turns.take("a", 1) as turn:
        assert turn.dropped.is_set()
    assert turns.press("a", 2)


def test_a_finished_picture_cannot_be_cancelled(turns: Turns) -> None:
    turns.press("a", 1)
    with turns.take("a", 1) as turn:
        assert turns.finish(turn)
        assert not turns.cancel("a", 1)
    assert not turns.cancel("a", 1)


def test_a_picture_is_compared_once_each_time_the_visitor_comes_to_it(turns: Turns) -> None:
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


def test_visitors_cancel_only_their_own(turns: Turns) -> None:
    with turns.take("a", 1) as turn, turns.take("a") as opened:
        turns.cancel("b", 5)
        assert not turn.dropped.is_set()
        turns.cancel("a", 1)
        assert turn.dropped.is_set() and not opened.dropped.is_set()
        turns.forget("a")
        assert opened.dropped.is_set()


def test_a_picture_that_is_announced_twice_is_read_once(handlers: Handlers, tmp_path: Path) -> None:
    picture().save(tmp_path / "sea.png")
    payload = {"path": str(tmp_path / "sea.png")}
    cleared, ready, captioned = handlers.choose(payload, "describer", None)
    assert cleared.chosen is None and ready.chosen and captioned.caption
    (kept,) = handlers.choose(payload, "describer", ready.chosen)
    assert kept == Intake(gr.skip())
    (gone,) = handlers.choose(None, "describer", ready.chosen)
    assert gone.chosen is None


def test_a_missing_captioner_does_not_cost_the_picture(
    handlers: Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers.codec, "captioners", _no_captioner)
    picture().save(tmp_path / "sea.png")
    intakes = handlers.choose({"path": str(tmp_path / "sea.png")}, "blip", None)
    assert next(intakes).chosen is None
    assert next(intakes).chosen is not None
    with pytest.raises(gr.Error, match="no such weights"):
        next(intakes)


def _no_captioner(name: str) -> Any:
    raise UnavailableError(f"captioner {name!r}: no such weights")


def press(handlers: Handlers, chosen: Chosen, number: int) -> list[View]:
    handlers.press(chosen, number, 1024, VISITOR)
    return list(handlers.compress(chosen, number, [], VISITOR, *CHOICES))


def test_compressing_ends_with_a_run(handlers: Handlers, chosen: Chosen) -> None:
    nothing, *views = press(handlers, chosen, 1)
    assert nothing == View()
    run = views[-1].run
    assert views[-1].done == [run]
    assert run.decoded == tiny_codec().decode(run.stream, steps=3, guidance=1.0)
    assert [f"{run.size_bytes} bytes" in str(view.headline) for view in views[:2]] == [False, True]


@pytest.mark.parametrize("seen", [1, 2, 3, 4])
def test_cancelling_at_any_moment_is_confirmed(
    handlers: Handlers,
    chosen: Chosen,
    seen: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    monkeypatch.setattr(FlowModel, "forward", FlowModel.forward)  # undone at the end
    hold_while(hold)
    handlers.press(chosen, 1, 1024, VISITOR)
    views = handlers.compress(chosen, 1, [], VISITOR, *CHOICES)
    for _ in range(seen):
        next(views)
    assert text.CANCELLED in handlers.cancel(1, VISITOR)[0]
    last = next(views)
    assert text.CANCELLED in last.headline and last.run is None
    hold.unlink()
    assert list(views) == []
    assert text.CANCELLED not in str(handlers.cancel(1, VISITOR))


def test_what_is_cancelled_while_it_waits_never_starts(handlers: Handlers, chosen: Chosen) -> None:
    handlers.press(chosen, 1, 1024, VISITOR)
    handlers.cancel(1, VISITOR)
    _, only = handlers.compress(chosen, 1, [], VISITOR, *CHOICES)
    assert text.CANCELLED in only.headline
    with pytest.raises(gr.Error, match="Cancelled"):
        handlers.press(chosen, 1, 1024, VISITOR)
    handlers.press(chosen, 2, 1024, VISITOR)
    handlers.press(chosen, 3, 1024, VISITOR)
    assert list(handlers.compress(chosen, 2, [], VISITOR, *CHOICES)) == [View()]


def test_an_error_leaves_an_empty_stage_and_a_message(handlers: Handlers, chosen: Chosen) -> None:
    handlers.press(chosen, 1, 1024, VISITOR)
    views = handlers.compress(chosen, 1, [], VISITOR, *CHOICES[:5], 5, *CHOICES[6:])
    assert next(views) == View() and "Encoding" in next(views).stage
    assert text.EMPTY_STAGE in next(views).stage
    with pytest.raises(gr.Error, match="caption alone makes"):
        next(views)
