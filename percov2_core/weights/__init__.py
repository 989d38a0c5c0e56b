"""Find, check and load models; write the ones that training makes.

A checkpoint, format 1, is a folder (or a Hub repository with the same files):

    model.json                      format, name, base, shift, t5_tokens, captioner, digest, presets
    caption_language.npz            n-gram tables of the caption coder
    RATE/hyper_encoder/             latent -> vectors
    RATE/quantizer/                 the codebook
    RATE/hyper_decoder/             codes -> start and features
    RATE/entropy.safetensors        fixed-point twin of the masked image model
    RATE/flow.json  RATE/search.json
    RATE/transformer/               the flow transformer in full, or
    RATE/lora/                      its difference from the base's (peft), patch embedding in full

for each RATE of `config.RATES`. Where `base` in model.json is empty, the folder holds its own base,
as the embedded model's does:

    vae/                            diffusers autoencoder, 16 channels at 1/8
    RATE/text_encoder/  RATE/tokenizer/

Where it names Stable Diffusion 3 (`sizes.BASES`), autoencoder and text encoders are those of the
base's own folder, in diffusers' layout. `digest` covers what gives a file its meaning (caption
tables, codebooks, entropy models); its first byte is the fingerprint in every file.

Every file is loaded strictly: a missing, unknown or misshapen parameter is an error, never a
silent random number. The embedded model's weights are stored in half precision, or as 8-bit
integers with one scale per output (`pack`), and computed with in float32.
"""

from percov2_core.weights.about import ENTROPY_FILE, LANGUAGE_FILE, model_digest
from percov2_core.weights.checkpoint import load_codec, warm_up
from percov2_core.weights.files import SCALE_SUFFIX, WEIGHTS_FILE, load_part, pack, unpack
from percov2_core.weights.places import EMBEDDED_DIR

__all__ = [
    "EMBEDDED_DIR",
    "ENTROPY_FILE",
    "LANGUAGE_FILE",
    "SCALE_SUFFIX",
    "WEIGHTS_FILE",
    "load_codec",
    "load_part",
    "model_digest",
    "pack",
    "unpack",
    "warm_up",
]
