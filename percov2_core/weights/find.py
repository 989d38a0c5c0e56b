"""Where models are: by name, in a folder, in the Hub's cache; what of one is here or missing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from percov2_core.caption.captioner import BLIP_MODEL, BLIP_VARIABLE
from percov2_core.config import DOWNLOAD_VARIABLE, LEVELS
from percov2_core.errors import WeightsError
from percov2_core.weights.files import ABOUT_FILE, PAINTER_DIR, existing, read_about, read_json
from percov2_core.weights.sizes import BASES, find_base_model

if TYPE_CHECKING:
    from percov2_core.weights.residency import Residency

INDEX_FILE = "model_index.json"
MODELS_DIR = Path(__file__).parents[1] / "models"
EMBEDDED_DIR = MODELS_DIR / "embedded"
BASE_VARIABLE = "PERCOV2_SD3_BASE"
CHECKPOINT_FILES = ["*.json", "*.npz", "*.safetensors", "*.txt", "*.md"]
BLIP_FILES = ["*.json", "*.txt", "model.safetensors", "model-*.safetensors"]
# Not `*.safetensors`: the Hub's folders hold a second copy of the text encoders, "model.fp16...".
_STEMS = (
    *("config.json", "*.safetensors.index.json", "model.safetensors", "model-*.safetensors"),
    *("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors"),
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def base_of(name: str) -> str:
    """The base that a model's name asks for, a key into `sizes.BASES`, or ""."""
    first = name.partition(":")[0]
    return first if first in BASES else ""


def find_model(name: str) -> Path:
    """The folder of a model; WeightsError if it is not here: says how to get it."""
    if name == "embedded":
        return EMBEDDED_DIR
    if not (base := base_of(name)):
        repository = repository_of(name)
        return (
            _fetched(name, repository, CHECKPOINT_FILES, ABOUT_FILE) if repository else Path(name)
        )
    place = name.partition(":")[2]
    folder = Path(place) if place else MODELS_DIR / base
    if folder.is_dir():
        return folder
    if not place:
        raise WeightsError(
            f"{base!r}: no trained checkpoint ships, and none is at {str(folder)!r}: train one "
            f"(README, 'With Stable Diffusion 3') and say {base}:FOLDER"
        )
    if not repository_of(name):
        raise WeightsError(f"{name!r}: no folder {place!r}")
    return _fetched(name, place, CHECKPOINT_FILES, ABOUT_FILE)


def find_base(name: str, *, t5: bool) -> Path:
    """The folder of a base, in diffusers' layout: PERCOV2_SD3_BASE, or the Hub's, with the third
    text encoder if `t5`. WeightsError if it is not here: says how to get it."""
    repository = find_base_model(name).repository
    if given := os.environ.get(BASE_VARIABLE, ""):
        if not (Path(given) / INDEX_FILE).is_file():
            raise WeightsError(f"{BASE_VARIABLE}: no {INDEX_FILE} in folder {given!r}")
        return Path(given)
    return _fetched(name, repository, base_files(t5=t5), INDEX_FILE)


def repository_of(name: str) -> str:
    """The OWNER/NAME of the checkpoint in a model's name, or "" if it is a folder or none."""
    place = name.partition(":")[2] if base_of(name) else name
    return place if _REPOSITORY.fullmatch(place) and not Path(place).is_dir() else ""


def base_files(*, t5: bool) -> list[str]:
    """Patterns of the files of a base that are used; others double the download."""
    tokenizers = ["tokenizer/*", "tokenizer_2/*", *(["tokenizer_3/*"] if t5 else [])]
    weights = chain.from_iterable(base_parts(t5=t5).values())
    return [INDEX_FILE, "scheduler/*.json", *tokenizers, *weights]


def base_parts(*, t5: bool) -> dict[str, list[str]]:
    """Patterns of the files of each network of a base."""
    parts = ["vae", "transformer", "text_encoder", "text_encoder_2"]
    parts += ["text_encoder_3"] if t5 else []
    return {part: [f"{part}/{stem}" for stem in _STEMS] for part in parts}


def _fetched(name: str, repository: str, patterns: list[str], probe: str) -> Path:
    from percov2_core.weights import hub  # an HTTP client: only where the Hub may be asked

    if (folder := hub.cached(repository, patterns)) is not None:
        return folder
    if os.environ.get(DOWNLOAD_VARIABLE) == "1":
        return hub.download(repository, patterns, probe=probe)
    also = f", or set {BASE_VARIABLE} to its folder" if name in BASES else ""
    run = f"run `python -m percov2_core weights --model {name} --download`{also}"
    raise WeightsError(f"{name!r}: {repository!r} is not in the Hub's cache: {run}")


class Part(NamedTuple):
    """One network or one set of tables."""

    name: str
    place: str
    size_bytes: int  # of its files
    device: str  # where it rests
    problem: str  # empty if it is here


def inventory(name: str, home: Residency) -> list[Part]:
    """The parts of a model, present or not; nothing is fetched."""
    base, t5, device = base_of(name), True, str(home.target)
    try:
        folder = find_model(name)
        about = read_about(folder)
        base, t5 = about.base, about.t5_tokens > 0
        names = (*LEVELS, PAINTER_DIR) if base else ("vae", *LEVELS, PAINTER_DIR)
        ours = [_part(part, folder / part, device) for part in names]
    except WeightsError as error:
        ours = [Part("checkpoint", name, 0, device, str(error))]
    return [*_base(base, home, t5=t5), *ours, _blip(home)] if base else ours


def next_step(name: str, parts: list[Part]) -> str:
    """What to do about what is missing, or ""."""
    missing = {part.name for part in parts if part.problem}
    base = base_of(name)
    if not missing or not base:
        return f"missing: {', '.join(sorted(missing))}" if missing else ""
    if not missing & base_parts(t5=True).keys():
        return "add --download for the captioner" if missing == {"captioner"} else ""
    from huggingface_hub import constants, get_token

    token = "" if get_token() else " (not set now)"
    page = f"{constants.ENDPOINT}/{find_base_model(base).repository}"
    fetching = f"accept its licence at {page}, set HF_TOKEN{token}, and add --download"
    return f"base: {fetching}; or set {BASE_VARIABLE} to its folder"


def fetch(name: str, home: Residency) -> None:
    """Download what a model needs and this machine lacks; WeightsError if something cannot be had:
    says what to accept or set."""
    from percov2_core.weights import hub

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


def fetch_painter(name: str) -> None:
    """Download the second painter if it is a base that is not here. WeightsError as `fetch`."""
    from percov2_core.weights import hub
    from percov2_core.weights.residency import Residency  # with torch, which files do without

    if name in BASES and not os.environ.get(BASE_VARIABLE):
        repository = find_base_model(name).repository
        patterns = base_files(t5=Residency.from_environment().t5)
        if hub.cached(repository, patterns) is None:
            hub.download(repository, patterns, probe=INDEX_FILE)


def _base(name: str, home: Residency, *, t5: bool) -> Iterator[Part]:
    from percov2_core.weights import hub

    given = os.environ.get(BASE_VARIABLE)
    repository = find_base_model(name).repository
    for part, patterns in base_parts(t5=t5 and home.t5).items():
        found = Path(given) if given else hub.cached(repository, patterns)
        yield _part(part, found and found / part, _device(part, home), repository)


def _device(part: str, home: Residency) -> str:
    if not part.startswith("text_encoder"):
        return str(home.target)
    rest = home.rest("t5" if part == "text_encoder_3" else "clip")
    return str(rest) if rest == home.target else f"{rest}, visits {home.target}"


def _part(name: str, folder: Path | None, device: str, source: str = "", effect: str = "") -> Part:
    if folder is None:
        return Part(name, source, 0, device, f"not in the Hub's cache{effect}")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Part(name, str(folder), size, device, _problem(folder))


def _problem(folder: Path) -> str:
    """What an index names and the folder lacks, or ""."""
    if not folder.is_dir():
        return "no such folder"
    try:
        for index in folder.rglob("*.safetensors.index.json"):
            for name in set(read_json(index).get("weight_map", {}).values()):
                existing(index.parent / name)
    except WeightsError as error:
        return str(error)
    return "" if any(folder.rglob("*.safetensors")) else "no weights in it"


def _blip(home: Residency) -> Part:
    from percov2_core.weights import hub

    source = os.environ.get(BLIP_VARIABLE) or BLIP_MODEL
    found = Path(source) if Path(source).is_dir() else hub.cached(source, BLIP_FILES)
    effect = ": the objects captioner or the describer takes its place"
    return _part("captioner", found, str(home.target), source, effect)
