"""Where the weights of published metrics are: none of them is part of this package.

They are looked for in the folder that PERCOV2_METRIC_WEIGHTS names, in the metric's own package if
it is installed, and among torch's checkpoints, and fetched there where PERCOV2_ALLOW_DOWNLOAD=1.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from percov2_core.config import DOWNLOAD_VARIABLE
from percov2_core.errors import UnavailableError, WeightsError

ENVIRONMENT = "PERCOV2_METRIC_WEIGHTS"


class File(NamedTuple):
    """A file as its authors published it."""

    name: str
    sha256: str  # in full, or how it begins, where its name says no more
    url: str
    package: str = ""  # that brings it
    inside: str = ""  # where, below the package


def load_files(metric: str, files: Sequence[File]) -> list[Any]:
    """What `torch.load` finds in the files, which must be data alone, on the CPU.
    UnavailableError if some are not here: says which to put where; WeightsError if one of them has
    another checksum."""
    found = {file: _find(file) for file in files}
    missing = [file for file, path in found.items() if path is None]
    if missing and os.environ.get(DOWNLOAD_VARIABLE) == "1":
        found |= {file: _fetch(metric, file) for file in missing}
    elif missing:
        names = " and ".join(file.name for file in missing)
        raise UnavailableError(
            f"{metric} is not shown: put {names} into a folder and name it in {ENVIRONMENT}"
        )
    return [_load(path, file) for file, path in found.items() if path]


def _find(file: File) -> Path | None:
    places = [_checkpoints() / file.name]
    if file.package and (spec := find_spec(file.package)) and spec.origin:
        places.insert(0, Path(spec.origin).parent / file.inside)
    if folder := os.environ.get(ENVIRONMENT):
        places.insert(0, Path(folder) / file.name)
    return next((place for place in places if place.is_file()), None)


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _fetch(metric: str, file: File) -> Path:
    path = _checkpoints() / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(file.url, str(path), file.sha256, progress=False)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        message = f"{metric} is not shown: {file.url} cannot be had ({reason})"
        raise UnavailableError(f"{message}; put {file.name} into {ENVIRONMENT}") from error
    return path


def _load(path: Path, file: File) -> Any:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(file.sha256):
        raise WeightsError(f"{file.name}: SHA-256 must begin {file.sha256[:12]}, got {digest[:12]}")
    return torch.load(path, map_location="cpu", weights_only=True)
