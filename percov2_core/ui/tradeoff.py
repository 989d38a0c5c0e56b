"""The trade-off: every run measured beside the classic codecs, and the tab that draws them all."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pandas as pd
from PIL import Image

from percov2_core.baselines.base import Fit, best_within
from percov2_core.baselines.classic import FACTORS, family_at_all_sizes, find_baseline
from percov2_core.config import check_choice
from percov2_core.errors import PerCoError
from percov2_core.metrics import AXES, Scores
from percov2_core.ui import border, results, text
from percov2_core.ui.device import CLASSICS, FREE, MEASURE, Turns
from percov2_core.ui.results import Entry, Run
from percov2_core.ui.settings import USUAL_BYTES
from percov2_core.ui.stored import COLUMNS, MEASURED, Measurements, write_thumbnail
from percov2_core.ui.text import empty, plain_html

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2
    from percov2_core.evaluation.judge import Judge

VVC_PIXELS = 1_500_000  # above it, the encoder would need minutes
FAMILIES = ("jpeg", "avif", "vvc")
_FAMILIES = {
    "jpeg": "triangle-up",
    "jpeg2000": "triangle-left",
    "j2k": "triangle-left",
    "webp": "triangle-down",
    "avif": "triangle-right",
    "jxl": "hexagon",
    "vvc": "pentagon",
}
_KEEP: Any = gr.skip()
_CLICK_JS = "percov.points((key) => trigger(key.startsWith('run:') ? 'back' : 'take', {key}))"
# The same for those who do not point: every line of the table has a button.
_BACK_JS = "percov.buttons(element, (key) => trigger('back', {key}))"
_HINT = "<b>%{fullData.name}</b><br>%{customdata[0]}<br>across %{x:.4g}, up %{y:.4g}<extra></extra>"
_MARKERS = {
    text.REFERENCE: {"size": 10, "symbol": "x", "color": "#7b8794", "line": {"width": 0}},
    text.PUBLISHED: {"size": 11, "symbol": "star-open", "color": "#7b8794"},
    text.YOUR_RUNS: {"size": 17, "symbol": "star"},
}


@dataclass(frozen=True)
class Measured:
    """A run and its row of the visitor's table."""

    run: Run
    scores: Scores

    @property
    def key(self) -> str:
        """What a click on its point, or on its line of the table, says."""
        return f"run:{self.run.number}"

    @property
    def values(self) -> dict[str, Any]:
        """Column -> value, None for a metric that could not be had."""
        run = self.run
        return {
            "picture": run.name,
            "mode": run.stream.mode,
            "schedule": run.stream.schedule,
            **run.stream.sent._asdict(),
            "steps": run.look.steps,
            "guidance": run.look.guidance,
            "painter": Path(run.look.painter).name,
            "bytes": run.size_bytes,
            "bpp": run.bpp,
            **asdict(self.scores),
            "caption": run.contents.caption,
            "settings": run.settings.to_json(),
        }

    @property
    def entry(self) -> Entry:
        """Our line of the table of numbers."""
        run, steps = self.run, text.steps(self.run.look.steps)
        note = f"{steps} of {run.step_s:.2f} s, guidance {run.look.guidance:g}{run.painted_by}"
        return Entry(f"PerCoV2 {run.stream.mode}", note, run.size_bytes, run.decoded, self.scores)


class TradeOffTab:
    """Layout and callbacks, and those of the numbers in the main tab; made inside its `gr.Tab`.
    `clicks` and `table` say `back` for a run and `take` for a stored point."""

    def __init__(self, codec: PerCoV2, turns: Turns, tab: gr.Tab) -> None:
        self.presets, self.turns = codec.presets, turns
        self.history = gr.State([], time_to_live=border.KEEP_FILES_S)  # measured runs
        self.entries = gr.State([], time_to_live=border.KEEP_FILES_S)  # of the table of numbers
        axes = [(label, name) for name, label in AXES.items()]
        with gr.Row():
            x = gr.Dropdown(axes, value="psnr", label="Across", min_width=280, elem_id="pc-x")
            y = gr.Dropdown(axes, value="patch_swd", label="Up", min_width=280, elem_id="pc-y")
        plot, note = gr.Plot(show_label=False, elem_id="pc-plot"), plain_html()
        gr.Markdown(text.PLOT_NOTE)
        self.table = plain_html(empty(text.EMPTY_RUNS), js_on_load=_BACK_JS, elem_id="pc-runs")
        self.clicks = plain_html("", js_on_load=_CLICK_JS, elem_id="pc-clicks")
        self.drawing = [self.history, x, y], [plot, note, self.table]
        gr.on([tab.select, x.input, y.input], self.draw, *self.drawing, **FREE)

    def follow(self, shown: Any, run: gr.State, done: gr.State, numbers: gr.HTML) -> None:
        """Measure and draw after `shown`, an event that brings a picture to the main tab.
        The visitor may be faster than what follows, so nothing is skipped."""
        given, filled = [run, done, self.history], [numbers, self.history]
        measured = shown.success(self.measure, given, filled, trigger_mode="multiple", **MEASURE)
        measured.success(self.draw, *self.drawing, trigger_mode="multiple", **FREE)
        every: dict[str, Any] = {"trigger_mode": "multiple", **CLASSICS}
        table = [numbers, self.entries]
        measured.success(self.compare_codecs, [run, self.history], table, **every)

    @cached_property
    def stored(self) -> Measurements:
        """Read once somebody looks at the tab."""
        return Measurements()

    @cached_property
    def judge(self) -> Judge:
        """Every metric of the page that this machine has."""
        from percov2_core.evaluation.judge import Judge  # loads torch

        return Judge(results.COLUMNS)

    def measure(
        self, run: Run | None, done: list[Run], history: list[Measured]
    ) -> tuple[str, list[Measured]]:
        """-> our line of the table of numbers; a row for every run, however fast they came."""
        rows = [row_of(one, history) or Measured(one, self._scores(one)) for one in done]
        row = row_of(run, rows)
        if row is None:
            return empty(text.EMPTY_NUMBERS), rows
        return results.numbers_panel([row.entry], pending=True), rows

    def compare_codecs(
        self, run: Run | None, history: list[Measured], request: gr.Request
    ) -> Iterator[tuple[str, list[Entry]]]:
        """The table of numbers, growing by one classic codec after the other; and its lines."""
        yield _KEEP, _KEEP
        row, session = row_of(run, history), request.session_hash or ""
        if run is None or run.original is None or row is None:
            return
        if not self.turns.compare(session, run.number):
            return  # a visitor may be so fast that several calls find the same picture
        entries = [row.entry]
        place = self.turns.place(session)
        for entry in classic_entries(self.judge, run.original, size_bytes=run.size_bytes):
            if self.turns.place(session) != place:
                yield _KEEP, _KEEP  # what is yielded last is said again at the end
                return  # the visitor has gone on, and others wait
            entries.append(entry)
            yield results.numbers_panel(entries, pending=True), entries
        missing = self.judge.unavailable.values()
        yield results.numbers_panel(entries, pending=False, missing=missing), entries

    def _scores(self, run: Run) -> Scores:
        assert run.original is not None  # only opened files have none, and they are not measured
        return self.judge.score(self.judge.see(run.original), run.decoded)

    def draw(self, history: list[Measured], x: str, y: str) -> tuple[Any, str, str]:
        """-> figure, what to say where there is none, table of runs."""
        x, y = check_choice("across", x, AXES), check_choice("up", y, AXES)
        drawn = figure(self.stored, history, x=x, y=y)
        note = "" if drawn is not None else empty(text.EMPTY_RUNS_PLOT)
        keys = [row.key for row in history]
        return drawn, note, results.runs_table(keys, runs_frame(history))

    def back(
        self, event: gr.EventData, history: list[Measured], request: gr.Request
    ) -> tuple[Any, str, str, Run]:
        """A click on an own run: its picture again."""
        key = border.told(event, "key")
        run = next((row.run for row in history if row.key == key), None)
        if run is None:
            raise gr.Error(text.RUN_FORGOTTEN, print_exception=False)
        self.turns.look(request.session_hash or "")
        return gr.Tabs(selected="compress"), run.headline, results.compare_run(run), run

    def take(self, event: gr.EventData) -> tuple[Any, ...]:
        """A click on a stored point of ours -> tab, and its mode, steps, guidance and size."""
        point = self.stored.find(border.told(event, "key"))
        if not point:
            return (_KEEP,) * 5
        gr.Info(text.TAKEN)
        mode, most = point["mode"], USUAL_BYTES["extreme"]
        preset = self.presets[mode][point.get("preset", "balanced")]
        steps = int(point.get("steps", preset.steps))
        guidance = float(point.get("guidance", preset.guidance))
        size = gr.Slider(maximum=most, value=min(most, round(point["size_bytes"])))
        sized = size if mode == "hybrid" else _KEEP
        return gr.Tabs(selected="compress"), mode, steps, guidance, sized


def classic_entries(judge: Judge, original: Image.Image, *, size_bytes: int) -> Iterator[Entry]:
    """One codec after the other, the quick ones first."""
    reference = judge.see(original)

    def entry(label: str, fit: Fit) -> Entry:
        decoded = fit.codec.decode(fit.data)
        factor = fit.codec.name.partition("/")[2]
        shrunk = f"shrunk to 1/{factor} a side, " if factor else ""
        note = f"{shrunk}quality {fit.quality:g}"
        return Entry(label, note, len(fit.data), decoded, judge.score(reference, decoded))

    def smallest(name: str) -> Fit:
        codec = find_baseline(name)
        quality = codec.qualities[0]
        return Fit(codec, quality, codec.encode(original, quality))

    for family in FAMILIES:
        name = text.codec_name(family)
        if family == "vvc" and original.width * original.height > VVC_PIXELS:
            continue
        # This machine may lack the codec, or the picture may be too small for it.
        with contextlib.suppress(PerCoError):
            yield entry(f"{name}, its smallest", smallest(family))
            fit = best_within(family_at_all_sizes(family), original, size_bytes=size_bytes)
            if fit is not None:
                yield entry(f"{name} in the same bytes", fit)
            elif family != "jpeg":
                yield entry(f"{name}, shrunk", smallest(f"{family}/{FACTORS[-1]}"))


def _thumbnail(image: Image.Image) -> str:
    write_thumbnail(image, buffer := io.BytesIO())
    return text.data_uri(buffer.getvalue(), "image/webp")


def figure(stored: Measurements, history: Sequence[Measured], *, x: str, y: str) -> Any | None:
    """A Plotly figure, None if no point has both axes; `customdata[1]` of a point is its key."""
    # Only now: Plotly takes half a second, for which the first page need not wait.
    from percov2_core import plots

    tables = [stored.means, _reference_rows(stored.reference, x=x, y=y), _run_rows(history)]
    points = pd.concat(tables, ignore_index=True).reindex(columns=[*COLUMNS, *AXES])
    if points.dropna(subset=[x, y]).empty:
        return None
    return _dressed(plots.trade_off(points, x=x, y=y))


def _dressed(drawn: Any) -> Any:
    """For a page of any width, light or dark; one entry in the legend per codec."""
    drawn.update_layout(
        {"height": 600, "title": None, "font_size": 14, "margin_t": 20, "margin_b": 120},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemwidth": 30},
    )
    for update in (drawn.update_xaxes, drawn.update_yaxes):
        update(gridcolor="rgba(128,140,155,.25)", zeroline=False)
    edge = {"width": 1, "color": "rgba(255,255,255,.7)"}
    named: set[str] = set()
    for trace in drawn.data:
        label, name = trace.name, text.codec_name(trace.name)
        trace.update(name=name, legendgroup=name)
        if trace.mode != "lines":
            symbol = _FAMILIES.get(label.partition("/")[0], trace.marker.symbol)
            look = {"size": 10, "line": edge, "symbol": symbol} | _MARKERS.get(label, {})
            trace.marker.update(look)
            trace.update(hovertemplate=_HINT, showlegend=name not in named)
            named.add(name)
    return drawn


def _reference_rows(reference: Mapping[str, Any], *, x: str, y: str) -> pd.DataFrame:
    """Reference points; the published ones only where the axes mean the same."""
    kinds = {text.REFERENCE: MEASURED}
    if {x, y} <= {"bpp", "psnr"}:  # published LPIPS values use several backbones
        kinds[text.PUBLISHED] = "published_kodak"
    return pd.DataFrame(
        {
            **{axis: point.get(axis) for axis in AXES},
            "label": label,
            "picture": f"{point['codec']}<br>{point.get('source', text.REFERENCE_SOURCE)}",
            "key": "",
        }
        for label, kind in kinds.items()
        for point in reference.get(kind, {}).get("points", [])
    )


def _run_rows(history: Sequence[Measured]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **row.values,
            "label": text.YOUR_RUNS,
            "key": row.key,
            "thumbnail": _thumbnail(row.run.decoded),
            "size_bytes": row.run.size_bytes,
            "steps": None,  # no part of a sweep
            "guidance": None,
            "picture": f"{row.run.name}, {row.run.stream.mode}<br>{row.run.size_bytes:,} bytes, "
            f"{text.steps(row.run.look.steps)}, guidance {row.run.look.guidance:g}"
            f"{row.run.painted_by}",
        }
        for row in history
    )


def row_of(run: Run | None, history: Sequence[Measured]) -> Measured | None:
    """The row of a run that was measured before."""
    return next((row for row in history if row.run is run), None)


def runs_frame(history: Sequence[Measured]) -> pd.DataFrame:
    """Only the columns that any run has a value for: not every metric can be had everywhere."""
    return pd.DataFrame(row.values for row in history).dropna(axis=1, how="all")
