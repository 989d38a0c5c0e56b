"""Samples in tar archives, in the convention of WebDataset, read in any order.

A sample is the run of members NAME.SUFFIX that share a NAME; `webdataset.WebDataset` reads the same
files (github.com/webdataset/webdataset; checked with its version 1.0.2). That library streams and
shuffles; here a step must find its samples by number, so that a resumed run sees what an unbroken
one would have seen. So archives are written and indexed with the standard library.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from percov2_core.errors import ConfigError


class Span(NamedTuple):
    """Where a member's bytes are."""

    start: int
    size: int


class Record(NamedTuple):
    """One sample in its archive."""

    name: str
    archive: Path
    members: Mapping[str, Span]  # by suffix


def write_archive(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Write samples (name, bytes by suffix); a broken write leaves no archive.

    The same samples give the same bytes: no owner, no time.
    """
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, members in samples:
            for suffix, data in members.items():
                entry = tarfile.TarInfo(f"{name}.{suffix}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    partial.replace(path)


def index_archives(paths: Sequence[Path]) -> list[Record]:
    """Every sample of these archives, in order; only headers are read.

    Raises:
        ConfigError: if a file is no tar archive.
    """
    found: list[Record] = []
    for path in paths:
        try:
            with tarfile.open(path, "r:") as archive:
                members = [(m.name, Span(m.offset_data, m.size)) for m in archive if m.isfile()]
        except tarfile.TarError as error:
            raise ConfigError(f"shard {str(path)!r} is no tar archive: {error}") from error
        spans: dict[str, dict[str, Span]] = {}
        for member, span in members:
            name, _, suffix = member.partition(".")
            spans.setdefault(name, {})[suffix] = span
        found += [Record(name, path, by_suffix) for name, by_suffix in spans.items()]
    return found


def read_member(record: Record, suffix: str) -> bytes:
    """The bytes of one member.

    Raises:
        ConfigError: if the sample has no such member, or the archive ends before it.
    """
    if suffix not in record.members:
        raise ConfigError(
            f"shard {str(record.archive)!r}: sample {record.name!r} has no member {suffix!r}"
        )
    start, size = record.members[suffix]
    handle = os.open(record.archive, os.O_RDONLY)
    try:
        data = os.pread(handle, size, start)
    finally:
        os.close(handle)
    if len(data) != size:
        raise ConfigError(f"shard {str(record.archive)!r} ends inside sample {record.name!r}")
    return data


def to_npy(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def from_npy(data: bytes) -> NDArray[Any]:
    """The array in the bytes of a .npy file."""
    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array
