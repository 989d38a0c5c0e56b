"""The low-rank difference between the published transformer and a PerCoV2 one, through peft.

Stored as peft stores it (`adapter_config.json`, `adapter_model.safetensors`): the low-rank
matrices, and the extended patch embedding in full.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import SD3Transformer2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from percov2_core.errors import UnavailableError, WeightsError
from percov2_core.weights.files import existing

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
PATCH_EMBEDDING = "pos_embed.proj"
TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
)


def add_lora(transformer: SD3Transformer2DModel, *, rank: int = 64) -> PeftModel:
    """Wrap an extended transformer so that only the low-rank part and the patch embedding train.

    Before training its output is the transformer's.

    Raises:
        UnavailableError: if peft is not installed.
    """
    peft = _peft()
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(TARGETS),
        modules_to_save=[PATCH_EMBEDDING],
    )
    wrapped: PeftModel = peft.get_peft_model(transformer, config)
    return wrapped


def is_lora(transformer: nn.Module) -> bool:
    """Whether `add_lora` made it."""
    return hasattr(transformer, "peft_config")


def save_lora(transformer: nn.Module, folder: Path) -> None:
    """Write the difference of what `add_lora` made."""
    wrapped: Any = transformer
    folder.mkdir(parents=True, exist_ok=True)
    wrapped.peft_config["default"].save_pretrained(folder)
    state = _peft().get_peft_model_state_dict(wrapped)
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(state, folder / ADAPTER_FILE, metadata={"format": "pt"})


def load_lora(transformer: SD3Transformer2DModel, folder: Path) -> PeftModel:
    """Put a saved difference around an extended transformer, strictly.

    Raises:
        WeightsError: if a parameter is missing, unknown or misshapen, or a file is damaged.
        UnavailableError: if peft is not installed.
    """
    peft = _peft()
    path = existing(folder / ADAPTER_FILE)
    existing(folder / ADAPTER_CONFIG_FILE)
    try:
        state = load_file(path)
        config = peft.LoraConfig.from_pretrained(str(folder))
        wrapped: PeftModel = peft.get_peft_model(transformer, config)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise WeightsError(f"adapter {str(folder)!r} cannot be read: {text}") from error
    _check(state, peft.get_peft_model_state_dict(wrapped), path)
    peft.set_peft_model_state_dict(wrapped, state)
    return wrapped


def merged(transformer: nn.Module, dtype: torch.dtype) -> SD3Transformer2DModel:
    """The plain, frozen transformer that computes the same; the wrapped one is used up."""
    wrapped: Any = transformer
    plain: SD3Transformer2DModel = wrapped.merge_and_unload()
    for parameter in plain.parameters():  # peft trains in float32
        parameter.data = parameter.data.to(dtype)
    return plain.requires_grad_(False)


def _check(state: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    for kind, names in (
        ("no", expected.keys() - state.keys()),
        ("unknown", state.keys() - expected.keys()),
    ):
        if names:
            raise WeightsError(f"{str(path)!r}: {kind} parameter {min(names)}")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise WeightsError(
                f"{str(path)!r}: {name} has shape {tuple(value.shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )


def _peft() -> Any:
    # Slow to load, and most models have no adapter.
    try:
        import peft
    except ImportError as error:
        raise UnavailableError("adapters need a library: run `pip install peft`") from error
    return peft
