"""Parameters of a large network: straight to its device, in its precision, every one checked.

The network is built without memory (on torch's meta device) and filled file by file, so that
loading needs no more than the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from percov2_core.errors import WeightsError
from percov2_core.weights.files import existing, read_json

State: TypeAlias = dict[str, Tensor]
_Part = TypeVar("_Part", bound=nn.Module)
_SHOWN = 3  # names in a message


def load_large(
    build: Callable[[], _Part],
    folder: Path,
    stem: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> _Part:
    """Build a network and fill it from `STEM.safetensors` or the shards of its index.

    Raises:
        WeightsError: if a parameter is missing, unknown or misshapen, or a file is damaged.
    """
    with torch.device("meta"):
        part = build()
    expected = part.state_dict()
    tied = _tied(part)
    found: set[str] = set()
    for path in shard_paths(folder, stem):
        state = _checked(_read(path, device, dtype), expected, path)
        part.load_state_dict(state, strict=False, assign=True)
        found |= state.keys()
    _complete(found, expected.keys(), tied, folder)
    _tie(part, found, tied)
    _number_positions(part, device)
    return part.eval().requires_grad_(False)


def shard_paths(folder: Path, stem: str) -> list[Path]:
    """The files that hold a network's parameters, checked to be there."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [existing(folder / f"{stem}.safetensors")]
    names = read_json(index).get("weight_map", {})
    return [existing(folder / name) for name in sorted(set(names.values()))]


def _read(path: Path, device: torch.device, dtype: torch.dtype) -> State:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            # One after the other: a whole file in two precisions may not fit.
            return {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{str(path)!r} cannot be read: {error}") from error


def _checked(state: State, expected: State, path: Path) -> State:
    # Older files hold this table of counted numbers, which is no parameter.
    state = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    if unknown := sorted(state.keys() - expected.keys()):
        raise WeightsError(f"{str(path)!r}: unknown parameters {_some(unknown)}")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise WeightsError(
                f"{str(path)!r}: {name} has shape {tuple(value.shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )
    return state


def _complete(found: set[str], expected: Iterable[str], tied: dict[str, str], folder: Path) -> None:
    twins = tied | {source: target for target, source in tied.items()}
    missing = sorted(name for name in expected if not {name, twins.get(name)} & found)
    if missing:
        raise WeightsError(f"{str(folder)!r}: no parameters {_some(missing)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _tied(part: nn.Module) -> dict[str, str]:
    """Parameters that transformers stores once under two names: one name -> the other."""
    return dict(getattr(part, "_tied_weights_keys", None) or {})


def _tie(part: nn.Module, found: set[str], tied: dict[str, str]) -> None:
    for target, source in tied.items():
        if {target, source} <= found:
            continue
        have, lack = (source, target) if source in found else (target, source)
        owner, _, leaf = lack.rpartition(".")
        setattr(part.get_submodule(owner), leaf, part.get_parameter(have))


def _number_positions(part: nn.Module, device: torch.device) -> None:
    """Count the positions of CLIP's text again, which no file holds."""
    for module in part.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "position_ids":
                count = torch.arange(buffer.shape[-1], device=device).expand(1, -1)
                setattr(module, name, count)
