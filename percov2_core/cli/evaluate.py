"""`evaluate`: the command of `evaluation.command`, with the page that `plots` makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from percov2_core.cli.common import Commands
from percov2_core.evaluation import command

if TYPE_CHECKING:
    import pandas as pd


def add_parser(commands: Commands) -> None:
    command.add_parser(commands, report=_report)


def _report(frame: pd.DataFrame, out: Path, originals: dict[str, Path], notes: list[str]) -> Path:
    # Plotly is heavy, and only this command draws.
    from percov2_core.plots import write_report

    return write_report(frame, out, originals, notes)
