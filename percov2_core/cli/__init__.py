"""The codec from a shell. Exit status: 0 done, 1 bad data, 2 wrong use, 130 interrupted."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from percov2_core import __version__
from percov2_core.cli import models, pictures, studies
from percov2_core.cli.files import flush_output
from percov2_core.cli.terminal import HelpFormatter
from percov2_core.errors import ConfigError, PerCoError

# Each adds one command, and loads heavy libraries only when that command runs.
COMMANDS = (
    pictures.add_compress,
    pictures.add_decompress,
    pictures.add_inspect,
    studies.add_evaluate,
    studies.add_bench,
    models.add_train,
    models.add_weights,
    models.add_deploy,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors that a user can mend become one line on stderr."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for as long as the program runs
    if sys.stdout is None:
        message = "standard output: is closed; redirect it to /dev/null to see nothing"
        return _fail(message, status=1)
    if isinstance(sys.stdout, io.TextIOWrapper):  # every text can be printed, wherever it goes
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="percov2: %(message)s", level=logging.WARNING)
    # Before any command loads NumPy or torch, whose threads would spin on cores that others use.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of NumPy, whose products are small
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")  # a millisecond: small products are many
    args = build_parser().parse_args(argv)
    with warnings.catch_warnings():
        if not sys.warnoptions:  # they are for who writes Python, and say where our files lie
            warnings.simplefilter("ignore")
        return _run(args)


def build_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="percov2", description="An image codec for 0.002-0.03 bits per pixel."
    )
    parser.add_argument("--version", action="version", version=f"percov2 {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add in COMMANDS:
        add(commands)
    return parser


def _run(args: argparse.Namespace) -> int:
    try:
        args.run(args)
        flush_output()
    except ModuleNotFoundError as error:
        if "extra" not in args or (error.name or "percov2_core").startswith("percov2_core"):
            raise
        install = f"run `pip install 'percov2-core[{args.extra}]'`"
        return _fail(f"{error.name} is not installed: {install}", status=1)
    except ConfigError as error:
        return _fail(str(error), status=2)
    except PerCoError as error:
        return _fail(str(error), status=1)
    except OSError as error:
        with suppress(OSError):  # what is left of the output, so that the exit does not fail on it
            flush_output()
        pipe = "standard output" if isinstance(error, BrokenPipeError) else None
        where, what = error.filename or pipe, error.strerror or str(error)
        return _fail(f"{where}: {what}" if where else what, status=1)
    except KeyboardInterrupt:
        return _fail("interrupted", status=130)
    return 0


class _Parser(argparse.ArgumentParser):
    """Shows defaults, and says what was wrong in one line, without the usage text before it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **settings)

    # argparse offers this method for overriding; it has no setting for it.
    def error(self, message: str) -> NoReturn:
        self.exit(_fail(message, status=2, program=self.prog))


def _fail(message: str, *, status: int, program: str = "percov2") -> int:
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return status
