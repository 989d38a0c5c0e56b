"""A model folder -> the codec. `load_codec()` is what everybody calls."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from percov2_core.caption.captioner import get_captioner
from percov2_core.caption.language import load_language
from percov2_core.codec import PerCoV2, Preset, RateModules
from percov2_core.config import MODES, PRESETS, RATES
from percov2_core.entropy.exact import ExactModel
from percov2_core.entropy.prior import TokenPrior
from percov2_core.errors import WeightsError
from percov2_core.flow.text import TextEncoder
from percov2_core.flow.transformer import FlowConfig, FlowModel
from percov2_core.hyper.decoder import HyperDecoder
from percov2_core.hyper.encoder import HyperEncoder
from percov2_core.hyper.quantizer import VectorQuantizer
from percov2_core.hyper.search import SearchConfig
from percov2_core.latent.autoencoder import LatentAutoencoder
from percov2_core.weights.files import (
    TEXT_WEIGHTS_FILE,
    WEIGHTS_FILE,
    existing,
    fill,
    load_part,
    read_json,
)

FORMAT = 1
EMBEDDED_DIR = Path(__file__).parents[2] / "assets" / "models" / "embedded"
LANGUAGE_FILE = "caption_language.npz"
ENTROPY_FILE = "entropy.safetensors"


def load_codec(name: str | Path = "embedded", *, device: str | None = None) -> PerCoV2:
    """Load a model once and keep it on its device.

    Args:
        name: "embedded", or a folder of the layout above.
        device: A torch device; None takes a GPU if there is one.

    Raises:
        WeightsError: if a file is missing, unknown, damaged or of another version.
    """
    folder = EMBEDDED_DIR if str(name) == "embedded" else Path(name)
    about = read_json(folder / "model.json")
    if about.get("format") != FORMAT:
        raise WeightsError(
            f"model {str(folder)!r}: format {about.get('format')!r}, this build reads {FORMAT}"
        )
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    vae = LatentAutoencoder(load_part(AutoencoderDC, folder / "vae", target))
    rates = {rate: _load_rate(folder / rate, target) for rate in RATES}
    return PerCoV2(
        name=str(about["name"]),
        digest=model_digest(folder),
        vae=vae,
        rates=rates,
        language=load_language(existing(folder / LANGUAGE_FILE)),
        captioners=partial(get_captioner, device=str(target)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=float(about.get("shift", 1.0))),
        presets=_presets(about),
    )


def model_digest(folder: Path) -> bytes:
    """SHA-256 over what gives a file its meaning: caption tables, codebooks, entropy models.

    The decoder's other weights may improve without making old files unreadable.
    """
    digest = hashlib.sha256()
    per_rate = (ENTROPY_FILE, f"quantizer/{WEIGHTS_FILE}")
    for name in (LANGUAGE_FILE, *(f"{rate}/{part}" for rate in RATES for part in per_rate)):
        data = existing(folder / name).read_bytes()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def _load_rate(folder: Path, device: torch.device) -> RateModules:
    transformer = load_part(SD3Transformer2DModel, folder / "transformer", device)
    try:
        prior = TokenPrior(ExactModel.load(existing(folder / ENTROPY_FILE), device=str(device)))
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{str(folder / ENTROPY_FILE)!r}: {error}") from error
    return RateModules(
        encoder=load_part(HyperEncoder, folder / "hyper_encoder", device),
        quantizer=load_part(VectorQuantizer, folder / "quantizer", device),
        prior=prior,
        decoder=load_part(HyperDecoder, folder / "hyper_decoder", device),
        text=_load_text(folder, device),
        search=SearchConfig(**read_json(folder / "search.json")),
        flow=FlowModel(transformer, FlowConfig(**read_json(folder / "flow.json"))).eval(),
    )


def _load_text(folder: Path, device: torch.device) -> TextEncoder:
    config = CLIPTextConfig(**read_json(folder / "text_encoder" / "config.json"))
    model = fill(CLIPTextModelWithProjection(config), folder / "text_encoder" / TEXT_WEIGHTS_FILE)
    existing(folder / "tokenizer" / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    return TextEncoder(model.to(device), tokenizer)


def _presets(about: Mapping[str, Any]) -> dict[str, dict[str, Preset]]:
    """Named steps and guidance per mode, checked to be complete."""
    found = about.get("presets", {})
    missing = [f"{m}/{p}" for m in MODES for p in PRESETS if p not in found.get(m, {})]
    if missing:
        raise WeightsError(f"model.json: presets lack {', '.join(missing)}")
    return {mode: {p: _preset(found[mode][p]) for p in PRESETS} for mode in MODES}


def _preset(values: Mapping[str, Any]) -> Preset:
    return Preset(int(values["steps"]), float(values["guidance"]))
