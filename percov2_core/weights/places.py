"""Where models are: by name, in a folder, in the Hub's cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from percov2_core.caption.captioner import DOWNLOAD_VARIABLE
from percov2_core.errors import WeightsError
from percov2_core.weights import hub
from percov2_core.weights.about import ABOUT_FILE
from percov2_core.weights.base import INDEX_FILE
from percov2_core.weights.sizes import BASES, find_base_model

MODELS_DIR = Path(__file__).parents[1] / "models"
EMBEDDED_DIR = MODELS_DIR / "embedded"
BASE_VARIABLE = "PERCOV2_SD3_BASE"
CHECKPOINT_FILES = ["*.json", "*.npz", "*.safetensors", "*.txt", "*.md"]
BLIP_FILES = ["*.json", "*.txt", "model.safetensors", "model-*.safetensors"]
# Not `*.safetensors`: the Hub's folders hold a second copy of the text encoders, "model.fp16...".
_STEMS = (
    "config.json",
    "*.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model-*.safetensors",
    "model.safetensors",
    "model-*.safetensors",
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def base_of(name: str) -> str:
    """The base that a model's name asks for, a key into `sizes.BASES`, or ""."""
    first = name.partition(":")[0]
    return first if first in BASES else ""


def find_model(name: str) -> Path:
    """The folder of a model.

    Raises:
        WeightsError: if it is not here; says how to get it.
    """
    if name == "embedded":
        return EMBEDDED_DIR
    base = base_of(name)
    if not base:
        return Path(name)
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
    """The folder of a base in diffusers' layout: PERCOV2_SD3_BASE, or from the Hub.

    Args:
        name: Key into `sizes.BASES`.
        t5: Whether the third text encoder is needed.

    Raises:
        WeightsError: if it is not here; says how to get it.
    """
    repository = find_base_model(name).repository
    if given := os.environ.get(BASE_VARIABLE, ""):
        if not (Path(given) / INDEX_FILE).is_file():
            raise WeightsError(f"{BASE_VARIABLE}: no {INDEX_FILE} in folder {given!r}")
        return Path(given)
    return _fetched(name, repository, base_files(t5=t5), INDEX_FILE)


def repository_of(name: str) -> str:
    """The OWNER/NAME of the checkpoint in a model's name, or "" if it is a folder or none."""
    place = name.partition(":")[2] if base_of(name) else ""
    return place if _REPOSITORY.fullmatch(place) and not Path(place).is_dir() else ""


def base_files(*, t5: bool) -> list[str]:
    """Patterns of the files of a base that are used; others double the download."""
    tokenizers = ["tokenizer/*", "tokenizer_2/*", *(["tokenizer_3/*"] if t5 else [])]
    weights = [pattern for patterns in base_parts(t5=t5).values() for pattern in patterns]
    return [INDEX_FILE, "scheduler/*.json", *tokenizers, *weights]


def base_parts(*, t5: bool) -> dict[str, list[str]]:
    """Patterns of the files of each network of a base."""
    parts = ["vae", "transformer", "text_encoder", "text_encoder_2"]
    parts += ["text_encoder_3"] if t5 else []
    return {part: [f"{part}/{stem}" for stem in _STEMS] for part in parts}


def _fetched(name: str, repository: str, patterns: list[str], probe: str) -> Path:
    if (folder := hub.cached(repository, patterns)) is not None:
        return folder
    if os.environ.get(DOWNLOAD_VARIABLE) == "1":
        return hub.download(repository, patterns, probe=probe)
    also = f", or set {BASE_VARIABLE} to its folder" if name in BASES else ""
    raise WeightsError(
        f"{name!r}: {repository!r} is not in the Hub's cache: run "
        f"`python -m percov2_core weights --model {name} --download`{also}"
    )
