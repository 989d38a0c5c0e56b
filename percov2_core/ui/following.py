"""What follows a new picture on the page: its panels, its numbers, its star in the plot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from percov2_core.ui.compress_tab import CompressTab
from percov2_core.ui.explore import Explore
from percov2_core.ui.handlers import Handlers
from percov2_core.ui.other_tabs import InventedTab, PlotTab, drawing
from percov2_core.ui.variations import Variations
from percov2_core.ui.wiring import CLASSICS, DEVICE, FREE, MEASURE


@dataclass(frozen=True)
class Following:
    """Connects events; the visitor may be faster than what follows, so nothing is skipped."""

    handlers: Handlers
    explore: Explore
    variations: Variations
    run: gr.State
    tabs: gr.Tabs
    main: CompressTab
    invented: InventedTab
    plot: PlotTab

    def connect(self, opened: Iterable[Any]) -> None:
        """`opened`: events that bring a picture without its original."""
        for event in opened:
            self._offer(event)
        self._explain(self.main.compressed)
        results, controls = self.main.results, self.main.controls
        for place in (self.plot.clicks, self.plot.table):
            back = place.back(
                self.explore.back,
                self.plot.history,
                [self.tabs, results.headline, results.stage, self.run],
                **FREE,
            )
            self._explain(back)
        more = controls.advanced
        self.plot.clicks.take(
            self.explore.take,
            outputs=[self.tabs, controls.mode, more.steps, more.guidance, more.tokens],
            **FREE,
        )

    def _offer(self, event: Any) -> None:
        event.success(self.variations.offer, self.run, list(self.invented), **FREE)

    def _explain(self, event: Any) -> None:
        results, history = self.main.results, self.plot.history
        explained = event.then(
            self.handlers.explain,
            self.run,
            [results.bits, results.share],
            trigger_mode="multiple",
            **DEVICE,
        )
        self._offer(explained)
        measured = explained.success(
            self.explore.measure,
            [self.run, self.main.done, history],
            [results.numbers, history],
            trigger_mode="multiple",
            **MEASURE,
        )
        measured.success(self.explore.draw, *drawing(self.plot), trigger_mode="multiple", **FREE)
        measured.success(
            self.explore.compare_codecs,
            [self.run, history],
            results.numbers,
            trigger_mode="multiple",
            **CLASSICS,
        )
