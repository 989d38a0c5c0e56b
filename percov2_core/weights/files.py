"""Files of a model folder: JSON, parameters that must all fit, and 8-bit storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from percov2_core.errors import ConfigError, PerCoError, WeightsError

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS_FILE = "model.safetensors"
PACKED_FROM = 4096  # numbers in a matrix from which it is stored in 8 bits
SCALE_SUFFIX = ".per_row_scale"
_WEIGHTS_FILES = (WEIGHTS_FILE, TEXT_WEIGHTS_FILE)

_Part = TypeVar("_Part", bound=nn.Module)
_Settings = TypeVar("_Settings")


def load_part(kind: type[_Part], folder: Path, device: torch.device) -> _Part:
    """A diffusers module from its `config.json` and its weights, strictly, in float32."""
    config = read_json(folder / "config.json")
    part: _Part = kind.from_config(config)  # type: ignore[attr-defined]
    return fill(part, folder / WEIGHTS_FILE).to(device)


def fill(part: _Part, weights: Path) -> _Part:
    """Load every parameter, strictly, in float32."""
    try:
        part.load_state_dict(unpack(load_file(existing(weights))), strict=True)
    except PerCoError:
        raise
    except Exception as error:  # safetensors and torch each raise their own kinds
        text = " ".join(str(error).split())
        message = f"{str(weights)!r} does not fit {type(part).__name__}: {text}"
        raise WeightsError(message) from error
    return part.float().eval().requires_grad_(False)


def pack(folder: Path) -> None:
    """Store the large matrices of a saved part as 8-bit integers: half the size of halves."""
    path = next(folder / name for name in _WEIGHTS_FILES if (folder / name).is_file())
    packed: dict[str, Tensor] = {}
    for name, value in load_file(path).items():
        if value.ndim < 2 or value.numel() < PACKED_FROM:
            packed[name] = value
            continue
        rows = value.float().flatten(1)
        scale = (rows.abs().amax(dim=1) / 127).clamp_min(1e-12)  # (rows,)
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(value.shape)
        packed[name + SCALE_SUFFIX] = scale
    save_file(packed, path, metadata={"format": "pt"})


def unpack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `pack`: every 8-bit matrix times its scales."""
    scales = {k.removesuffix(SCALE_SUFFIX): state.pop(k) for k in list(state) if SCALE_SUFFIX in k}
    for name, scale in scales.items():
        value = state[name].float()
        state[name] = (value.flatten(1) * scale[:, None]).reshape(value.shape)
    return state


def existing(path: Path) -> Path:
    """`path` if it is a file.

    Raises:
        WeightsError: if it is not.
    """
    if not path.is_file():
        raise WeightsError(f"weights: no file at {str(path)!r}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        WeightsError: if the file is missing or holds something else.
    """
    try:
        value = json.loads(existing(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{str(path)!r}: expected an object, got {type(value).__name__}")
    return value


def read_settings(kind: type[_Settings], path: Path) -> _Settings:
    """A dataclass of settings from a JSON file of its fields.

    Raises:
        WeightsError: if a field is unknown or holds something that it cannot.
    """
    try:
        return kind(**read_json(path))
    except (TypeError, ConfigError) as error:
        raise WeightsError(f"{str(path)!r}: {error}") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object for `read_json`."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
