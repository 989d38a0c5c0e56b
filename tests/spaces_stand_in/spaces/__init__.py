"""A stand-in for the module that shared GPU hosts provide, as far as this project uses it.

Like the real one it decorates functions and generators and asks how long each call may take; what
goes in and comes out is pickled, because there it crosses into another process. Here everything
stays in this process, and each call is written down as a line of JSON.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

LOG_VARIABLE = "SPACES_STAND_IN_LOG"
CALLS: list[dict[str, Any]] = []
BORROWED = threading.local()  # .now is True while the GPU would be there


def GPU(*, duration: Callable[..., float]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(task: Callable[..., Any]) -> Callable[..., Any]:
        def once(*arguments: Any) -> Any:
            arguments = _through_a_pipe(arguments)
            _note(task, duration(*arguments))
            BORROWED.now = True
            try:
                return _through_a_pipe(task(*arguments))
            finally:
                BORROWED.now = False

        def step_by_step(*arguments: Any) -> Iterator[Any]:
            arguments = _through_a_pipe(arguments)
            _note(task, duration(*arguments))
            for state in task(*arguments):
                yield _through_a_pipe(state)

        return step_by_step if inspect.isgeneratorfunction(task) else once

    return decorate


def _through_a_pipe(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def _note(task: Callable[..., Any], seconds: float) -> None:
    call = {"task": task.__name__, "seconds": seconds, "torch_first": _TORCH_WAS_THERE}
    CALLS.append(call)
    if path := os.environ.get(LOG_VARIABLE):
        with open(path, "a", encoding="utf-8") as log:
            log.write(json.dumps(call) + "\n")


_TORCH_WAS_THERE = "torch" in sys.modules
