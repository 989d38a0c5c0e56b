"""Untrained models over Stable Diffusion 3: where training starts, and what bench measures.

The flow starts as the published model's: the new input channels weigh nothing. Tokens mean
nothing yet, and the entropy model gives every token the same probability.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel
from transformers.modeling_utils import local_torch_dtype

from percov2_core.caption.describer import VOCABULARY
from percov2_core.caption.language import load_language
from percov2_core.codec import PerCoV2
from percov2_core.config import MODES, PRESETS, Preset
from percov2_core.flow.text import word_tokenizer
from percov2_core.flow.transformer import extend_patch_embedding
from percov2_core.latent import LatentAutoencoder
from percov2_core.repaint import Repainter
from percov2_core.searching import LevelModules
from percov2_core.weights import parts
from percov2_core.weights.base import (
    SD3Base,
    SD3TextEncoder,
    load_shift,
    load_text,
    repainter,
    scheduled,
    settled,
)
from percov2_core.weights.files import ENTROPY_FILE, LANGUAGE_FILE, PAINTER_DIR, About, write_about
from percov2_core.weights.find import EMBEDDED_DIR
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import CLIP_TOKENS, SD3, SHIFT, T5_TOKENS, BaseModel, Sizes

_PRESETS = {"faithful": Preset(4, 1.0), "balanced": Preset(20, 3.0), "vivid": Preset(20, 5.0)}


def write_fresh_checkpoint(
    folder: Path,
    base: Path,
    *,
    base_name: str = "sd3-medium",
    lora_rank: int = 64,
    t5_tokens: int = T5_TOKENS,
    sizes: Sizes = SD3,
) -> Path:
    """Write an untrained checkpoint over the folder of a `base`, to be trained in place.
    `lora_rank` is that of the transformer's difference, 0 writes a full transformer; 0 `t5_tokens`
    do without the third text encoder. WeightsError if the base is incomplete; UnavailableError if
    `lora_rank` is not 0 and peft is not installed."""
    home = Residency(device="cpu")
    text = load_text(base, home, t5_tokens=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = parts.load_transformer(base / "transformer", home)
        wide = extend_patch_embedding(plain, sizes.features)
        transformer = parts.add_lora(wide, rank=lora_rank) if lora_rank else wide
        levels, painter = parts.build(sizes, transformer=transformer, text=text)
        parts.save_painter(painter, folder / PAINTER_DIR, packed=False)
        for name, modules in levels.items():
            parts.save_level(modules, folder / name, packed=False)
            modules.prior.model.save(folder / name / ENTROPY_FILE)
    shutil.copyfile(EMBEDDED_DIR / LANGUAGE_FILE, folder / LANGUAGE_FILE)
    write_about(_about(base_name, load_shift(base), t5_tokens), folder)
    return folder


def random_codec(model: BaseModel, *, residency: Residency, t5_tokens: int) -> PerCoV2:
    """A codec of the published size on random weights: speed and memory are the same. Captions
    become the numbers of a small vocabulary: the real tokenizers cannot be had here."""
    text = _random_text(model, residency, t5_tokens if residency.t5 else 0)
    plain = _random(residency, SD3Transformer2DModel, **model.transformer)
    transformer = extend_patch_embedding(plain, model.sizes.features)
    levels, painter = parts.build(model.sizes, transformer=transformer, text=text)
    decoder = painter.decoder.to(residency.target).eval()
    return parts.assemble(
        _about(model.name, SHIFT, t5_tokens),
        digest=bytes(32),
        vae=LatentAutoencoder(_random(residency, AutoencoderKL, **model.vae)),
        levels={name: _on(modules, residency) for name, modules in levels.items()},
        painter=replace(painter, decoder=decoder, flow=painter.flow.eval()),
        language=load_language(EMBEDDED_DIR / LANGUAGE_FILE),
        times=partial(scheduled, FlowMatchEulerDiscreteScheduler(shift=SHIFT)),
        home=residency,
    )


def random_repainter(model: BaseModel, *, residency: Residency) -> Repainter:
    """The second painter of the published size on random weights, as `random_codec`."""
    base = SD3Base(
        LatentAutoencoder(_random(residency, AutoencoderKL, **model.vae)),
        _random_text(model, residency, T5_TOKENS if residency.t5 else 0),
        partial(scheduled, FlowMatchEulerDiscreteScheduler(shift=SHIFT)),
    )
    transformer = _random(residency, SD3Transformer2DModel, **model.transformer)
    return repainter(model.name, base, transformer)


def _random(home: Residency, kind: Any, *config: Any, **settings: Any) -> Any:
    """A network made where and in the precision in which it runs."""
    with home.target, local_torch_dtype(home.precision):
        return kind(*config, **settings).eval().requires_grad_(False)


def _random_text(model: BaseModel, home: Residency, t5_tokens: int) -> SD3TextEncoder:
    configs = (CLIPTextConfig(**settings) for settings in (model.clip_l, model.clip_g))
    models = [_random(home, CLIPTextModelWithProjection, config) for config in configs]
    if t5_tokens:
        models.append(_random(home, T5EncoderModel, T5Config(**model.t5)))
    return SD3TextEncoder(
        [settled(model, home) for model in models],
        [word_tokenizer(VOCABULARY, CLIP_TOKENS)] * len(models),
        width=model.transformer["joint_attention_dim"],
        t5_tokens=t5_tokens,
        device=home.target,
    )


def _on(modules: LevelModules, home: Residency) -> LevelModules:
    encoder, quantizer = (part.to(home.target) for part in (modules.encoder, modules.quantizer))
    return replace(modules, encoder=encoder.eval(), quantizer=quantizer)


def _about(base_name: str, shift: float, t5_tokens: int) -> About:
    return About(
        name=f"percov2-{base_name}",
        presets={mode: {name: _PRESETS[name] for name in PRESETS} for mode in MODES},
        shift=shift,
        base=base_name,
        t5_tokens=t5_tokens,
        captioner="auto",
    )
