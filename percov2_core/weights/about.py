"""`model.json`: what a model folder is, apart from its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from percov2_core.config import MODES, PRESETS, RATES, Preset
from percov2_core.errors import WeightsError
from percov2_core.weights.files import WEIGHTS_FILE, existing, read_json, write_json
from percov2_core.weights.sizes import BASES

FORMAT = 1
ABOUT_FILE = "model.json"
LANGUAGE_FILE = "caption_language.npz"
ENTROPY_FILE = "entropy.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The fields of `model.json`; those with a default may be absent.

    Attributes:
        name: What messages call the model.
        presets: Steps and guidance per mode and preset.
        shift: Of the flow's time, towards its noisy end.
        base: Key into `sizes.BASES`; empty if the folder holds its own base.
        t5_tokens: Tokens of the base's third text encoder that the model was trained with.
        captioner: Who writes the captions that the model was trained on.
        digest: Hexadecimal `model_digest` of the folder; empty if it was not recorded.
    """

    name: str
    presets: Mapping[str, Mapping[str, Preset]]
    shift: float = 1.0
    base: str = ""
    t5_tokens: int = 0
    captioner: str = "describer"
    digest: str = ""


def read_about(folder: Path) -> About:
    """Read and check `model.json`.

    Raises:
        WeightsError: if it is missing, of another format, or names an unknown base.
    """
    found = read_json(folder / ABOUT_FILE)
    if found.get("format") != FORMAT:
        raise WeightsError(
            f"model {str(folder)!r}: format {found.get('format')!r}, this build reads {FORMAT}"
        )
    about = About(
        name=str(found.get("name", folder.name)),
        presets=_presets(found),
        shift=float(found.get("shift", 1.0)),
        base=str(found.get("base", "")),
        t5_tokens=int(found.get("t5_tokens", 0)),
        captioner=str(found.get("captioner", "describer")),
        digest=str(found.get("digest", "")),
    )
    if about.base and about.base not in BASES:
        known = ", ".join(BASES)
        raise WeightsError(f"{ABOUT_FILE}: base must be one of {known}, got {about.base!r}")
    return about


def write_about(about: About, folder: Path) -> None:
    """Write `model.json`, with the digest of what the folder holds now."""
    presets = {
        mode: {name: preset._asdict() for name, preset in named.items()}
        for mode, named in about.presets.items()
    }
    values = {
        "format": FORMAT,
        "name": about.name,
        "base": about.base,
        "shift": about.shift,
        "t5_tokens": about.t5_tokens,
        "captioner": about.captioner,
        "digest": model_digest(folder).hex(),
        "presets": presets,
    }
    write_json(folder / ABOUT_FILE, values)


def model_digest(folder: Path) -> bytes:
    """SHA-256 over what gives a file its meaning: caption tables, codebooks, entropy models.

    Its first byte is the fingerprint in every file. The decoder's other weights may improve
    without making old files unreadable.
    """
    digest = hashlib.sha256()
    per_rate = (ENTROPY_FILE, f"quantizer/{WEIGHTS_FILE}")
    for name in (LANGUAGE_FILE, *(f"{rate}/{part}" for rate in RATES for part in per_rate)):
        data = existing(folder / name).read_bytes()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def checked_digest(about: About, folder: Path) -> bytes:
    """`model_digest`, which must be the recorded one.

    Raises:
        WeightsError: if parts of another model were put into the folder.
    """
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
    return {mode: {p: _preset(presets[mode][p]) for p in PRESETS} for mode in MODES}


def _preset(values: Mapping[str, Any]) -> Preset:
    return Preset(int(values["steps"]), float(values["guidance"]))
