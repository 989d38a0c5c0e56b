"""Find, check and load models; write the ones that training makes.

A checkpoint, format 2, is a folder (or a Hub repository with the same files):

    model.json                      format, name, base, shift, t5_tokens, captioner, digest, presets
    caption_language.npz            n-gram tables of the caption coder
    LEVEL/hyper_encoder/            latent -> vectors
    LEVEL/quantizer/                the codebook
    LEVEL/entropy.safetensors       fixed-point twin of the masked image model
    LEVEL/search.json               how hard the encoder looks
    LEVEL/surrogate/                if there is one: stands in for the decoder in that search
    painter/hyper_decoder/          codes of both levels -> start and features
    painter/flow.json
    painter/transformer/            the flow transformer in full, or
    painter/lora/                   its difference from the base's (peft), patch embedding in full

for each LEVEL of `config.LEVELS`. Where `base` in model.json is empty, the folder holds its own
base, as the embedded model's does:

    vae/                            diffusers autoencoder, 16 channels at 1/8
    painter/text_encoder/  painter/tokenizer/

Where it names Stable Diffusion 3 (`sizes.BASES`), autoencoder and text encoders are those of the
base's own folder, in diffusers' layout. `digest` covers what gives a file its meaning (caption
tables, codebooks, entropy models); its first byte is the fingerprint in every file.

Every file is loaded strictly: a missing, unknown or misshapen parameter is an error, never a
silent random number. The embedded model's weights are stored in half precision, or as 8-bit
integers with one scale per output (`pack`), and computed with in float32.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from percov2_core.caption.language import load_language
from percov2_core.config import LEVELS, MODES
from percov2_core.errors import PerCoError, WeightsError
from percov2_core.weights import files
from percov2_core.weights.find import base_of, fetch_painter, find_model
from percov2_core.weights.sizes import BASES

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2 as Codec
    from percov2_core.contents import FileCodec
    from percov2_core.weights.pretrained import PerCoV2
    from percov2_core.weights.residency import Residency

WARM_UP_PX = 512


def load_codec(
    name: str | Path = "embedded", *, device: str | None = None, residency: Residency | None = None
) -> PerCoV2:
    """Load a model once and keep it on its device.

    Args:
        name: "embedded"; a model folder or the OWNER/NAME of a Hub repository; either of them after
            "sd3-medium:" or "sd3.5-medium:".
        device: A torch device; None takes PERCOV2_DEVICE, or a GPU if there is one.
        residency: How a large model lives here; None reads the environment.

    WeightsError if a file is missing, unknown, damaged or of another version; ConfigError if the
    environment holds a wrong setting."""
    # Loads torch, diffusers and transformers, which takes seconds: `load_file_codec` does without.
    from percov2_core.weights import parts
    from percov2_core.weights.pretrained import PerCoV2
    from percov2_core.weights.residency import Residency

    home = residency or Residency.from_environment(device=device)
    folder, about = _find(name)
    vae, painter, times = parts.load_vae_and_painter(folder, about, home)
    codec = parts.assemble(
        about,
        digest=files.checked_digest(about, folder),
        vae=vae,
        levels=parts.load_levels(folder, home),
        painter=painter,
        language=load_language(folder / files.LANGUAGE_FILE),
        times=times,
        home=home,
    )
    return PerCoV2.around(codec, folder)


def read_model(name: str | Path = "embedded") -> files.About:
    """What a model's files say of it before it is loaded, its digest included; without torch.
    WeightsError as for `load_codec`, of what is read here."""
    folder, about = _find(name)
    return replace(about, digest=files.checked_digest(about, folder).hex())


def load_file_codec(name: str | Path = "embedded") -> FileCodec:
    """The half of a model that reads and writes files, on the CPU, without its networks.
    WeightsError as for `load_codec`."""
    from percov2_core.contents import FileCodec, FileModules  # `read_model` does without

    folder, about = _find(name)
    return FileCodec(
        name=about.name,
        digest=files.checked_digest(about, folder),
        language=load_language(folder / files.LANGUAGE_FILE),
        levels={
            n: FileModules(prior=files.load_prior(folder / n / files.ENTROPY_FILE)) for n in LEVELS
        },
    )


def _find(name: str | Path) -> tuple[Path, files.About]:
    folder = find_model(str(name))
    about = files.read_about(folder)
    if (wanted := base_of(str(name))) not in ("", about.base):
        raise WeightsError(f"model {str(folder)!r}: base is {about.base!r}, expected {wanted!r}")
    return folder, about


def open_painter(codec: Codec, name: str) -> str:
    """Load the second painter of a page before it opens, and fetch it where it is not here; -> why
    it cannot be had, or "". No name asks for none."""
    if not name:
        return ""
    if name in BASES and codec.device.type == "cpu":  # 19 GB of float32, and minutes for a picture
        return f"{name!r} needs a GPU, and there is none"
    try:
        fetch_painter(name)
        codec.painters(name)
    except PerCoError as error:
        return str(error)
    return ""


def warm_up(codec: Codec, home: Residency | None = None) -> None:
    """Paint one grey picture per mode, if `home` (None reads the environment) asks for it: the
    first run on a GPU chooses kernels and takes memory, which no visitor should wait for."""
    from percov2_core.weights.residency import Residency  # see `load_codec`

    if not (home or Residency.from_environment()).warms_up:
        return
    grey = Image.new("RGB", (WARM_UP_PX, WARM_UP_PX), (128, 128, 128))
    for mode in MODES:
        codec.decode(codec.encode(grey, mode, caption=""), steps=1, guidance=2.0)
