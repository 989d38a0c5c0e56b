"""`python -m percov2_core`: the codec from a shell.

Exit status: 0 done, 1 bad data, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from percov2_core.cli import bench, compress, decompress, deploy, evaluate, inspect, train, weights
from percov2_core.errors import ConfigError, PerCoError

# Each adds one command, and loads heavy libraries only when that command runs.
COMMANDS = (
    compress.add_parser,
    decompress.add_parser,
    inspect.add_parser,
    evaluate.add_parser,
    bench.add_parser,
    train.add_parser,
    weights.add_parser,
    deploy.add_parser,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors that a user can mend become one line on stderr."""
    logging.basicConfig(format="percov2: %(message)s", level=logging.WARNING)
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain at exit, on flushing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ConfigError as error:
        return _fail(str(error), status=2)
    except PerCoError as error:
        return _fail(str(error), status=1)
    except OSError as error:
        known = error.filename is not None and error.strerror is not None
        return _fail(f"{error.filename}: {error.strerror}" if known else str(error), status=1)
    except KeyboardInterrupt:
        return _fail("interrupted", status=130)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="percov2", description="An image codec for 0.002-0.03 bits per pixel."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add_parser in COMMANDS:
        add_parser(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what was wrong in one line, without the usage text before it."""

    # argparse offers this method for overriding; it has no setting for it.
    def error(self, message: str) -> NoReturn:
        self.exit(_fail(message, status=2, program=self.prog))


def _fail(message: str, *, status: int, program: str = "percov2") -> int:
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return status
