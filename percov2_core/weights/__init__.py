"""Find, check and load models.

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
