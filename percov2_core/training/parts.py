"""The modules of one rate: build them fresh, save them, load them back strictly."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from diffusers import SD3Transformer2DModel
from torch import nn

from percov2_core.caption.describer import VOCABULARY
from percov2_core.config import LATENT_CHANNELS
from percov2_core.flow.text import TextEncoder, small_text_encoder
from percov2_core.flow.transformer import FlowConfig, FlowModel
from percov2_core.hyper.decoder import HyperDecoder
from percov2_core.hyper.encoder import HyperEncoder
from percov2_core.hyper.quantizer import VectorQuantizer
from percov2_core.hyper.search import SearchConfig
from percov2_core.weights import pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of one rate's modules. Encoder widths run fine to coarse, decoder ones back."""

    encoder_widths: tuple[int, ...]
    encoder_depths: tuple[int, ...]
    decoder_widths: tuple[int, ...]
    decoder_depths: tuple[int, ...]
    noise_scale: float
    text_guidance: float
    search: SearchConfig
    code_dim: int = 16
    features: int = 16
    heads: int = 3
    head_dim: int = 64
    layers: int = 3
    text_width: int = 128
    text_layers: int = 2
    guidance_width: int = 16
    codebook_size: int = 256
    pos_embed_max: int = 32


EMBEDDED = MappingProxyType(
    {
        "extreme": Sizes(
            encoder_widths=(192,),
            encoder_depths=(6,),
            decoder_widths=(256,),
            decoder_depths=(10,),
            noise_scale=0.6,
            text_guidance=0.0,
            search=SearchConfig(rounds=5, curvature=90.0, structure=0.1, rate=1.0),
        ),
        "ultra-low": Sizes(
            encoder_widths=(96, 160, 224),
            encoder_depths=(2, 2, 2),
            decoder_widths=(256, 224, 160),
            decoder_depths=(4, 4, 4),
            noise_scale=0.85,
            text_guidance=0.25,
            search=SearchConfig(rounds=3, curvature=1000.0, rate=25.0),
        ),
    }
)


@dataclass
class RateParts:
    """What stage 1 trains."""

    encoder: HyperEncoder
    quantizer: VectorQuantizer
    decoder: HyperDecoder
    text: TextEncoder
    flow: FlowModel
    search: SearchConfig

    def modules(self) -> dict[str, nn.Module]:
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: part for name, part in named.items() if isinstance(part, nn.Module)}


def build(sizes: Sizes) -> RateParts:
    """Fresh modules."""
    text = small_text_encoder(VOCABULARY, width=sizes.text_width, layers=sizes.text_layers)
    transformer = SD3Transformer2DModel(
        sample_size=64,
        patch_size=2,
        in_channels=2 * LATENT_CHANNELS + sizes.features,
        num_layers=sizes.layers,
        attention_head_dim=sizes.head_dim,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.text_width,
        caption_projection_dim=sizes.heads * sizes.head_dim,
        pooled_projection_dim=sizes.text_width + sizes.guidance_width,
        out_channels=LATENT_CHANNELS,
        pos_embed_max_size=sizes.pos_embed_max,
        qk_norm="rms_norm",
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    flow = FlowConfig(
        start="codes",
        noise_scale=sizes.noise_scale,
        guidance_width=sizes.guidance_width,
        text_guidance=sizes.text_guidance,
    )
    return RateParts(
        HyperEncoder(LATENT_CHANNELS, sizes.encoder_widths, sizes.encoder_depths, sizes.code_dim),
        VectorQuantizer(sizes.codebook_size, sizes.code_dim),
        HyperDecoder(
            LATENT_CHANNELS,
            sizes.features,
            sizes.decoder_widths,
            sizes.decoder_depths,
            sizes.code_dim,
            sizes.guidance_width,
        ),
        text,
        FlowModel(transformer, flow),
        sizes.search,
    )


def save(parts: RateParts, folder: Path) -> None:
    """Write every module in half precision, in the layout that `weights.load_rate` reads."""
    parts.encoder.half().save_pretrained(folder / "hyper_encoder")
    parts.quantizer.save_pretrained(folder / "quantizer")
    parts.decoder.half().save_pretrained(folder / "hyper_decoder")
    parts.flow.transformer.half().save_pretrained(folder / "transformer")
    parts.text.model.half().save_pretrained(folder / "text_encoder")
    parts.text.tokenizer.save_pretrained(folder / "tokenizer")
    for name in ("hyper_encoder", "hyper_decoder", "transformer", "text_encoder"):
        pack(folder / name)
    flow = json.dumps(dataclasses.asdict(parts.flow.config), indent=2)
    (folder / "flow.json").write_text(flow + "\n")
    search = json.dumps(dataclasses.asdict(parts.search), indent=2)
    (folder / "search.json").write_text(search + "\n")
