"""Train the masked image model on token grids and their captions.

The averaged model that comes out is what `entropy.exporter` turns into the integer twin.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from percov2_core.entropy.masked_model import MaskedImageModel, MaskedModelConfig
from percov2_core.errors import ConfigError, WeightsError
from percov2_core.training.loop import LoopConfig, StepLoss, run
from percov2_core.training.token_batches import (
    Batch,
    BatchMaker,
    MaskedTraining,
    collect_vocabulary,
    load_grids,
)

__all__ = ["MaskedModelConfig", "MaskedTraining", "load_model", "save_model", "train_masked"]

EMBEDDED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "extreme": {
            "width": 160,
            "heads": 5,
            "content_layers": 1,
            "query_layers": 3,
            "hidden": 320,
        },
        "ultra-low": {
            "width": 160,
            "heads": 5,
            "content_layers": 2,
            "query_layers": 3,
            "dropout": 0.1,
        },
    }
)
MODEL_NAME = "masked.safetensors"
_FLOOR = 0.01  # share of the learning rate that is left at the end
_HELD_OUT_AT_ONCE = 8  # grids


def train_masked(
    files: Sequence[Path],
    out_dir: Path,
    *,
    config: MaskedModelConfig,
    settings: MaskedTraining,
    device: str = "cpu",
    init: Path | None = None,
    resume: bool = False,
) -> MaskedImageModel:
    """Train to the end of the budget; write losses, scores, checkpoint and the averaged model.

    Args:
        files: What `load_grids` reads. An empty vocabulary in `config` is filled from them.
        out_dir: Gets what `loop.run` writes and `masked.safetensors`.
        init: Folder of an earlier run to start from, of the same sizes; it gives the vocabulary.
        resume: Go on from the checkpoint in `out_dir`.

    Returns:
        The averaged model, in evaluation mode, on the CPU.

    Raises:
        ConfigError: if there is nothing to resume from, or the sizes differ from those of `init`.
        WeightsError: if `init` holds no model.
    """
    sets = [load_grids(path) for path in files]
    start = load_model(init / MODEL_NAME) if init else None
    if not config.vocabulary:
        words = [caption for s in sets for caption in s.captions]
        vocabulary = start.config.vocabulary if start else collect_vocabulary(words)
        config = replace(config, vocabulary=vocabulary)
    system = MaskedSystem(_fresh(config, settings.seed, start))
    batches = BatchMaker(sets, config, settings)
    run(
        system,
        batches.draw,
        out_dir,
        config=_loop_config(settings, device),
        resume=resume,
        evaluate=lambda module, step: held_out_bits(system.model, batches.held_out),
        groups=lambda module: _groups(module, settings.weight_decay),
    )
    model = system.model.cpu().eval().requires_grad_(False)
    save_model(model, out_dir / MODEL_NAME)
    return model


class MaskedSystem(nn.Module):
    """The model and its loss: mean bits per token."""

    def __init__(self, model: MaskedImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, progress: float) -> StepLoss:
        device = self.model.codes.weight.device
        bits = self.model.bits(*(t.to(device) for t in batch)).mean()
        return StepLoss(bits, {})


def held_out_bits(model: MaskedImageModel, held_out: Sequence[Batch]) -> dict[str, float]:
    """Mean bits per token on the grids held out of each file, in the order `qlds`."""
    device = model.codes.weight.device
    found = {}
    # Precisely, as the integer twin will compute.
    with torch.autocast(device.type, enabled=False):
        for i, (tokens, words, stage_map) in enumerate(held_out):
            chunks = zip(*(torch.split(t, _HELD_OUT_AT_ONCE) for t in (tokens, words)), strict=True)
            parts = [
                model.bits(t.to(device), w.to(device), stage_map.to(device)).flatten()
                for t, w in chunks
            ]
            found[f"held_out_{i}"] = round(float(torch.cat(parts).mean()), 4)
    return found


def _fresh(
    config: MaskedModelConfig, seed: int, start: MaskedImageModel | None
) -> MaskedImageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MaskedImageModel(config)
    if start is not None:
        if replace(start.config, dropout=config.dropout) != config:
            raise ConfigError(f"init: the earlier run has {start.config}, this one {config}")
        model.load_state_dict(start.state_dict(), strict=True)
    return model


def _loop_config(settings: MaskedTraining, device: str) -> LoopConfig:
    pause = 60 * settings.validate_minutes
    return LoopConfig(
        minutes=settings.minutes,
        steps=settings.steps,
        lr=settings.learning_rate,
        floor=_FLOOR,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        ema=settings.ema,
        seed=settings.seed,
        device=device,
        save_every_s=pause,
        evaluate_every_s=pause,
    )


def _groups(module: nn.Module, weight_decay: float) -> Iterable[dict[str, Any]]:
    """Matrices decay; biases, gains and the like do not."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def save_model(model: MaskedImageModel, path: Path) -> None:
    """Write weights and config to one safetensors file."""
    weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    save_file(weights, path, metadata={"config": json.dumps(asdict(model.config))})


def load_model(path: Path) -> MaskedImageModel:
    """Read what `save_model` wrote.

    Raises:
        WeightsError: if the file is absent or does not fit.
    """
    if not path.exists():
        raise WeightsError(f"masked model {path.name} is missing")
    with safe_open(path, framework="pt") as file:
        settings = json.loads(file.metadata()["config"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    settings["vocabulary"] = tuple(settings["vocabulary"])
    model = MaskedImageModel(MaskedModelConfig(**settings))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise WeightsError(f"masked model {path.name} does not fit its config: {error}") from error
    return model.eval()
