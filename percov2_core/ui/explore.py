"""Measuring what was compressed, and the plot: what happens beside the main job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import gradio as gr

from percov2_core.codec import Preset
from percov2_core.evaluation.judge import Judge, Reference
from percov2_core.ui import compare, scores, text, tradeoff
from percov2_core.ui.html import empty
from percov2_core.ui.runs import Measured, Run
from percov2_core.ui.turns import Turns

_KEEP: Any = gr.skip()


class Back(NamedTuple):
    """Outputs of a click on an own run."""

    tab: Any
    headline: str
    stage: str
    run: Run


class Taken(NamedTuple):
    """Outputs of a click on a stored point."""

    tab: Any = _KEEP
    mode: Any = _KEEP
    steps: Any = _KEEP
    guidance: Any = _KEEP
    tokens: Any = _KEEP


class Explore:
    """Holds the metrics' networks and the stored tables."""

    def __init__(self, turns: Turns, presets: Mapping[str, Mapping[str, Preset]]) -> None:
        self.turns = turns
        self.presets = presets
        self.stored = tradeoff.Measurements()

    @cached_property
    def judge(self) -> Judge:
        return scores.make_judge()

    def measure(
        self, run: Run | None, done: list[Run], history: list[Measured]
    ) -> tuple[str, list[Measured]]:
        """-> our line of the table of numbers; a row for every run, however fast they came."""
        rows = [tradeoff.row_of(one, history) or self._measured(one) for one in done]
        row = tradeoff.row_of(run, rows)
        if row is None:
            return empty(text.EMPTY_NUMBERS), rows
        return scores.numbers_panel([scores.own_entry(row)], pending=True), rows

    def compare_codecs(
        self, run: Run | None, history: list[Measured], request: gr.Request
    ) -> Iterator[str]:
        """The table of numbers, growing by one classic codec after the other."""
        yield _KEEP
        row = tradeoff.row_of(run, history)
        session = request.session_hash or ""
        if run is None or run.original is None or row is None:
            return
        if not self.turns.compare(session, run.number):
            return  # a visitor may be so fast that several calls find the same picture
        entries = [scores.own_entry(row)]
        place = self.turns.place(session)
        for entry in scores.classic_entries(self.judge, run.original, size_bytes=run.size_bytes):
            if self.turns.place(session) != place:
                yield _KEEP  # what is yielded last is said again at the end
                return  # the visitor has gone on, and others wait
            entries.append(entry)
            yield scores.numbers_panel(entries, pending=True)
        yield scores.numbers_panel(entries, pending=False)

    def _measured(self, run: Run) -> Measured:
        assert run.original is not None  # only opened files have none, and they are not measured
        reference = Reference(run.original, self.judge.device)
        return Measured(run, self.judge.score(reference, run.decoded))

    def draw(self, history: list[Measured], x: str, y: str) -> tuple[Any, str, str]:
        """-> figure, what to say where there is none, table of runs."""
        figure = tradeoff.figure(self.stored, history, x=x, y=y)
        note = "" if figure is not None else empty(text.EMPTY_RUNS_PLOT)
        return figure, note, tradeoff.runs_table(history)

    def back(self, event: gr.EventData, history: list[Measured], request: gr.Request) -> Back:
        """A click on an own run: its picture again."""
        found = tradeoff.run_of(event.key, history)
        if found is None or found.run.original is None:
            raise gr.Error(text.RUN_FORGOTTEN, print_exception=False)
        run = found.run
        self.turns.look(request.session_hash or "")
        return Back(gr.Tabs(selected="compress"), run.headline, compare.of_run(run), run)

    def take(self, event: gr.EventData) -> Taken:
        """A click on a stored point of ours: its settings for the next picture."""
        point = self.stored.find(event.key)
        if not point:
            return Taken()
        preset = self.presets[point["mode"]][point.get("preset", "balanced")]
        gr.Info(text.TAKEN)
        return Taken(
            tab=gr.Tabs(selected="compress"),
            mode=point["mode"],
            steps=int(point.get("steps", preset.steps)),
            guidance=float(point.get("guidance", preset.guidance)),
            tokens=int(point["tokens"]) if "tokens" in point else _KEEP,
        )
