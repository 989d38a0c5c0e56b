"""Find, check and load models. `load_codec()` is what everybody calls.

A model folder holds

    model.json                      name, format, presets
    vae/                            diffusers autoencoder, 16 channels at 1/8
    caption_language.npz            n-gram tables of the caption coder
    RATE/hyper_encoder/  RATE/quantizer/  RATE/hyper_decoder/  RATE/transformer/
    RATE/text_encoder/   RATE/tokenizer/  RATE/flow.json  RATE/search.json
    RATE/entropy.safetensors        fixed-point twin of the masked image model

for each RATE of `config.RATES`. Every file is loaded strictly: a missing, unknown or misshapen
parameter is an error, never a silent random number. Weights are stored in half precision, or as
8-bit integers with one scale per output (`pack`); they are computed with in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from percov2_core.caption.captioner import get_captioner
from percov2_core.caption.language import load_language
from percov2_core.codec import PerCoV2, Preset, RateModules
from percov2_core.config import MODES, PRESETS, RATES
from percov2_core.entropy.exact import ExactModel
from percov2_core.entropy.prior import TokenPrior
from percov2_core.errors import PerCoError, WeightsError
from percov2_core.flow.text import TextEncoder
from percov2_core.flow.transformer import FlowConfig, FlowModel
from percov2_core.hyper.decoder import HyperDecoder
from percov2_core.hyper.encoder import HyperEncoder
from percov2_core.hyper.quantizer import VectorQuantizer
from percov2_core.hyper.search import SearchConfig
from percov2_core.latent.autoencoder import LatentAutoencoder

FORMAT = 1
EMBEDDED_DIR = Path(__file__).parents[1] / "assets" / "models" / "embedded"
LANGUAGE_FILE = "caption_language.npz"
ENTROPY_FILE = "entropy.safetensors"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS_FILE = "model.safetensors"

PACKED_FROM = 4096  # numbers in a matrix from which it is stored in 8 bits
SCALE_SUFFIX = ".per_row_scale"
_WEIGHTS_FILES = (WEIGHTS_FILE, TEXT_WEIGHTS_FILE)

_Part = TypeVar("_Part", bound=nn.Module)


def load_codec(name: str | Path = "embedded", *, device: str | None = None) -> PerCoV2:
    """Load a model once and keep it on its device.

    Args:
        name: "embedded", or a folder of the layout above.
        device: A torch device; None takes a GPU if there is one.

    Raises:
        WeightsError: if a file is missing, unknown, damaged or of another version.
    """
    folder = EMBEDDED_DIR if str(name) == "embedded" else Path(name)
    about = _read_json(folder / "model.json")
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
        language=load_language(_existing(folder / LANGUAGE_FILE)),
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
        data = _existing(folder / name).read_bytes()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def _load_rate(folder: Path, device: torch.device) -> RateModules:
    transformer = load_part(SD3Transformer2DModel, folder / "transformer", device)
    try:
        prior = TokenPrior(ExactModel.load(_existing(folder / ENTROPY_FILE), device=str(device)))
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{str(folder / ENTROPY_FILE)!r}: {error}") from error
    return RateModules(
        encoder=load_part(HyperEncoder, folder / "hyper_encoder", device),
        quantizer=load_part(VectorQuantizer, folder / "quantizer", device),
        prior=prior,
        decoder=load_part(HyperDecoder, folder / "hyper_decoder", device),
        text=_load_text(folder, device),
        search=SearchConfig(**_read_json(folder / "search.json")),
        flow=FlowModel(transformer, FlowConfig(**_read_json(folder / "flow.json"))).eval(),
    )


def load_part(kind: type[_Part], folder: Path, device: torch.device) -> _Part:
    """A diffusers module from its `config.json` and its weights, strictly, in float32."""
    config = _read_json(folder / "config.json")
    part: _Part = kind.from_config(config)  # type: ignore[attr-defined]
    return _fill(part, folder / WEIGHTS_FILE).to(device)


def _load_text(folder: Path, device: torch.device) -> TextEncoder:
    config = CLIPTextConfig(**_read_json(folder / "text_encoder" / "config.json"))
    model = _fill(CLIPTextModelWithProjection(config), folder / "text_encoder" / TEXT_WEIGHTS_FILE)
    _existing(folder / "tokenizer" / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    return TextEncoder(model.to(device), tokenizer)


def _fill(part: _Part, weights: Path) -> _Part:
    """Load every parameter, strictly, in float32."""
    try:
        part.load_state_dict(unpack(load_file(_existing(weights))), strict=True)
    except PerCoError:
        raise
    except Exception as error:  # safetensors and torch each raise their own kinds
        text = " ".join(str(error).split())
        message = f"{str(weights)!r} does not fit {type(part).__name__}: {text}"
        raise WeightsError(message) from error
    return part.float().eval().requires_grad_(False)


def pack(folder: Path) -> None:
    """Store the large matrices of a saved part as 8-bit integers: half the size of halves."""
    path = next(folder / name for name in _WEIGHTS_FILES if (folder / name).is_file())
    packed: dict[str, Tensor] = {}
    for name, value in load_file(path).items():
        if value.ndim < 2 or value.numel() < PACKED_FROM:
            packed[name] = value
            continue
        rows = value.float().flatten(1)
        scale = (rows.abs().amax(dim=1) / 127).clamp_min(1e-12)  # (rows,)
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(value.shape)
        packed[name + SCALE_SUFFIX] = scale
    save_file(packed, path, metadata={"format": "pt"})


def unpack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `pack`: every 8-bit matrix times its scales."""
    scales = {k.removesuffix(SCALE_SUFFIX): state.pop(k) for k in list(state) if SCALE_SUFFIX in k}
    for name, scale in scales.items():
        value = state[name].float()
        state[name] = (value.flatten(1) * scale[:, None]).reshape(value.shape)
    return state


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise WeightsError(f"weights: no file at {str(path)!r}")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_existing(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{str(path)!r}: expected an object, got {type(value).__name__}")
    return value


def _presets(about: Mapping[str, Any]) -> dict[str, dict[str, Preset]]:
    """Named steps and guidance per mode, checked to be complete."""
    found = about.get("presets", {})
    missing = [f"{m}/{p}" for m in MODES for p in PRESETS if p not in found.get(m, {})]
    if missing:
        raise WeightsError(f"model.json: presets lack {', '.join(missing)}")
    return {mode: {p: _preset(found[mode][p]) for p in PRESETS} for mode in MODES}


def _preset(values: Mapping[str, Any]) -> Preset:
    return Preset(int(values["steps"]), float(values["guidance"]))
