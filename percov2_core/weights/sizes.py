"""Stable Diffusion 3 as published: names on the Hub, and the settings of every part.

The settings are those of the repositories' own `config.json`; they build models of the real size
where no weights can be had (bench, memory, parameter counts).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from percov2_core.errors import ConfigError

CLIP_TOKENS = 77
T5_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """One model of the family.

    Attributes:
        name: What `load_codec` and `model.json` call it.
        repository: Its diffusers layout on the Hub; gated.
        transformer: Settings in which its transformer differs from `TRANSFORMER`.
    """

    name: str
    repository: str
    transformer: MappingProxyType[str, Any]


TRANSFORMER = MappingProxyType(
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
VAE = MappingProxyType(
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
CLIP_L = MappingProxyType(
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
CLIP_G = MappingProxyType(
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
T5_XXL = MappingProxyType(
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

BASES = MappingProxyType(
    {
        base.name: base
        for base in (
            BaseModel(
                name="sd3-medium",
                repository="stabilityai/stable-diffusion-3-medium-diffusers",
                transformer=MappingProxyType({}),
            ),
            BaseModel(
                name="sd3.5-medium",
                repository="stabilityai/stable-diffusion-3.5-medium",
                transformer=MappingProxyType(
                    {
                        "pos_embed_max_size": 384,
                        "qk_norm": "rms_norm",
                        "dual_attention_layers": tuple(range(13)),
                    }
                ),
            ),
        )
    }
)


def find_base_model(name: str) -> BaseModel:
    """Look up a base by its name.

    Raises:
        ConfigError: if there is no such base.
    """
    if name not in BASES:
        raise ConfigError(f"base must be one of {', '.join(BASES)}, got {name!r}")
    return BASES[name]
