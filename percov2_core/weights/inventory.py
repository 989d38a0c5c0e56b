"""What of a model is on this machine: its parts, how large they are, and where they would rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants, get_token

from percov2_core.caption.captioner import BLIP_MODEL, BLIP_VARIABLE
from percov2_core.config import RATES
from percov2_core.errors import WeightsError
from percov2_core.weights import hub
from percov2_core.weights.about import ABOUT_FILE, About, read_about
from percov2_core.weights.base import INDEX_FILE
from percov2_core.weights.places import (
    BASE_VARIABLE,
    BLIP_FILES,
    CHECKPOINT_FILES,
    base_files,
    base_of,
    base_parts,
    find_model,
    repository_of,
)
from percov2_core.weights.residency import Residency
from percov2_core.weights.shards import shard_paths
from percov2_core.weights.sizes import find_base_model


class Part(NamedTuple):
    """One network or one set of tables.

    `problem` is empty if it is here; `size_bytes` is that of its files; `device` is where it rests.
    """

    name: str
    place: str
    size_bytes: int
    device: str
    problem: str


def inventory(name: str, home: Residency) -> list[Part]:
    """The parts of a model, present or not; nothing is fetched."""
    base = base_of(name)
    try:
        folder = find_model(name)
        about = read_about(folder)
    except WeightsError as error:
        checkpoint = [Part("checkpoint", name, 0, str(home.target), str(error))]
        return [
            *(_base(base, home, t5=True) if base else []),
            *checkpoint,
            *_blip(bool(base), home),
        ]
    ours = [_folder(rate, folder / rate, str(home.target)) for rate in RATES]
    if not about.base:
        return [_folder("vae", folder / "vae", str(home.target)), *ours]
    return [*_base(about.base, home, t5=_wants_t5(about, home)), *ours, *_blip(True, home)]


def next_step(name: str, parts: list[Part]) -> str:
    """What to do about what is missing, or ""."""
    missing = {part.name for part in parts if part.problem}
    base = base_of(name)
    if not missing or not base:
        return f"missing: {', '.join(sorted(missing))}" if missing else ""
    if not missing & base_parts(t5=True).keys():
        return "add --download for the captioner" if missing == {"captioner"} else ""
    token = "" if get_token() else " (not set now)"
    page = f"{constants.ENDPOINT}/{find_base_model(base).repository}"
    return (
        f"base: accept its licence at {page}, set HF_TOKEN{token}, and add --download; "
        f"or set {BASE_VARIABLE} to its folder"
    )


def fetch(name: str, home: Residency) -> None:
    """Download what a model needs and this machine lacks.

    Raises:
        WeightsError: if something cannot be had; says what to accept or set.
    """
    wanted = []
    if repository := repository_of(name):
        wanted.append((repository, CHECKPOINT_FILES, ABOUT_FILE))
    base = base_of(name)
    if base and not os.environ.get(BASE_VARIABLE):
        wanted.append((find_base_model(base).repository, base_files(t5=home.t5), INDEX_FILE))
    if base and not os.environ.get(BLIP_VARIABLE):
        wanted.append((BLIP_MODEL, BLIP_FILES, "config.json"))
    for repository, patterns, probe in wanted:
        if hub.cached(repository, patterns) is None:
            hub.download(repository, patterns, probe=probe)


def _wants_t5(about: About, home: Residency) -> bool:
    return home.t5 and about.t5_tokens > 0


def _base(name: str, home: Residency, *, t5: bool) -> Iterator[Part]:
    given = os.environ.get(BASE_VARIABLE)
    repository = find_base_model(name).repository
    for part, patterns in base_parts(t5=t5 and home.t5).items():
        found = Path(given) if given else hub.cached(repository, patterns)
        device = _device(part, home)
        if found is None:
            yield Part(part, repository, 0, device, "not in the Hub's cache")
        else:
            yield _folder(part, found / part, device)


def _device(part: str, home: Residency) -> str:
    if not part.startswith("text_encoder"):
        return str(home.target)
    rest = home.rest("t5" if part == "text_encoder_3" else "clip")
    return str(rest) if rest == home.target else f"{rest}, visits {home.target}"


def _folder(name: str, folder: Path, device: str) -> Part:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Part(
        name, str(folder), sum(path.stat().st_size for path in files), device, _problem(folder)
    )


def _problem(folder: Path) -> str:
    """What an index names and the folder lacks, or ""."""
    if not folder.is_dir():
        return "no such folder"
    try:
        for index in folder.rglob("*.safetensors.index.json"):
            shard_paths(index.parent, index.name.removesuffix(".safetensors.index.json"))
    except WeightsError as error:
        return str(error)
    if not any(folder.rglob("*.safetensors")):
        return "no weights in it"
    return ""


def _blip(wanted: bool, home: Residency) -> list[Part]:
    if not wanted:
        return []
    source = os.environ.get(BLIP_VARIABLE) or BLIP_MODEL
    found = Path(source) if Path(source).is_dir() else hub.cached(source, BLIP_FILES)
    if found is None:
        note = "not in the Hub's cache: the describer writes the captions"
        return [Part("captioner", source, 0, str(home.target), note)]
    return [_folder("captioner", found, str(home.target))]
