"""Runs settings over pictures, resumable, over processes, GPUs and machines."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd
import torch
from accelerate import PartialState
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm

from percov2_core.errors import ConfigError
from percov2_core.evaluation.protocol import Picture
from percov2_core.evaluation.rows import (
    LOG_FOLDER,
    append_rows,
    read_log,
    to_frame,
    write_tables,
)
from percov2_core.evaluation.settings import Setting
from percov2_core.evaluation.worker import Plan, Unit, Worker

SIGNATURE = "run.json"


def make_units(
    pictures: Iterable[Picture], settings: Sequence[Setting], *, done: set[tuple[str, str]]
) -> list[Unit]:
    """What is left to do: per picture, one unit for all settings that belong together."""
    units = []
    for picture in pictures:
        groups: dict[Setting, list[Setting]] = {}
        for setting in settings:
            if (picture.name, setting.key) not in done:
                groups.setdefault(setting.unit, []).append(setting)
        units += [Unit(picture, tuple(group)) for group in groups.values()]
    return units


def evaluate(
    pictures: Sequence[Picture],
    settings: Sequence[Setting],
    plan: Plan,
    *,
    processes: int = 1,
    worker: Worker | None = None,
) -> pd.DataFrame:
    """Run what is missing, then write `rows.csv` and `rows.parquet` into `plan.out`.

    Under `accelerate launch` every process takes its share of the units and the first one
    writes the tables; the output folder must be one that all of them see.

    Args:
        processes: Worker processes of this rank; 1 stays in this process.
        worker: Use this one instead of making one; needs `processes=1`.

    Returns:
        All rows of the output folder, also those of earlier runs.

    Raises:
        ConfigError: if there is no such device, or if the output folder holds rows of other
            pictures, another model, metric list or size.
    """
    check_device(plan.device)
    state = PartialState(cpu=plan.device == "cpu")
    if plan.device == "auto":
        plan = replace(plan, device=str(state.device))
    if state.is_main_process:
        _sign(plan, pictures)
    state.wait_for_everyone()
    done = {(row["picture"], row["key"]) for row in read_log(plan.out / LOG_FOLDER)}
    units = make_units(pictures, settings, done=done)[state.process_index :: state.num_processes]
    if processes == 1 or not units:
        _run_share(0, units, plan, 1, worker)
    else:
        plan = replace(plan, threads=plan.threads or max(1, (os.cpu_count() or 1) // processes))
        # Spawned, not forked: a forked child of a process that has used torch may hang. On Linux
        # they leave when their parent does, however that came.
        spawn(_run_share, (units, plan, processes), nprocs=processes)  # type: ignore[no-untyped-call]
    state.wait_for_everyone()
    frame = to_frame(read_log(plan.out / LOG_FOLDER))
    if state.is_main_process:
        write_tables(frame, plan.out)
    return frame


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ConfigError: says what it could be.
    """
    if name in ("cpu", "auto"):
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device must be cpu, cuda, cuda:N or auto, got {name!r}") from error
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError(f"device must be cpu, or one of the {found} GPUs here, got {name!r}")


def _run_share(
    index: int, units: Sequence[Unit], plan: Plan, count: int, worker: Worker | None = None
) -> None:
    """Do every `count`-th unit, from the one at `index`; the first process shows how far it is."""
    share = units[index::count]
    if not share:
        return
    worker = worker or Worker(plan)
    # A log for each process and run: a line that was cut off harms no other.
    log = plan.out / LOG_FOLDER / f"rows-{time.time_ns()}-{os.getpid()}.jsonl"
    total = sum(len(unit.settings) for unit in share)
    with tqdm(total=total, unit="row", disable=None if index == 0 else True) as bar:
        for unit in share:
            rows = worker.run(unit)
            append_rows(log, rows)
            bar.update(len(rows))


def _sign(plan: Plan, pictures: Sequence[Picture]) -> None:
    """Rows of different protocols or pictures must not end in one table."""
    square = all(picture.square for picture in pictures)
    signature = {"model": plan.model, "metrics": list(plan.metrics), "square": square}
    signature["data"] = str(plan.data.resolve()) if plan.data else None
    path = plan.out / SIGNATURE
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, value in signature.items():
            if found.get(name, value) != value:
                raise ConfigError(
                    f"{path}: the rows there have {name} {found[name]!r}, the new ones "
                    f"{value!r}: choose another output folder"
                )
        return
    plan.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(signature, indent=1) + "\n", encoding="utf-8")
