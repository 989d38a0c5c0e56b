"""What a run keeps of its modules: averaged, gathered from all processes, saved, loaded strictly.

A checkpoint is the same for any number of processes: pieces of a sharded tensor (FSDP) are put
together before they are written, and cut again when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from percov2_core.errors import ConfigError

CHECKPOINT = "checkpoint.pt"


class Reached(NamedTuple):
    """How far a run has come."""

    step: int
    elapsed_s: float


def kept(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that a run owns, by name.

    A module that stands on frozen weights from elsewhere names them in `unsaved`.
    """
    unsaved: frozenset[str] = getattr(module, "unsaved", frozenset())
    return {k: v.detach() for k, v in module.state_dict().items() if k not in unsaved}


@torch.no_grad()
def fill(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Overwrite what `kept` names.

    Raises:
        ConfigError: if a name is missing or unknown, or a shape differs.
    """
    targets = kept(module)
    if wrong := sorted(set(targets) ^ set(values)):
        side = "lacks" if wrong[0] in targets else "has the unknown"
        raise ConfigError(f"checkpoint {side} {wrong[0]!r} ({len(wrong)} such names)")
    for name, target in targets.items():
        if target.shape != values[name].shape:
            raise ConfigError(
                f"checkpoint {name!r}: expected {tuple(target.shape)}, "
                f"got {tuple(values[name].shape)}"
            )
        target.copy_(_like(target, values[name]))


class Ema:
    """Exponential moving average of what a checkpoint keeps of a module."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: v.clone() for k, v in kept(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in kept(module).items():
            shadow = self.shadow[name]
            if shadow.is_floating_point():
                shadow.lerp_(value.to(shadow.dtype), 1 - decay)
            else:
                shadow.copy_(value)


def save(
    path: Path,
    *,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor],
    reached: Reached,
    write: bool,
) -> None:
    """Write a checkpoint; a broken write leaves the old one.

    Every process has to call this, since gathering takes them all; one of them writes.
    """
    state = _gathered(
        {"module": kept(module), "optimizer": optimizer.state_dict(), "ema": dict(average)}
    )
    if write:
        partial = path.with_suffix(".partial")
        torch.save({**state, "step": reached.step, "elapsed": reached.elapsed_s}, partial)
        partial.replace(path)


def load(
    path: Path,
    *,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> Reached:
    """Go on from what `save` wrote.

    Raises:
        ConfigError: if there is no checkpoint, or it is one of another module.
    """
    if not path.is_file():
        raise ConfigError(f"resume: no checkpoint at {str(path)!r}; start without --resume")
    state = torch.load(path, map_location="cpu", weights_only=True)
    fill(module, state["module"])
    _fill_optimizer(optimizer, state["optimizer"])
    for name, value in state["ema"].items():
        average[name] = _like(average[name], value)
    return Reached(int(state["step"]), float(state["elapsed"]))


def load_average(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, on the CPU.

    Raises:
        ConfigError: if there is none.
    """
    if not path.is_file():
        raise ConfigError(f"init: no checkpoint at {str(path)!r}")
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["ema"]
    return weights


def _like(target: Tensor, value: Tensor) -> Tensor:
    """`value` on the device and in the type of `target`, cut as it is cut."""
    value = value.to(device=target.device, dtype=target.dtype)
    if isinstance(target, DTensor):
        return distribute_tensor(value, target.device_mesh, target.placements)
    return value


def _gathered(tree: Any) -> Any:
    """The same with whole tensors on the CPU."""

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, DTensor):
            leaf = leaf.full_tensor()
        return leaf.cpu() if isinstance(leaf, Tensor) else leaf

    return tree_map(whole, tree)


def _fill_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state["state"].items():
        target = parameters[int(index)]
        for name, value in values.items():
            if isinstance(target, DTensor) and value.shape == target.shape:
                values[name] = _like(target.detach(), value)
    optimizer.load_state_dict(state)
