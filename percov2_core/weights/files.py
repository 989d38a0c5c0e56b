"""Files of a model folder: `model.json`, entropy models, settings; `networks` has the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from percov2_core.config import FILE_MODES, LEVELS, MODES, PRESETS, Preset
from percov2_core.entropy.exact import ExactModel
from percov2_core.entropy.prior import TokenPrior
from percov2_core.errors import ConfigError, WeightsError
from percov2_core.weights.sizes import BASES

FORMAT = 2
ABOUT_FILE = "model.json"
LANGUAGE_FILE = "caption_language.npz"
ENTROPY_FILE = "entropy.safetensors"
PAINTER_DIR, SURROGATE_DIR = "painter", "surrogate"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_SHOWN = 3  # parameters in a message

_Settings = TypeVar("_Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The fields of `model.json`; those with a default may be absent."""

    name: str  # what messages call the model
    base: str = ""  # key into `sizes.BASES`; empty if the folder holds its own base
    shift: float = 1.0  # of the flow's time, towards its noisy end
    t5_tokens: int = 0  # of the base's third text encoder, as the model was trained
    captioner: str = "describer"  # who wrote the captions that the model was trained on
    digest: str = ""  # hexadecimal `model_digest` of the folder; empty if it was not recorded
    presets: Mapping[str, Mapping[str, Preset]]  # steps and guidance per mode and preset

    @property
    def file_presets(self) -> Mapping[str, Mapping[str, Preset]]:
        """The same per mode of a file: what others are painted with is what their cuts are."""
        return {mode: self.presets[mode if mode in MODES else "hybrid"] for mode in FILE_MODES}


def read_about(folder: Path) -> About:
    """Read and check `model.json`; WeightsError if it is missing, of another format, or names an
    unknown base."""
    found = read_json(folder / ABOUT_FILE)
    if (kind := found.get("format")) != FORMAT:
        raise WeightsError(f"model {str(folder)!r}: format {kind!r}, this build reads {FORMAT}")
    kinds: dict[str, type[Any]] = dict.fromkeys(("base", "captioner", "digest"), str)
    kinds |= {"shift": float, "t5_tokens": int}
    given = {name: convert(found[name]) for name, convert in kinds.items() if name in found}
    about = About(name=str(found.get("name", folder.name)), presets=_presets(found), **given)
    if about.base not in ("", *BASES):
        known = ", ".join(BASES)
        raise WeightsError(f"{ABOUT_FILE}: base must be one of {known}, got {about.base!r}")
    return about


def write_about(about: About, folder: Path) -> None:
    """Write `model.json`, with the digest of what the folder holds now."""
    presets = {
        mode: {name: preset._asdict() for name, preset in named.items()}
        for mode, named in about.presets.items()
    }
    digest = model_digest(folder).hex()
    values = {"format": FORMAT, **asdict(about), "digest": digest, "presets": presets}
    write_json(folder / ABOUT_FILE, values)


def model_digest(folder: Path) -> bytes:
    """SHA-256 over what gives a file its meaning: caption tables, codebooks, entropy models. The
    decoder's other weights may improve without making old files unreadable."""
    digest = hashlib.sha256()
    per_level = (ENTROPY_FILE, f"quantizer/{WEIGHTS_FILE}")
    for name in (LANGUAGE_FILE, *(f"{level}/{part}" for level in LEVELS for part in per_level)):
        data = existing(folder / name).read_bytes()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def checked_digest(about: About, folder: Path) -> bytes:
    """`model_digest`, which must be the recorded one; WeightsError if parts of another model were
    put into the folder."""
    digest = model_digest(folder)
    if about.digest not in ("", digest.hex()):
        raise WeightsError(
            f"model {str(folder)!r}: digest is {digest.hex()[:12]}, {ABOUT_FILE} says "
            f"{about.digest[:12]}: codebooks or entropy models are not those it was saved with"
        )
    return digest


def _presets(found: Mapping[str, Any]) -> dict[str, dict[str, Preset]]:
    """Named steps and guidance per mode, checked to be complete."""
    presets = found.get("presets", {})
    missing = [f"{m}/{p}" for m in MODES for p in PRESETS if p not in presets.get(m, {})]
    if missing:
        raise WeightsError(f"{ABOUT_FILE}: presets lack {', '.join(missing)}")
    given = {mode: {p: presets[mode][p] for p in PRESETS} for mode in MODES}
    return {
        mode: {p: Preset(int(v["steps"]), float(v["guidance"])) for p, v in named.items()}
        for mode, named in given.items()
    }


def check_fit(
    place: Path,
    missing: Iterable[str],
    unknown: Iterable[str],
    misshapen: Iterable[tuple[str, Iterable[int], Iterable[int]]],
) -> None:
    """Refuse parameters that a network lacks, does not know, or has in another shape (found,
    expected); the WeightsError names the first."""
    wrong = [f"{name} is missing" for name in sorted(missing)]
    wrong += [f"{name} is unknown" for name in sorted(unknown)]
    shape = "{} has shape {}, expected {}"
    wrong += [shape.format(n, tuple(has), tuple(wanted)) for n, has, wanted in misshapen]
    if wrong:
        raise WeightsError(f"{str(place)!r}: {'; '.join(wrong[:_SHOWN])}")


def load_prior(path: Path) -> TokenPrior:
    """The entropy model of a rate."""
    try:
        return TokenPrior(ExactModel.load(existing(path)))
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{str(path)!r}: {error}") from error


def existing(path: Path) -> Path:
    """`path` if it is a file, else a WeightsError."""
    if not path.is_file():
        raise WeightsError(f"weights: no file at {str(path)!r}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; WeightsError if the file is missing or holds something else."""
    try:
        value = json.loads(existing(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{str(path)!r}: expected an object, got {type(value).__name__}")
    return value


def read_settings(kind: type[_Settings], path: Path) -> _Settings:
    """A dataclass of settings from a JSON file of its fields; WeightsError if a field is unknown or
    holds something that it cannot."""
    try:
        return kind(**read_json(path))
    except (TypeError, ConfigError) as error:
        raise WeightsError(f"{str(path)!r}: {error}") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object for `read_json`."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def one_line(error: Exception) -> str:
    """What a library says, in one line."""
    return " ".join(str(error).split())
