"""A stand-in for the module that shared GPU hosts provide, as far as this project uses it.

Like the real one it decorates functions and generators and asks how long each call may take; what
goes in and comes out is pickled, because there it crosses into another process, and of an error
only the kind comes back. Here everything stays in this process, and each call is written down as a
line of JSON.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LOG_VARIABLE = "SPACES_STAND_IN_LOG"
CALLS: list[dict[str, Any]] = []
BORROWED: list[str] = []  # the tasks that have the GPU now


def GPU(*, duration: Callable[..., float]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(task: Callable[..., Any]) -> Callable[..., Any]:
        def once(*arguments: Any) -> Any:
            arguments = _through_a_pipe(arguments)
            _note(task, duration(*arguments))
            with _borrowed(task.__name__):
                return _through_a_pipe(task(*arguments))

        def step_by_step(*arguments: Any) -> Iterator[Any]:
            arguments = _through_a_pipe(arguments)
            _note(task, duration(*arguments))
            with _borrowed(task.__name__):
                for state in task(*arguments):
                    yield _through_a_pipe(state)

        return step_by_step if inspect.isgeneratorfunction(task) else once

    return decorate


class WorkerError(Exception):
    """All that is left of an error."""


@contextmanager
def _borrowed(name: str) -> Iterator[None]:
    BORROWED.append(name)
    try:
        yield
    except Exception as error:
        raise WorkerError(type(error).__name__) from None
    finally:
        BORROWED.remove(name)


def gradio_auto_wrap(task: Callable[..., Any]) -> Callable[..., Any]:
    """What gradio asks for each listener; hosts leave them as they are unless told otherwise."""
    return task


def _through_a_pipe(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def _note(task: Callable[..., Any], seconds: float) -> None:
    call = {"task": task.__name__, "seconds": seconds, "torch_first": _TORCH_WAS_THERE}
    CALLS.append(call)
    if path := os.environ.get(LOG_VARIABLE):
        with open(path, "a", encoding="utf-8") as log:
            log.write(json.dumps(call) + "\n")


_TORCH_WAS_THERE = "torch" in sys.modules
