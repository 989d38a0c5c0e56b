"""Runs settings over pictures: resumable, over processes, GPUs and machines."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace

import pandas as pd
from accelerate import PartialState
from tqdm import tqdm

from percov2_core.errors import ConfigError
from percov2_core.evaluation.protocol import Picture
from percov2_core.evaluation.rows import LOG_FOLDER, Row, RowLog, read_log, to_frame, write_tables
from percov2_core.evaluation.settings import Setting
from percov2_core.evaluation.worker import Plan, Unit, Worker

SIGNATURE = "run.json"

_worker: Worker | None = None  # one per process of the pool, made by `_start`


def leave_with_parent() -> None:
    """End this process when the one that started it ends, however that came."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _start(plan: Plan) -> None:
    global _worker
    leave_with_parent()
    _worker = Worker(plan)


def _run(unit: Unit) -> list[Row]:
    assert _worker is not None
    return _worker.run(unit)


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
        ConfigError: if the output folder holds rows of another model, metric list or size.
    """
    state = PartialState(cpu=plan.device == "cpu")
    if plan.device == "auto":
        plan = replace(plan, device=str(state.device))
    if state.is_main_process:
        _sign(plan, pictures)
    state.wait_for_everyone()
    done = {(row["picture"], row["key"]) for row in read_log(plan.out / LOG_FOLDER)}
    units = make_units(pictures, settings, done=done)
    units = units[state.process_index :: state.num_processes]
    log = RowLog(plan.out / LOG_FOLDER, rank=state.process_index)
    with tqdm(total=sum(len(u.settings) for u in units), unit="row", disable=None) as bar:
        for rows in _results(units, plan, processes, worker):
            log.append(rows)
            bar.update(len(rows))
    state.wait_for_everyone()
    frame = to_frame(read_log(plan.out / LOG_FOLDER))
    if state.is_main_process:
        write_tables(frame, plan.out)
    return frame


def _results(
    units: Sequence[Unit], plan: Plan, processes: int, worker: Worker | None
) -> Iterator[list[Row]]:
    if not units:
        return
    if processes == 1 or worker is not None:
        yield from map((worker or Worker(plan)).run, units)
        return
    plan = replace(plan, threads=plan.threads or max(1, (os.cpu_count() or 1) // processes))
    # Spawned, not forked: a forked child of a process that has used torch may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(plan,)) as pool:
        try:
            for future in as_completed([pool.submit(_run, unit) for unit in units]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _sign(plan: Plan, pictures: Sequence[Picture]) -> None:
    """Rows of different protocols must not end in one table."""
    square = all(picture.square for picture in pictures)
    signature = {"model": plan.model, "metrics": list(plan.metrics), "square": square}
    path = plan.out / SIGNATURE
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, value in signature.items():
            if found.get(name) != value:
                raise ConfigError(
                    f"{path}: {name} must be {value!r} to add rows, got {found.get(name)!r}; "
                    "choose another output folder"
                )
        return
    plan.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(signature, indent=1) + "\n", encoding="utf-8")
