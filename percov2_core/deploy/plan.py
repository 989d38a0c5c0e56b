"""Which files the Space gets, and everything else that publishing would do; nothing is sent."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from percov2_core.deploy.manifest import FILE_NAME, FREE_HARDWARE, Manifest, check_readme
from percov2_core.errors import ConfigError

MAX_TOTAL_BYTES = 100 * 10**6
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_SPACE = re.compile(rf"({_PART}/)?{_PART}")


class File(NamedTuple):
    """One file to upload."""

    path: str  # relative to the repository, with "/"
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that publishing does.

    Attributes:
        root: The repository.
        space: "OWNER/NAME", or "NAME" where the owner of the token is to be the owner.
        files: Sorted by path.
        untracked: Files in the uploaded folders that git does not track: they stay behind.
        hardware: What the Space is to run on.
        sleep_time_s: None where the host alone decides.
        startup_s: How long the host lets the Space start, in seconds.
    """

    root: Path
    space: str
    files: tuple[File, ...]
    untracked: tuple[str, ...]
    hardware: str
    sleep_time_s: int | None
    startup_s: int
    variables: Mapping[str, str]
    secrets: Mapping[str, str]

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def lines(self) -> Iterator[str]:
        """The plan in words, one line each."""
        yield f"space     {self.space if '/' in self.space else f'OWNER/{self.space}'}"
        yield f"hardware  {self.hardware}"
        asleep = "as the host decides" if self.sleep_time_s is None else f"{self.sleep_time_s} s"
        yield f"sleeps    {asleep}"
        yield from (f"variable  {name}={value}" for name, value in self.variables.items())
        yield from (f"secret    {name}: {what}" for name, what in self.secrets.items())
        yield from (f"{file.size_bytes:>10,}  {file.path}" for file in self.files)
        count = f"{len(self.files)} files"
        yield f"{self.total_bytes:>10,}  bytes in {count}; at most {MAX_TOTAL_BYTES:,}"
        yield from (f"left out: {path}: git does not track it" for path in self.untracked)


def make_plan(
    manifest: Manifest, root: Path, *, space: str | None = None, hardware: str | None = None
) -> Plan:
    """List what publishing would do, from the files as they are on disk.

    Args:
        space: Takes the place of the Spacefile's name.
        hardware: Takes the place of the Spacefile's hardware.

    Raises:
        ConfigError: if the name is none, a listed file is missing, README.md is stale, or the
            files are too large.
    """
    if space is not None and not _SPACE.fullmatch(space):
        raise ConfigError(f"--space: expected OWNER/NAME, got {space!r}")
    check_readme(manifest, root)
    tracked, untracked = _listed(manifest.upload, root)
    for wanted in (FILE_NAME, "README.md", "requirements.txt", manifest.page["app_file"]):
        if wanted not in tracked:
            raise ConfigError(f"{FILE_NAME}: upload: expected {wanted} among the files, got none")
    chosen = hardware or manifest.hardware
    plan = Plan(
        root=root,
        space=space or manifest.space,
        files=tuple(File(path, _size_bytes(root, path)) for path in sorted(tracked)),
        untracked=tuple(sorted(untracked)),
        hardware=chosen,
        sleep_time_s=None if chosen == FREE_HARDWARE else manifest.sleep_time_s,
        startup_s=manifest.startup_s,
        variables=manifest.variables,
        secrets=manifest.secrets,
    )
    if plan.total_bytes > MAX_TOTAL_BYTES:
        raise ConfigError(
            f"{FILE_NAME}: upload: expected at most {MAX_TOTAL_BYTES:,} bytes, "
            f"got {plan.total_bytes:,}"
        )
    return plan


def _listed(upload: tuple[str, ...], root: Path) -> tuple[set[str], set[str]]:
    """-> the files to upload, and those that are there but not in git."""
    tracked: set[str] = set()
    untracked: set[str] = set()
    for entry in upload:
        found = _git_files(root, entry)
        found = _plain_files(root, entry) if found is None else found
        if not found:
            raise ConfigError(f"{FILE_NAME}: upload: no file of {entry!r} is in git")
        tracked |= found
        untracked |= _git_files(root, entry, "--others", "--exclude-standard") or set()
    return tracked, untracked


def _git_files(root: Path, entry: str, *options: str) -> set[str] | None:
    """What git lists of a file or folder; None where there is no git or no checkout."""
    command = ["git", "-C", str(root), "ls-files", "-z", *options, "--", entry]
    try:
        result = subprocess.run(command, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return {name for name in result.stdout.decode("utf-8").split("\0") if name}


def _plain_files(root: Path, entry: str) -> set[str]:
    """The files of a copy without git: all but caches and hidden ones."""
    start = root / entry
    found = start.rglob("*") if start.is_dir() else [start]
    names = {path.relative_to(root) for path in found if path.is_file()}
    return {
        name.as_posix()
        for name in names
        if not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
    }


def _size_bytes(root: Path, path: str) -> int:
    file = root / path
    if not file.is_file() or file.is_symlink():
        raise ConfigError(f"{FILE_NAME}: upload: expected {path} to be a plain file, got none")
    return file.stat().st_size
