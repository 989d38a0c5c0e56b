"""A model by its name -> the codec. `load_codec()` is what everybody calls."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from diffusers import AutoencoderDC
from PIL import Image

from percov2_core.caption.captioner import get_captioner
from percov2_core.caption.language import CaptionLanguage, load_language
from percov2_core.codec import PerCoV2, RateModules
from percov2_core.config import RATES
from percov2_core.errors import WeightsError
from percov2_core.latent import LatentAutoencoder
from percov2_core.weights import rates
from percov2_core.weights.about import LANGUAGE_FILE, About, checked_digest, read_about
from percov2_core.weights.base import load_base
from percov2_core.weights.files import existing, load_part
from percov2_core.weights.places import base_of, find_base, find_model
from percov2_core.weights.residency import Residency

WARM_UP_PX = 512


def load_codec(
    name: str | Path = "embedded",
    *,
    device: str | None = None,
    residency: Residency | None = None,
) -> PerCoV2:
    """Load a model once and keep it on its device.

    Args:
        name: "embedded"; a model folder; or "sd3-medium:CHECKPOINT", "sd3.5-medium:CHECKPOINT",
            where CHECKPOINT is a folder or the OWNER/NAME of a Hub repository.
        device: A torch device; None takes PERCOV2_DEVICE, or a GPU if there is one.
        residency: How a large model lives here; None reads the environment.

    Raises:
        WeightsError: if a file is missing, unknown, damaged or of another version.
        ConfigError: if a setting in the environment is wrong.
    """
    home = residency or Residency.from_environment(device=device)
    folder = find_model(str(name))
    about = read_about(folder)
    if (wanted := base_of(str(name))) not in ("", about.base):
        raise WeightsError(f"model {str(folder)!r}: base is {about.base!r}, expected {wanted!r}")
    vae, modules = _over_base(folder, about, home) if about.base else _own(folder, home)
    return assemble(
        about,
        digest=checked_digest(about, folder),
        vae=vae,
        rates=modules,
        language=load_language(existing(folder / LANGUAGE_FILE)),
        home=home,
    )


def assemble(
    about: About,
    *,
    digest: bytes,
    vae: LatentAutoencoder,
    rates: Mapping[str, RateModules],
    language: CaptionLanguage,
    home: Residency,
) -> PerCoV2:
    """The codec from its loaded parts."""
    if home.compile_allowed:
        for modules in rates.values():
            modules.flow.transformer.compile()
    return PerCoV2(
        name=about.name,
        digest=digest,
        vae=vae,
        rates=rates,
        language=language,
        captioners=partial(get_captioner, device=str(home.target)),
        shift=about.shift,
        presets=about.presets,
        captioner=about.captioner,
    )


def warm_up(codec: PerCoV2, home: Residency | None = None) -> None:
    """Paint one grey picture per rate, if `home` (None reads the environment) asks for it.

    The first run on a GPU chooses kernels and takes memory, which no visitor should wait for.
    """
    if not (home or Residency.from_environment()).warms_up:
        return
    grey = Image.new("RGB", (WARM_UP_PX, WARM_UP_PX), (128, 128, 128))
    for mode in codec.rates:  # the rates' names are those of the modes that send all tokens
        codec.decode(codec.encode(grey, mode, caption=""), steps=1, guidance=2.0)


def _own(folder: Path, home: Residency) -> tuple[LatentAutoencoder, dict[str, RateModules]]:
    """A folder that holds its own base, as the embedded model's does."""
    vae = LatentAutoencoder(load_part(AutoencoderDC, folder / "vae", home.target))
    return vae, {rate: rates.load(folder / rate, home) for rate in RATES}


def _over_base(
    folder: Path, about: About, home: Residency
) -> tuple[LatentAutoencoder, dict[str, RateModules]]:
    """A folder that holds what differs from Stable Diffusion 3."""
    place = find_base(about.base, t5=home.t5 and about.t5_tokens > 0)
    base = load_base(
        place, name=about.base, residency=home, transformer=False, t5_tokens=about.t5_tokens
    )
    return base.vae, {
        rate: rates.load(folder / rate, home, base=place, text=base.text) for rate in RATES
    }
