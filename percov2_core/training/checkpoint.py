"""What a run keeps: the moving average of its weights, and checkpoints to go on from.

A checkpoint is a folder checkpoint-STEP/ with

    average.safetensors    averaged weights by name, whole, and how far the run has come
    the rest               what Accelerate's `save_state` writes and `load_state` reads
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from percov2_core.errors import ConfigError

_AVERAGE, _MODEL, _PARTIAL = "average.safetensors", "model.safetensors", "checkpoint.partial"


def kept(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, but for frozen ones that the module names in `unsaved`."""
    unsaved: frozenset[str] = getattr(module, "unsaved", frozenset())
    return {k: v.detach() for k, v in module.state_dict().items() if k not in unsaved}


def fill(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Overwrite what `kept` names; ConfigError if names or shapes differ."""
    targets = kept(module)
    shapes, given = ({k: v.shape for k, v in tensors.items()} for tensors in (targets, values))
    if wrong := sorted(name for name, _ in shapes.items() ^ given.items()):
        raise ConfigError(
            f"checkpoint does not fit: {wrong[0]!r} is {given.get(wrong[0], 'missing')}, "
            f"expected {shapes.get(wrong[0], 'no such name')}"
        )
    _copy(targets.values(), [values[name] for name in targets])


class Average:
    """Exponential moving average of the trained parameters; all else is taken as it is."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self._trained = [p for p in module.parameters() if p.requires_grad]
        # A young average forgets faster: it began at random weights.
        self._moving = EMAModel(self._trained, decay)

    def update(self) -> None:
        """Follow one step of the module."""
        self._moving.step(self._trained)

    def named(self) -> dict[str, Tensor]:
        """The averages by the names of the parameters."""
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        return dict(zip(names, self._moving.shadow_params, strict=True))

    def load(self, values: Mapping[str, Tensor], steps: int) -> None:
        """Go on from the averages of so many steps."""
        own = self.named()
        _copy(own.values(), [values[name] for name in own])
        self._moving.optimization_step = steps

    def move_in(self) -> None:
        """Leave the averages in the module."""
        _copy(self._trained, self._moving.shadow_params)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module has the averages until the context ends."""
        raw = [p.detach().clone() for p in self._trained]
        self.move_in()
        yield
        _copy(self._trained, raw)


class Checkpoints:
    """The checkpoints of one run, of which the last complete one stays."""

    def __init__(self, out: Path, accelerator: Accelerator, average: Average) -> None:
        self.out, self.accelerator, self.average = out, accelerator, average
        accelerator.register_save_state_pre_hook(self._save_what_is_kept)
        accelerator.register_load_state_pre_hook(self._load_what_is_kept)

    def save(self, step: int, elapsed_s: float) -> None:
        """Write a checkpoint in place of the one before it; a broken write leaves the old one.
        Every process has to call this, since gathering takes them all; one of them writes."""
        folder, partial = self.out / f"checkpoint-{step:08d}", self.out / _PARTIAL
        if folder.exists():
            return
        self.accelerator.save_state(str(partial))
        values = kept(self.average.module) | self.average.named()
        whole = {name: _whole(value) for name, value in values.items()}
        if self.accelerator.is_main_process:
            told = {"step": str(step), "elapsed_s": repr(elapsed_s)}
            save_file(whole, partial / _AVERAGE, metadata=told)
            older = _found(self.out)
            partial.rename(folder)
            for path in older:
                shutil.rmtree(path)
        self.accelerator.wait_for_everyone()

    def load(self) -> tuple[int, float]:
        """Go on from the last checkpoint: its step, and the seconds that it took.
        ConfigError if there is none, or it is one of another module."""
        if not (found := _found(self.out)):
            raise ConfigError(f"resume: no checkpoint at {str(self.out)!r}; start without --resume")
        self.accelerator.load_state(str(found[-1]))
        with safe_open(found[-1] / _AVERAGE, framework="pt") as file:
            told = file.metadata()
        step = int(told["step"])
        self.average.load(load_file(found[-1] / _AVERAGE), step)
        return step, float(told["elapsed_s"])

    def _save_what_is_kept(self, _models: Any, weights: list[dict[str, Tensor]], _to: str) -> None:
        if weights:  # under FSDP there are none: Accelerate gathers and writes them itself
            weights[:] = [{name: _whole(v) for name, v in kept(self.average.module).items()}]

    def _load_what_is_kept(self, models: list[nn.Module], folder: str) -> None:
        if models:
            models.clear()
            fill(self.average.module, load_file(Path(folder) / _MODEL))


def load_average(out: Path) -> dict[str, Tensor]:
    """Averaged weights of a run's last checkpoint by name, on the CPU; ConfigError without one."""
    if not (found := _found(out)):
        raise ConfigError(f"init: no checkpoint at {str(out)!r}")
    return load_file(found[-1] / _AVERAGE)


def _found(out: Path) -> list[Path]:
    return sorted(out.glob("checkpoint-*"))


@torch.no_grad()
def _copy(targets: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Overwrite each target; a sharded one takes its part of a whole value."""
    for target, value in zip(targets, values, strict=True):
        if isinstance(target, DTensor) and not isinstance(value, DTensor):
            value = distribute_tensor(
                value.to(target.device, target.dtype), target.device_mesh, target.placements
            )
        target.copy_(value)


def _whole(value: Tensor) -> Tensor:
    """On the CPU, put together from all processes if it is sharded."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu().contiguous()
