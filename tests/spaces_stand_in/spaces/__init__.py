"""A stand-in for the module that shared GPU hosts provide, as far as this project uses it.

Like the real one it decorates functions and generators and asks how long each call may take; what
goes in and comes out is pickled, because there it crosses into another process, and of an error
only the kind comes back. Here everything stays in this process, and each call is written down as a
line of JSON.
"""

import inspect
import json
import os
import pickle
from contextlib import contextmanager

LOG_VARIABLE = "SPACES_STAND_IN_LOG"
CALLS = []
BORROWED = []  # the tasks that have the GPU now


def GPU(*, duration):
    def decorate(task):
        def once(*arguments):
            with _borrowed(task, duration, arguments) as passed:
                return _through_a_pipe(task(*passed))

        def step_by_step(*arguments):
            with _borrowed(task, duration, arguments) as passed:
                yield from map(_through_a_pipe, task(*passed))

        return step_by_step if inspect.isgeneratorfunction(task) else once

    return decorate


class WorkerError(Exception):
    """All that is left of an error."""


@contextmanager
def _borrowed(task, duration, arguments):
    """-> the arguments on the other side, where errors are but their kind."""
    passed = _through_a_pipe(arguments)
    CALLS.append({"task": task.__name__, "seconds": duration(*passed)})
    if path := os.environ.get(LOG_VARIABLE):
        with open(path, "a", encoding="utf-8") as log:
            log.write(json.dumps(CALLS[-1]) + "\n")
    BORROWED.append(task.__name__)
    try:
        yield passed
    except Exception as error:
        raise WorkerError(type(error).__name__) from None
    finally:
        BORROWED.remove(task.__name__)


def gradio_auto_wrap(task):
    """What gradio asks for each listener; hosts leave them as they are unless told otherwise."""
    return task


def _through_a_pipe(value):
    return pickle.loads(pickle.dumps(value))
