"""What the buttons beyond compressing do: measuring, variations, fewer tokens, the plot."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from percov2_core.codec import PerCoV2
from percov2_core.evaluation.judge import Judge, Reference
from percov2_core.ui import compare, invented, runs, scores, text, tradeoff
from percov2_core.ui.handlers import shown_to_user
from percov2_core.ui.html import bytes_in_words, empty
from percov2_core.ui.limits import KEEP_RUNS
from percov2_core.ui.painting import Look
from percov2_core.ui.runs import Measured, Run

_KEEP: Any = gr.skip()


class Back(NamedTuple):
    """Outputs of a click into the plot."""

    tab: Any = _KEEP
    headline: Any = _KEEP
    stage: Any = _KEEP
    run: Any = _KEEP
    mode: Any = _KEEP
    steps: Any = _KEEP
    guidance: Any = _KEEP


class Explore:
    """Holds the codec, the metrics' networks and the stored tables."""

    def __init__(self, codec: PerCoV2) -> None:
        self.codec = codec
        self.stored = tradeoff.Measurements()

    @cached_property
    def judge(self) -> Judge:
        return scores.make_judge()

    def measure(self, run: Run | None, history: list[Measured]) -> Iterator[tuple[Any, Any]]:
        """-> the table of numbers, growing codec by codec; the visitor's runs."""
        if run is None or run.original is None:
            return
        reference = Reference(run.original, self.judge.device)
        own = self.judge.score(reference, run.decoded)
        label = f"PerCoV2 {run.stream.mode}"
        note = (
            f"{run.look.steps} steps of {run.painted.step_s:.2f} s, guidance {run.look.guidance:g}"
        )
        entries = [scores.Entry(label, note, run.size_bytes, run.decoded, own)]
        history = [*history, runs.measured(run, own)][-KEEP_RUNS:]
        yield scores.numbers_panel(entries, pending=True), history
        for entry in scores.classic_entries(self.judge, run.original, size_bytes=run.size_bytes):
            entries.append(entry)
            yield scores.numbers_panel(entries, pending=True), _KEEP
        yield scores.numbers_panel(entries, pending=False), _KEEP

    def vary(self, run: Run | None) -> Iterator[str]:
        """The same file with four seeds."""
        if run is None:
            raise gr.Error(text.EMPTY_VARIATIONS, print_exception=False)
        pictures: list[Image.Image] = []
        yield invented.variations_grid(pictures, first_seed=1)
        for seed in range(1, invented.SEEDS + 1):
            look = Look(run.look.steps, run.look.guidance, seed)
            pictures.append(self._decode(run, look))
            yield invented.variations_grid(pictures, first_seed=1)

    def resend(self, run: Run | None, tokens: float) -> str:
        """The first tokens of the same file."""
        if run is None:
            raise gr.Error(text.EMPTY_VARIATIONS, print_exception=False)
        if run.stream.mode == "extreme":
            raise gr.Error(text.NOT_HYBRID, print_exception=False)
        with shown_to_user():
            count = min(int(tokens), run.stream.tokens_sent)
            part = self.codec.truncate(run.stream, tokens=count)
            decoded = self.codec.decode(part, steps=run.look.steps, guidance=run.look.guidance)
        size = bytes_in_words(sum(part.sizes))
        tag = f"{count} of {part.tokens_total} tokens, {size}"
        return compare.compare(
            run.decoded, decoded, tag=tag, caption=run.caption, left="All tokens"
        )

    def _decode(self, run: Run, look: Look) -> Any:
        with shown_to_user():
            return self.codec.decode(
                run.stream, steps=look.steps, guidance=look.guidance, seed=look.seed
            )

    def draw(self, history: list[Measured], x: str, y: str) -> tuple[Any, str, str]:
        """-> figure, what to say where there is none, table of runs."""
        figure = tradeoff.figure(self.stored, history, x=x, y=y)
        note = "" if figure is not None else empty(text.EMPTY_RUNS_PLOT)
        return figure, note, tradeoff.runs_table(history)

    def pick_point(self, event: gr.EventData, history: list[Measured]) -> Back:
        """A click on a point: back to that run, or its settings for the next one."""
        if found := tradeoff.run_of(event.key, history):
            run = found.run
            assert run.original is not None  # only runs with an original are measured
            shown = compare.compare(
                run.original, run.decoded, tag=bytes_in_words(run.size_bytes), caption=run.caption
            )
            return Back(gr.Tabs(selected="compress"), run.headline, shown, run)
        point = self.stored.find(event.key)
        if not point:
            return Back()
        preset = self.codec.presets[point["mode"]][point.get("preset", "balanced")]
        gr.Info(text.TAKEN)
        return Back(
            tab=gr.Tabs(selected="compress"),
            mode=point["mode"],
            steps=int(point.get("steps", preset.steps)),
            guidance=float(point.get("guidance", preset.guidance)),
        )
