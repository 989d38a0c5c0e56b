"""The modules of one rate: from and to the folder RATE/ of a model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from percov2_core.codec import RateModules
from percov2_core.entropy.exact import ExactModel
from percov2_core.entropy.prior import TokenPrior
from percov2_core.errors import WeightsError
from percov2_core.flow.extension import extend_patch_embedding
from percov2_core.flow.text import TextEmbedder, TextEncoder
from percov2_core.flow.transformer import FlowConfig, FlowModel
from percov2_core.hyper.decoder import HyperDecoder
from percov2_core.hyper.encoder import HyperEncoder
from percov2_core.hyper.quantizer import VectorQuantizer
from percov2_core.hyper.search import SearchConfig
from percov2_core.weights.about import ENTROPY_FILE
from percov2_core.weights.base import load_transformer
from percov2_core.weights.files import (
    TEXT_WEIGHTS_FILE,
    existing,
    fill,
    load_part,
    read_json,
    read_settings,
    write_json,
)
from percov2_core.weights.lora import is_lora, load_lora, merged, save_lora
from percov2_core.weights.residency import Residency


def load_own_rate(folder: Path, home: Residency) -> RateModules:
    """A rate that brings everything, as in the embedded model.

    Raises:
        WeightsError: if a file is missing or damaged, or a parameter does not fit.
    """
    transformer = load_part(SD3Transformer2DModel, folder / "transformer", home.target)
    return _modules(folder, home, transformer, _load_text(folder, home.target))


def load_sd3_rate(
    folder: Path, base: Path, text: TextEmbedder, home: Residency, *, merge: bool = True
) -> RateModules:
    """A rate over Stable Diffusion 3.

    Args:
        folder: RATE/ of the checkpoint.
        base: Folder of the base; its transformer is read where the checkpoint is a difference.
        merge: Fold a low-rank difference into the weights; False keeps it apart, for training.

    Raises:
        WeightsError: if a file is missing or damaged, or a parameter does not fit.
        UnavailableError: if the checkpoint needs peft and it is not installed.
    """
    if not (folder / "lora").is_dir():
        return _modules(folder, home, load_transformer(folder / "transformer", home), text)
    features = int(read_json(folder / "hyper_decoder" / "config.json")["feature_channels"])
    plain = extend_patch_embedding(load_transformer(base / "transformer", home), features)
    wrapped = load_lora(plain, folder / "lora")
    if not merge:
        return _modules(folder, home, wrapped, text)
    return _modules(folder, home, merged(wrapped, home.precision), text)


def save_sd3_rate(modules: RateModules, folder: Path) -> None:
    """Write a rate over Stable Diffusion 3 in the precision that it has.

    The transformer is written in full, or as its low-rank difference if `lora.add_lora` made it.
    """
    modules.encoder.save_pretrained(folder / "hyper_encoder")
    modules.quantizer.save_pretrained(folder / "quantizer")
    modules.decoder.save_pretrained(folder / "hyper_decoder")
    if is_lora(modules.flow.transformer):
        save_lora(modules.flow.transformer, folder / "lora")
    else:
        modules.flow.transformer.save_pretrained(folder / "transformer")
    modules.prior.model.save(folder / ENTROPY_FILE)
    write_json(folder / "flow.json", asdict(modules.flow.config))
    write_json(folder / "search.json", asdict(modules.search))


def _modules(
    folder: Path, home: Residency, transformer: nn.Module, text: TextEmbedder
) -> RateModules:
    device = home.target
    try:
        prior = TokenPrior(ExactModel.load(existing(folder / ENTROPY_FILE), device=str(device)))
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{str(folder / ENTROPY_FILE)!r}: {error}") from error
    return RateModules(
        encoder=load_part(HyperEncoder, folder / "hyper_encoder", device),
        quantizer=load_part(VectorQuantizer, folder / "quantizer", device),
        prior=prior,
        decoder=load_part(HyperDecoder, folder / "hyper_decoder", device),
        text=text,
        search=read_settings(SearchConfig, folder / "search.json"),
        flow=FlowModel(transformer, read_settings(FlowConfig, folder / "flow.json")).eval(),
    )


def _load_text(folder: Path, device: torch.device) -> TextEncoder:
    config = CLIPTextConfig(**read_json(folder / "text_encoder" / "config.json"))
    model = fill(CLIPTextModelWithProjection(config), folder / "text_encoder" / TEXT_WEIGHTS_FILE)
    existing(folder / "tokenizer" / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    return TextEncoder(model.to(device), tokenizer)
