"""Sizes of our modules, by model and rate, and of Stable Diffusion 3 as published.

Its settings are those of the repositories' own `config.json`; they build models of the real size
where no weights can be had (bench, memory, parameter counts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from percov2_core.errors import ConfigError
from percov2_core.hyper.search import SearchConfig

CLIP_TOKENS = 77
T5_TOKENS = 256


Settings: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """One rate. Encoder widths run fine to coarse, decoder ones back.

    `heads`, `head_dim`, `layers` and `pos_embed_max` are those of a transformer of one's own,
    `text_width` and `text_layers` of the text encoder beside it: a rate over Stable Diffusion 3
    takes both from its base. `start`, `noise_scale`, `text_guidance` and `tile` are explained at
    `FlowConfig`.
    """

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
    start: str = "codes"
    tile: int = 64


EMBEDDED: Mapping[str, Sizes] = MappingProxyType(
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


def _over_sd3(
    widths: tuple[int, ...], depths: tuple[int, ...], code_dim: int = 16, features: int = 32
) -> Sizes:
    """The paper's flow from pure noise; the tile is what the base was trained on, 1024 px."""
    return Sizes(
        encoder_widths=widths,
        encoder_depths=depths,
        decoder_widths=widths[::-1],
        decoder_depths=depths[::-1],
        code_dim=code_dim,
        features=features,
        start="noise",
        noise_scale=1.0,
        text_guidance=1.0,
        guidance_width=0,
        tile=128,
        search=SearchConfig(rounds=0),
    )


SD3: Mapping[str, Sizes] = MappingProxyType(
    {
        "ultra-low": _over_sd3((192, 256, 320), (2, 3, 3)),
        "extreme": _over_sd3((320,), (6,)),
    }
)
TRANSFORMER: Settings = MappingProxyType(
    {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    }
)
VAE: Settings = MappingProxyType(
    {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "act_fn": "silu",
        "latent_channels": 16,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
)
_CLIP = {"vocab_size": 49408, "max_position_embeddings": CLIP_TOKENS, "bos_token_id": 0}
_CLIP |= {"eos_token_id": 2, "pad_token_id": 1}
CLIP_L: Settings = MappingProxyType(
    {
        **_CLIP,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    }
)
CLIP_G: Settings = MappingProxyType(
    {
        **_CLIP,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    }
)
T5_XXL: Settings = MappingProxyType(
    {
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu",
    }
)
SHIFT = 3.0  # of the flow's time, towards its noisy end


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """One model of the family: settings of its parts, and of ours over it.

    Attributes:
        name: What `load_codec` and `model.json` call it.
        repository: Its diffusers layout on the Hub; gated.
        rates: Sizes of our modules.
    """

    name: str
    repository: str
    transformer: Settings
    vae: Settings
    clip_l: Settings
    clip_g: Settings
    t5: Settings
    rates: Mapping[str, Sizes]


def _medium(name: str, repository: str, **changes: Any) -> BaseModel:
    return BaseModel(
        name=name,
        repository=repository,
        transformer=MappingProxyType({**TRANSFORMER, **changes}),
        vae=VAE,
        clip_l=CLIP_L,
        clip_g=CLIP_G,
        t5=T5_XXL,
        rates=SD3,
    )


BASES = MappingProxyType(
    {
        base.name: base
        for base in (
            _medium("sd3-medium", "stabilityai/stable-diffusion-3-medium-diffusers"),
            _medium(
                "sd3.5-medium",
                "stabilityai/stable-diffusion-3.5-medium",
                pos_embed_max_size=384,
                qk_norm="rms_norm",
                dual_attention_layers=tuple(range(13)),
            ),
        )
    }
)


def _tiny_clip(settings: Settings, width: int) -> Settings:
    small = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    return {**settings, **small, "num_hidden_layers": 2, "num_attention_heads": 2}


# The same parts at toy size: what runs through them in a test runs through the real ones.
TINY = BaseModel(
    name="tiny-random",
    repository="",
    transformer={
        **TRANSFORMER,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 96,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 24 + 40,
        "pos_embed_max_size": 64,
    },
    vae={
        **VAE,
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 256,
    },
    clip_l=_tiny_clip(CLIP_L, 24),
    clip_g=_tiny_clip(CLIP_G, 40),
    t5={**T5_XXL, "d_model": 96, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    rates={
        "ultra-low": _over_sd3((8, 8, 8), (1, 1, 1), code_dim=4, features=4),
        "extreme": _over_sd3((8,), (1,), code_dim=4, features=4),
    },
)


def find_base_model(name: str) -> BaseModel:
    """Look up a published base by its name.

    Raises:
        ConfigError: if there is no such base.
    """
    if name not in BASES:
        raise ConfigError(f"base must be one of {', '.join(BASES)}, got {name!r}")
    return BASES[name]
