"""Many files: which becomes which (`plan`), who does the work (`run`), what came of it (`convert`).

A place is a path of this machine or an address (`s3://bucket/photos`), which fsspec opens. Whoever
works, this process, several of them or the workers of Ray, calls `do` for one file after the other.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from percov2_core.cli.files import Output
from percov2_core.cli.terminal import Progress
from percov2_core.errors import ConfigError, ImageError, PerCoError, UnavailableError

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2

ENGINES = ("local", "ray")
MAX_INPUT_BYTES = 256 * 2**20  # as `image_io` takes them
_LISTED = 3  # names in a message
_AHEAD = 2  # tasks that wait for each CPU of a cluster


class Found(NamedTuple):
    """A file to read, and its path below the folder that was named."""

    source: str
    below: str


class Job(NamedTuple):
    """One file to read and the one to write, as places."""

    source: str
    target: str


class Done(NamedTuple):
    """What came of a job: bytes that were written, or in words why none were."""

    source: str
    size_bytes: int = 0
    problem: str = ""


# One file's content -> the other's, as the options say; a function of a module, so that it travels.
Convert: TypeAlias = "Callable[[PerCoV2, bytes, Mapping[str, Any]], bytes]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every worker needs to know; it travels to other processes."""

    convert: Convert
    options: Mapping[str, Any]
    model: str
    force: bool  # existing files may be replaced


def is_address(place: str) -> bool:
    return "://" in place


def is_folder(place: str) -> bool:
    """What many files come from or go to; an address always may be one."""
    return is_address(place) or place.endswith("/") or Path(place).is_dir()


def beside(place: str, suffix: str) -> str:
    """photo.jpg -> photo.pcv2"""
    return os.path.splitext(place)[0] + suffix


def find(places: Iterable[str], suffixes: Collection[str]) -> list[Found]:
    """The files named, and all in the folders named that end in `suffixes` and are not hidden.
    ConfigError if a folder holds none; OSError or UnavailableError if a place cannot be looked at.
    """
    found = []
    for place in places:
        if is_address(place):
            here = _find_there(place)
        elif Path(place).is_dir():
            here = _walk(place)
        else:
            os.stat(place)  # told before anything is done, if it is not there
            found.append(Found(place, os.path.basename(place)))
            continue
        if [one.source for one in here] == [place]:  # the address of one file
            found += here
            continue
        taken = [one for one in here if one.below.lower().endswith(tuple(suffixes))]
        taken = [one for one in taken if not any(p[:1] == "." for p in one.below.split("/"))]
        if not taken:
            raise ConfigError(f"input: {place!r} holds no file that ends in {', '.join(suffixes)}")
        found += taken
    return found


def _walk(folder: str) -> list[Found]:
    def refuse(error: OSError) -> None:
        raise error

    paths = (Path(at, name) for at, _, names in os.walk(folder, onerror=refuse) for name in names)
    files = sorted(path for path in paths if path.is_file())
    return [Found(str(path), path.relative_to(folder).as_posix()) for path in files]


def _find_there(address: str) -> list[Found]:
    files, root = _open_address(address)
    with _asking(address):
        files.invalidate_cache()
        paths = sorted(files.find(root))
        below = (path.removeprefix(root).lstrip("/") or os.path.basename(path) for path in paths)
        whole = (address if path == root else files.unstrip_protocol(path) for path in paths)
        return [Found(*one) for one in zip(whole, below, strict=True)]


def plan(found: Sequence[Found], output: str | None, suffix: str) -> list[Job]:
    """Which file becomes which: names and sub-folders are kept, endings become `suffix`.
    `output` is a folder, or None for beside each; of a single file it may be the name itself.
    ConfigError if two would become the same, or one would be written over."""
    named = output is not None and output.lower().endswith(suffix)
    if named and len(found) > 1:
        raise ConfigError(f"output: {len(found)} files need a folder, got {output!r}")
    sources: dict[str, str] = {}  # by target
    for source, below in found:
        if {"", ".", ".."} & {*below.split("/")}:  # what a bucket may call its objects
            raise ConfigError(f"input: {source!r} is no name that can be kept")
        target = beside(source, suffix)
        if output is not None:
            target = output if named else f"{output.rstrip('/')}/{beside(below, suffix)}"
        if sources.setdefault(target, source) != source:
            both = f"{sources[target]!r} and {source!r}"
            raise ConfigError(f"output: {both} would both become {target!r}")
    if over := sorted(sources.keys() & {one.source for one in found}):
        raise ConfigError(f"output: {over[0]!r} is a file to read")
    return [Job(source, target) for target, source in sources.items()]


def existing(jobs: Sequence[Job]) -> set[str]:
    """The targets that are there already."""
    there = {job.target for job in jobs if os.path.lexists(job.target)}
    addresses = {job.target for job in jobs if is_address(job.target)}
    for folder in {address.rpartition("/")[0] for address in addresses}:
        files, root = _open_address(folder)
        with _asking(folder):
            files.invalidate_cache()
            there |= {files.unstrip_protocol(path) for path in files.find(root, maxdepth=1)}
    return there


def _open_address(address: str) -> tuple[Any, str]:
    """fsspec's file system, and what it calls the place."""
    import fsspec  # not part of the codec

    with _asking(address):
        files, path = fsspec.core.url_to_fs(address)
    return files, path


@contextmanager
def _asking(address: str) -> Iterator[None]:
    """Whatever stands behind an address may raise anything; its name belongs to the message."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), address) from error
    except Exception as error:
        raise UnavailableError(f"{address}: {error}") from error


def _read(place: str) -> bytes:
    """At most one byte more than is allowed, so that an endless file ends."""
    if not is_address(place):
        with open(place, "rb") as file:
            return file.read(MAX_INPUT_BYTES + 1)
    files, path = _open_address(place)
    with _asking(place), files.open(path, "rb") as file:
        data: bytes = file.read(MAX_INPUT_BYTES + 1)
        return data


def _write(place: str, data: bytes, *, force: bool) -> None:
    """All or nothing."""
    if not is_address(place):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Output(place, force).write(data)
        return
    files, path = _open_address(place)
    with _asking(place):
        files.pipe_file(path, data)  # one request: object stores show no half of it


@lru_cache(maxsize=1)
def _codec(model: str) -> PerCoV2:
    """Loaded once per process."""
    from percov2_core.weights import load_codec  # takes seconds

    return load_codec(model)


def do(job: Job, work: Work) -> Done:
    """Read, convert and write one file. What its owner can mend is told, so that others go on;
    raises only what is wrong for all of them, such as WeightsError."""
    codec = _codec(work.model)
    try:
        data = work.convert(codec, _read(job.source), work.options)
        _write(job.target, data, force=work.force)
    except PerCoError as error:
        return Done(job.source, problem=str(error))
    except OSError as error:
        return Done(job.source, problem=error.strerror or str(error))
    return Done(job.source, len(data))


def run(jobs: Sequence[Job], work: Work, *, engine: str, workers: int | None) -> Iterator[Done]:
    """Do all jobs, in any order. `workers`: None is one, or all CPUs of Ray.
    UnavailableError if a worker is lost."""
    if engine == "ray":
        return _on_ray(jobs, work, workers)
    if min(workers or 1, len(jobs)) > 1:
        return _by_processes(jobs, work, min(workers or 1, len(jobs)))
    return map(do, jobs, repeat(work))


def _by_processes(jobs: Sequence[Job], work: Work, workers: int) -> Iterator[Done]:
    # Spawned, not forked: a forked child of a process that has used torch may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, partial(_begin, workers)) as pool:
        try:
            yield from pool.map(do, jobs, repeat(work))
        except BrokenProcessPool as error:
            raise UnavailableError(
                f"a process was lost, perhaps for want of memory: try fewer --jobs than {workers}; "
                "--skip-existing goes on"
            ) from error


def _begin(workers: int) -> None:
    """What a process does first: Ctrl-C is for its parent, without which it ends."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _on_ray(jobs: Sequence[Job], work: Work, workers: int | None) -> Iterator[Done]:
    """On the cluster that RAY_ADDRESS names, or else on workers of this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"address": "local", "num_cpus": workers, "include_dashboard": False}
        options |= {"_node_ip_address": "127.0.0.1"}  # nobody else is to reach it
    ray.init(**options)
    try:
        task, left = ray.remote(do), iter(jobs)
        base, colon, model = work.model.rpartition(":")  # BASE:FOLDER, or a folder, or a name
        if os.path.isdir(model):
            work = replace(work, model=base + colon + os.path.abspath(model))

        def begin(job: Job) -> tuple[Any, Job]:
            return task.remote(Job(*map(_absolute, job)), work), job

        most = workers or _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        running = dict(map(begin, islice(left, most)))
        while running:
            (ended,), _ = ray.wait([*running], num_returns=1)
            job = running.pop(ended)
            running |= map(begin, islice(left, 1))
            yield ray.get(ended)._replace(source=job.source)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ImportError):  # on a cluster without this package, or of another
            raise UnavailableError(f"Ray: a worker lacks what it needs: {error.cause}") from error
        raise error.cause if isinstance(error.cause, PerCoError) else error from None
    except ray.exceptions.RayError as error:
        lost = " ".join(str(error).split())
        raise UnavailableError(f"Ray: {lost[:200]}; --skip-existing goes on") from error
    finally:
        ray.shutdown()


def _absolute(place: str) -> str:
    """As workers understand it, who are in another folder."""
    return place if is_address(place) else os.path.abspath(place)


def convert(
    found: Sequence[Found],
    work: Work,
    *,
    suffix: str,
    output: str | None,
    skip: bool,
    engine: str,
    workers: int | None,
) -> None:
    """Plan, do and report. ConfigError before anything is written if the plan does not do;
    ImageError at the end if some files could not be converted."""
    jobs = plan(found, output, suffix)
    there = existing(jobs)
    if there and not (skip or work.force):
        names = ", ".join(map(repr, sorted(there)[:_LISTED]))
        more = f" and {len(there) - _LISTED} more exist" if len(there) > _LISTED else " exists"
        advice = "--force replaces, --skip-existing leaves what is there"
        raise ConfigError(f"output: {names}{more}; {advice}")
    left = [job for job in jobs if not (skip and job.target in there)]
    done = []
    with Progress(f"0 of {len(left)} files") as line:
        for one in run(left, work, engine=engine, workers=workers) if left else ():
            done.append(one)
            line.what, line.share = f"{len(done)} of {len(left)} files", len(done) / len(left)
    wrong = [one for one in done if one.problem]
    size_bytes = sum(one.size_bytes for one in done)
    print(f"{len(done) - len(wrong)} files written: {size_bytes:,} bytes", end="")
    print(f"; {len(jobs) - len(left)} were there already" if len(left) < len(jobs) else "")
    for one in wrong:
        said = f"percov2: {one.source}: {one.problem}"
        print("".join(c if c.isprintable() else "?" for c in said), file=sys.stderr)
    if wrong:
        raise ImageError(f"{len(wrong)} of {len(jobs)} files could not be converted")
