"""Untrained PerCoV2 modules over Stable Diffusion 3: where training starts, what bench measures.

The flow starts as the published model's: the new input channels weigh nothing. Tokens mean
nothing yet, and the entropy model gives every token the same probability.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from percov2_core.caption.language import load_language
from percov2_core.codec import PerCoV2, RateModules
from percov2_core.config import MODES, PRESETS, Preset
from percov2_core.entropy.exact import ExactModel
from percov2_core.entropy.prior import TokenPrior
from percov2_core.flow.transformer import extend_patch_embedding
from percov2_core.weights import rates
from percov2_core.weights.about import ENTROPY_FILE, LANGUAGE_FILE, About, write_about
from percov2_core.weights.base import load_shift, load_text, load_transformer, random_base
from percov2_core.weights.checkpoint import assemble
from percov2_core.weights.lora import add_lora
from percov2_core.weights.places import EMBEDDED_DIR
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import SD3, T5_TOKENS, BaseModel, Sizes

_PRESETS = {"faithful": Preset(4, 1.0), "balanced": Preset(20, 3.0), "vivid": Preset(20, 5.0)}


def write_fresh_checkpoint(
    folder: Path,
    base: Path,
    *,
    base_name: str = "sd3-medium",
    lora_rank: int = 64,
    t5_tokens: int = T5_TOKENS,
    sizes: Mapping[str, Sizes] = SD3,
    residency: Residency | None = None,
    seed: int = 0,
) -> Path:
    """Write an untrained checkpoint over a base folder, to be trained in place.

    Args:
        base: Folder of the base in diffusers' layout.
        lora_rank: Rank of the transformer's difference; 0 writes a full transformer per rate.
        t5_tokens: Tokens of the third text encoder, 0 to do without it.

    Raises:
        WeightsError: if the base is incomplete.
        UnavailableError: if `lora_rank` is not 0 and peft is not installed.
    """
    home = residency or Residency(device="cpu")
    text = load_text(base, home, t5_tokens=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for rate, size in sizes.items():
            transformer = load_transformer(base / "transformer", home)
            wanted = _difference(transformer, size.features, lora_rank)
            modules = rates.build(size, transformer=wanted, text=text)
            rates.save(modules, folder / rate, packed=False)
            modules.prior.model.save(folder / rate / ENTROPY_FILE)
    shutil.copyfile(EMBEDDED_DIR / LANGUAGE_FILE, folder / LANGUAGE_FILE)
    write_about(_about(base_name, load_shift(base), t5_tokens), folder)
    return folder


def random_codec(
    model: BaseModel, *, residency: Residency | None = None, t5_tokens: int = T5_TOKENS
) -> PerCoV2:
    """A codec of the published size on random weights, for measuring speed and memory.

    Both rates share one transformer.
    """
    home = residency or Residency.from_environment()
    base = random_base(model, residency=home, t5_tokens=t5_tokens)
    (features,) = {size.features for size in model.rates.values()}
    assert base.transformer is not None
    transformer = extend_patch_embedding(base.transformer, features)
    modules = {
        rate: _on(rates.build(size, transformer=transformer, text=base.text), home)
        for rate, size in model.rates.items()
    }
    return assemble(
        _about(model.name, base.shift, t5_tokens),
        digest=bytes(32),
        vae=base.vae,
        rates=modules,
        language=load_language(EMBEDDED_DIR / LANGUAGE_FILE),
        home=home,
    )


def _on(modules: RateModules, home: Residency) -> RateModules:
    device, twin = home.target, modules.prior.model
    return replace(
        modules,
        encoder=modules.encoder.to(device).eval(),
        quantizer=modules.quantizer.to(device),
        decoder=modules.decoder.to(device).eval(),
        flow=modules.flow.eval(),
        prior=TokenPrior(ExactModel(twin.config, twin.tables, device=str(device))),
    )


def _about(base_name: str, shift: float, t5_tokens: int) -> About:
    return About(
        name=f"percov2-{base_name}",
        presets={mode: {name: _PRESETS[name] for name in PRESETS} for mode in MODES},
        shift=shift,
        base=base_name,
        t5_tokens=t5_tokens,
        captioner="auto",
    )


def _difference(transformer: SD3Transformer2DModel, features: int, rank: int) -> nn.Module:
    extended = extend_patch_embedding(transformer, features)
    return add_lora(extended, rank=rank) if rank else extended
