"""Files of a model folder: `model.json`, parameters that must all fit, and 8-bit storage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from percov2_core.config import LEVELS, MODES, PRESETS, Preset
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
TEXT_WEIGHTS_FILE = "model.safetensors"
PACKED_FROM = 4096  # numbers in a matrix from which it is stored in 8 bits
SCALE_SUFFIX = ".per_row_scale"
_SHOWN = 3  # parameters in a message

_Part = TypeVar("_Part", bound=nn.Module)
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


def load_part(kind: type[_Part], folder: Path, device: torch.device) -> _Part:
    """A diffusers module from its `config.json` and its weights, strictly, in float32, laid out as
    convolutions on a CPU like it."""
    part: _Part = kind.from_config(read_json(folder / "config.json"))  # type: ignore[attr-defined]
    return fill(part, folder / WEIGHTS_FILE).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def fill(part: _Part, weights: Path) -> _Part:
    """Load every parameter, strictly, in float32."""
    path = existing(weights)
    try:
        part.load_state_dict(unpack(load_file(path)), strict=True)
    except Exception as error:  # safetensors and torch each raise their own kinds
        name = type(part).__name__
        raise WeightsError(f"{str(weights)!r} does not fit {name}: {one_line(error)}") from error
    return part.float().eval().requires_grad_(False)


def load_published(kind: Any, folder: Path, *, device: torch.device, dtype: torch.dtype) -> Any:
    """A model of diffusers or transformers from its folder, by the library's own loader.
    WeightsError if a file is missing or damaged, or a parameter missing, unknown or misshapen."""
    existing(folder / "config.json")
    try:
        part, found = kind.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reports them instead of raising without their names
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{str(folder)!r} cannot be read: {one_line(error)}") from error
    check_fit(folder, found["missing_keys"], found["unexpected_keys"], found["mismatched_keys"])
    return part.to(device).eval().requires_grad_(False)


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


def load_prior(path: Path, device: str = "cpu") -> TokenPrior:
    """The entropy model of a rate."""
    try:
        return TokenPrior(ExactModel.load(existing(path), device=device))
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{str(path)!r}: {error}") from error


def pack(folder: Path) -> None:
    """Store the large matrices of a saved part as 8-bit integers: half the size of halves."""
    places = (folder / WEIGHTS_FILE, folder / TEXT_WEIGHTS_FILE)
    path = next(place for place in places if place.is_file())
    state = load_file(path)
    for name, value in list(state.items()):
        if value.ndim >= 2 and value.numel() >= PACKED_FROM:
            rows = value.float().flatten(1)
            scale = (rows.abs().amax(dim=1) / 127).clamp_min(1e-12)  # (rows,)
            state[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(value.shape)
            state[name + SCALE_SUFFIX] = scale
    save_file(state, path, metadata={"format": "pt"})


def unpack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `pack`: every 8-bit matrix times its scales."""
    scales = {k.removesuffix(SCALE_SUFFIX): state.pop(k) for k in list(state) if SCALE_SUFFIX in k}
    for name, scale in scales.items():
        value = state[name].float()
        state[name] = (value.flatten(1) * scale[:, None]).reshape(value.shape)
    return state


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
