"""Files that commands read and write: `-` is a standard stream, and nothing is half written."""

from __future__ import annotations

import argparse
import errno
import os
import stat
import sys
from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from percov2_core.bitstream import MAX_FILE_BYTES, Stream
from percov2_core.errors import ConfigError
from percov2_core.run_settings import MAX_LETTERS, RunSettings

STANDARD = "-"


def standard_input() -> BinaryIO:
    """Its bytes; an OSError if it is closed."""
    if sys.stdin is None:
        raise OSError(errno.EBADF, "is closed", "standard input")
    return sys.stdin.buffer


def read_stream(name: str) -> Stream:
    """Parse a file or standard input; BitstreamError if not ours, OSError if not there."""
    with nullcontext(standard_input()) if name == STANDARD else open(name, "rb") as file:
        # One byte over the limit is enough to be refused by name.
        return Stream.from_bytes(file.read(MAX_FILE_BYTES + 1))


def read_settings(name: str) -> RunSettings:
    """Read a file of JSON; ConfigError if it holds something else, OSError if not there."""
    with open(name, "rb") as file:  # four bytes is what a letter takes at most
        return RunSettings.from_json(
            file.read(4 * MAX_LETTERS + 4).decode(errors="replace").strip()
        )


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", metavar="OUT", help=what)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--force", action="store_true", help="replace what exists")
    add("--skip-existing", action="store_true", help="leave what exists, do the rest")


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command writes: a file, or standard output."""

    name: str
    force: bool  # an existing file may be replaced

    def check(self, suffixes: Collection[str], *, source: str) -> None:
        """Refuse what cannot be written or must not be, before the work is done.
        ConfigError if the name does not do; OSError if its folder does not let us write.
        The name may end in `suffixes`; `source`, which the command reads, is never written to."""
        if self.name == STANDARD:
            return
        path = Path(self.name)
        if not path.parent.is_dir():
            raise ConfigError(f"output: no folder {str(path.parent)!r}")
        if path.exists() and not path.is_file():
            kind = "folder" if path.is_dir() else "device"
            raise ConfigError(f"output: must be a file, got the {kind} {self.name!r}")
        if path.suffix.lower() not in suffixes:
            raise ConfigError(f"output: must end in {', '.join(suffixes)}, got {self.name!r}")
        if _is_same(source, path):
            raise ConfigError(f"output: {self.name!r} is the file to read")
        self._check_free()
        folder = self._target().parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    def write(self, data: bytes) -> None:
        """Write all or nothing: what stood there is replaced when the new file is complete.
        ConfigError if a file has come to stand there; the OSError names the output."""
        if self.name == STANDARD:
            sys.stdout.buffer.write(data)
            flush_output()
            return
        target = self._target()
        beside = target.with_name(f".percov2-{os.urandom(6).hex()}")
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._check_free()
            if target.exists():
                beside.chmod(stat.S_IMODE(target.stat().st_mode))
            os.replace(beside, target)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from error
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)

    def report(self, text: str) -> None:
        """Print a line for people; beside the data when that is on standard output."""
        print(text, file=sys.stderr if self.name == STANDARD else sys.stdout)

    def _target(self) -> Path:
        """The file itself, where the name is a link to it."""
        return Path(os.path.realpath(self.name))

    def _check_free(self) -> None:
        if not self.force and self._target().exists():
            raise ConfigError(f"output: {self.name!r} exists; --force replaces it")


def flush_output() -> None:
    """Send what was printed. The OSError names standard output."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would flush again at the exit, fail again and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from error


def _is_same(source: str, path: Path) -> bool:
    with suppress(OSError, AttributeError):  # one of them is not there, or is no file
        here = os.fstat(sys.stdin.fileno()) if source == STANDARD else os.stat(source)
        return os.path.samestat(here, path.stat())
    return False
