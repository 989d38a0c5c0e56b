"""Networks from a model folder: parameters that must all fit, and their 8-bit storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from percov2_core.errors import WeightsError
from percov2_core.weights.files import WEIGHTS_FILE, check_fit, existing, one_line, read_json

TEXT_WEIGHTS_FILE = "model.safetensors"
PACKED_FROM = 4096  # numbers in a matrix from which it is stored in 8 bits
SCALE_SUFFIX = ".per_row_scale"

_Part = TypeVar("_Part", bound=nn.Module)


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
