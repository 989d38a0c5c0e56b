"""Sizes of our modules, by model, and of Stable Diffusion 3 as published.

`sd3.json` beside this file holds the settings of its repositories' own `config.json`; they build
models of the real size where no weights can be had (bench, memory, parameter counts).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from percov2_core.config import COARSE, FINE, SearchConfig, check_choice

CLIP_TOKENS = 77
T5_TOKENS = 256

Settings: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelSizes:
    """What makes the tokens of one level; widths run fine to coarse."""

    encoder_widths: tuple[int, ...]
    encoder_depths: tuple[int, ...]
    search: SearchConfig = field(default_factory=SearchConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """One model. `coarse_*` and `decoder_*` are those of the hyper-decoder, coarse to fine; those
    of a transformer of one's own are `heads`, `head_dim`, `layers` and `pos_embed_max`, of the text
    encoder beside it `text_width` and `text_layers`: a model over Stable Diffusion 3 takes both
    from its base. `start`, `noise_scale`, `text_guidance`, `guidance_width` and `tile` are those of
    `FlowConfig`."""

    coarse: LevelSizes
    fine: LevelSizes
    coarse_widths: tuple[int, ...]
    coarse_depths: tuple[int, ...]
    decoder_widths: tuple[int, ...]
    decoder_depths: tuple[int, ...]
    noise_scale: float
    text_guidance: float
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

    @property
    def levels(self) -> dict[str, LevelSizes]:
        return {COARSE.name: self.coarse, FINE.name: self.fine}


EMBEDDED = Sizes(
    coarse=LevelSizes(
        encoder_widths=(96, 160, 224),
        encoder_depths=(2, 2, 2),
        search=SearchConfig(best_rounds=3, curvature=1000.0, rate=25.0),
    ),
    fine=LevelSizes(
        encoder_widths=(192,),
        encoder_depths=(6,),
        search=SearchConfig(rounds=3, best_rounds=10, curvature=90.0, structure=0.15, rate=0.5),
    ),
    coarse_widths=(256, 224, 160),
    coarse_depths=(4, 4, 4),
    decoder_widths=(256,),
    decoder_depths=(10,),
    noise_scale=0.6,
    text_guidance=0.0,
)


def _over_sd3(
    widths: tuple[int, int, int], depths: tuple[int, int, int], fine: tuple[int, int], **more: int
) -> Sizes:
    """The paper's flow from pure noise; the tile is what the base was trained on, 1024 px. `widths`
    and `depths` are those of the coarse level's encoder, `fine` width and depth of the fine level's
    and of the hyper-decoder on its grid."""
    return Sizes(
        coarse=LevelSizes(encoder_widths=widths, encoder_depths=depths),
        fine=LevelSizes(encoder_widths=fine[:1], encoder_depths=fine[1:]),
        coarse_widths=widths[::-1],
        coarse_depths=depths[::-1],
        decoder_widths=fine[:1],
        decoder_depths=fine[1:],
        start="noise",
        noise_scale=1.0,
        text_guidance=1.0,
        guidance_width=0,
        tile=128,
        **more,
    )


SD3 = _over_sd3((192, 256, 320), (2, 3, 3), fine=(320, 6), features=32)
SHIFT = 3.0  # of the flow's time, towards its noisy end


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """One model of the family: settings of its parts, and of ours over it."""

    name: str  # what `load_codec` and `model.json` call it
    repository: str  # its diffusers layout on the Hub; gated
    transformer: Settings
    vae: Settings
    clip_l: Settings
    clip_g: Settings
    t5: Settings
    sizes: Sizes  # of our modules


def _published(name: str, sizes: Sizes) -> BaseModel:
    settings = json.loads(Path(__file__).with_name("sd3.json").read_text(encoding="utf-8"))
    return BaseModel(name=name, sizes=sizes, **settings[name])


BASES = MappingProxyType({name: _published(name, SD3) for name in ("sd3-medium", "sd3.5-medium")})
# The same parts at toy size: what runs through them in a test runs through the real ones.
TINY = _published(
    "tiny-random", _over_sd3((8, 8, 8), (1, 1, 1), fine=(8, 1), code_dim=4, features=4)
)


def find_base_model(name: str) -> BaseModel:
    """Look up a published base by its name; ConfigError if there is no such base."""
    return BASES[check_choice("base", name, BASES)]
