"""Stable Diffusion 3 of the smallest sizes, with random weights, in the layout of the real one.

The folder has what `stabilityai/stable-diffusion-3-medium-diffusers` has: three text encoders with
their tokenizers, autoencoder, transformer, scheduler. Everything is built here, offline.
"""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from tokenizers.pre_tokenizers import ByteLevel

from percov2_core.weights.fresh import write_fresh_checkpoint
from percov2_core.weights.sizes import SHIFT, TINY

START, END = "<|startoftext|>", "<|endoftext|>"
CLASSES = {
    "vae": ("diffusers", "AutoencoderKL"),
    "transformer": ("diffusers", "SD3Transformer2DModel"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "text_encoder_3": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "tokenizer_3": ("transformers", "T5TokenizerFast"),
}


def write_tiny_sd3(folder):
    """Write a complete base folder; the same bytes each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderKL(**TINY.vae).save_pretrained(folder / "vae")
        SD3Transformer2DModel(**TINY.transformer).save_pretrained(folder / "transformer")
        words, pieces = len(_clip_tokenizer()), len(_t5_tokenizer())
        for name, settings in (("text_encoder", TINY.clip_l), ("text_encoder_2", TINY.clip_g)):
            config = transformers.CLIPTextConfig(**{**settings, "vocab_size": words})
            transformers.CLIPTextModelWithProjection(config).save_pretrained(folder / name)
        t5 = transformers.T5EncoderModel(transformers.T5Config(**{**TINY.t5, "vocab_size": pieces}))
        t5.save_pretrained(folder / "text_encoder_3")
    _clip_tokenizer().save_pretrained(folder / "tokenizer")
    # The larger CLIP model was trained with another filling than the smaller one.
    _clip_tokenizer(pad_token="!").save_pretrained(folder / "tokenizer_2")
    _t5_tokenizer().save_pretrained(folder / "tokenizer_3")
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusion3Pipeline", **CLASSES}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


@cache
def tiny_sd3_folder():
    """One folder per test process."""
    return write_tiny_sd3(Path(mkdtemp(prefix="percov2-tiny-sd3-")))


@cache
def tiny_checkpoint(lora_rank, t5_tokens=8):
    """An untrained checkpoint over it, one per test process: to read, or to change a copy."""
    folder = Path(mkdtemp(prefix="percov2-tiny-checkpoint-"))
    return write_fresh_checkpoint(
        folder, tiny_sd3_folder(), lora_rank=lora_rank, t5_tokens=t5_tokens, sizes=TINY.sizes
    )


def _clip_tokenizer(pad_token=END):
    """Every byte alone and at the end of a word, as in CLIP's vocabulary; no merges."""
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    how = {"pad_token": pad_token, "merges": [], "model_max_length": 77}
    return transformers.CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, **how)


def _t5_tokenizer():
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in letters]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
