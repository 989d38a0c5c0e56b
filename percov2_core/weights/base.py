"""The frozen Stable Diffusion 3 under a PerCoV2 model: a diffusers folder -> loaded parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from percov2_core.caption.describer import VOCABULARY
from percov2_core.errors import WeightsError
from percov2_core.flow.sd3_text import SD3TextEncoder, Tower
from percov2_core.flow.text import word_tokenizer
from percov2_core.latent import LatentAutoencoder
from percov2_core.weights import sizes
from percov2_core.weights.files import TEXT_WEIGHTS_FILE, WEIGHTS_FILE, existing, read_json
from percov2_core.weights.residency import Residency
from percov2_core.weights.shards import load_large
from percov2_core.weights.sizes import BaseModel, Settings

INDEX_FILE = "model_index.json"
_TEXT_KINDS: dict[str, tuple[Any, Any]] = {
    "clip": (CLIPTextModelWithProjection, CLIPTextConfig),
    "t5": (T5EncoderModel, T5Config),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SD3Base:
    """What all rates share, frozen.

    Attributes:
        name: Key into `sizes.BASES`.
        vae: 16 channels at 1/8.
        transformer: As published: 16 input channels. None where every rate brings its own.
        text: The text encoders.
        shift: Of the flow's time, towards its noisy end.
    """

    name: str
    vae: LatentAutoencoder
    transformer: SD3Transformer2DModel | None
    text: SD3TextEncoder
    shift: float


def load_base(
    folder: Path,
    *,
    name: str = "sd3-medium",
    residency: Residency | None = None,
    transformer: bool = True,
    t5_tokens: int = sizes.T5_TOKENS,
) -> SD3Base:
    """Load a folder in diffusers' layout of Stable Diffusion 3, strictly.

    Args:
        transformer: False where every rate brings a full transformer of its own.
        t5_tokens: Tokens of the third text encoder, 0 to leave it out.

    Raises:
        WeightsError: if a file is missing or damaged, or a parameter does not fit.
    """
    home = residency or Residency.from_environment()
    if not (folder / INDEX_FILE).is_file():
        raise WeightsError(f"base {name!r}: no {INDEX_FILE} in folder {str(folder)!r}")
    t5 = t5_tokens if home.t5 else 0
    return SD3Base(
        name=name,
        vae=LatentAutoencoder(_diffusers_part(AutoencoderKL, folder / "vae", home)),
        transformer=load_transformer(folder / "transformer", home) if transformer else None,
        text=load_text(folder, home, t5_tokens=t5),
        shift=load_shift(folder),
    )


def load_shift(folder: Path) -> float:
    """The shift of the flow's time of a base folder."""
    return float(read_json(folder / "scheduler" / "scheduler_config.json").get("shift", 1.0))


def load_transformer(folder: Path, residency: Residency) -> SD3Transformer2DModel:
    """A transformer folder, in the precision and on the device of `residency`."""
    return _diffusers_part(SD3Transformer2DModel, folder, residency)


def load_text(folder: Path, residency: Residency, *, t5_tokens: int) -> SD3TextEncoder:
    """The text encoders of a base folder; `t5_tokens` is 0 to leave T5 out."""
    clip_l, clip_g = (_text_tower("clip", folder, suffix, residency) for suffix in ("", "_2"))
    t5 = _text_tower("t5", folder, "_3", residency, length=t5_tokens) if t5_tokens else None
    width = int(read_json(folder / "transformer" / "config.json")["joint_attention_dim"])
    return SD3TextEncoder(clip_l, clip_g, t5, width=width, device=residency.target)


def random_base(
    model: BaseModel, *, residency: Residency, t5_tokens: int = sizes.T5_TOKENS
) -> SD3Base:
    """The published sizes with random weights, for measuring: speed and memory are the same.

    Captions become the numbers of a small vocabulary: the real tokenizers cannot be had here.
    """
    clip_l, clip_g = (
        _random_tower("clip", settings, residency, length=sizes.CLIP_TOKENS)
        for settings in (model.clip_l, model.clip_g)
    )
    t5 = None
    if t5_tokens and residency.t5:
        t5 = _random_tower("t5", model.t5, residency, length=t5_tokens)
    width = model.transformer["joint_attention_dim"]
    return SD3Base(
        name=model.name,
        vae=LatentAutoencoder(_random(lambda: AutoencoderKL(**model.vae), residency)),
        transformer=_random(lambda: SD3Transformer2DModel(**model.transformer), residency),
        text=SD3TextEncoder(clip_l, clip_g, t5, width=width, device=residency.target),
        shift=sizes.SHIFT,
    )


def _diffusers_part(kind: Any, folder: Path, residency: Residency) -> Any:
    config = read_json(folder / "config.json")
    stem = WEIGHTS_FILE.removesuffix(".safetensors")
    return load_large(
        lambda: kind.from_config(config),
        folder,
        stem,
        device=residency.target,
        dtype=residency.precision,
    )


def _text_tower(
    part: str, folder: Path, suffix: str, residency: Residency, *, length: int | None = None
) -> Tower:
    kind, config_kind = _TEXT_KINDS[part]
    place = folder / f"text_encoder{suffix}"
    config = config_kind.from_dict(read_json(place / "config.json"))
    model = load_large(
        lambda: kind(config),
        place,
        TEXT_WEIGHTS_FILE.removesuffix(".safetensors"),
        device=residency.rest(part),
        dtype=residency.precision,
    )
    length = length or int(config.max_position_embeddings)
    return Tower(model, _tokenizer(folder / f"tokenizer{suffix}"), length)


def _tokenizer(folder: Path) -> Any:
    existing(folder / "tokenizer_config.json")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        raise WeightsError(f"tokenizer {str(folder)!r} cannot be read: {text}") from error


def _random(build: Callable[[], nn.Module], residency: Residency) -> Any:
    default = torch.get_default_dtype()
    torch.set_default_dtype(residency.precision)
    try:
        with residency.target:
            part = build()
    finally:
        torch.set_default_dtype(default)
    return part.eval().requires_grad_(False)


def _random_tower(part: str, settings: Settings, residency: Residency, *, length: int) -> Tower:
    kind, config_kind = _TEXT_KINDS[part]
    model = _random(lambda: kind(config_kind(**settings)), residency).to(residency.rest(part))
    return Tower(model, word_tokenizer(VOCABULARY, length), length)
