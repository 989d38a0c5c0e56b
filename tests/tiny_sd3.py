"""Stable Diffusion 3 of the smallest sizes, with random weights, in the layout of the real one.

The folder has what `stabilityai/stable-diffusion-3-medium-diffusers` has: three text encoders with
their tokenizers, autoencoder, transformer, scheduler. Everything is built here, offline.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from percov2_core.weights.sizes import SHIFT, TRANSFORMER, VAE

START, END = "<|startoftext|>", "<|endoftext|>"
WIDTHS = {"text_encoder": 24, "text_encoder_2": 40}  # of the two CLIP models, and their projections
JOINT_WIDTH = 96  # of T5 and of the joint sequence; more than both CLIP models side by side
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


def write_tiny_sd3(folder: Path) -> Path:
    """Write a complete base folder; the same bytes each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _autoencoder().save_pretrained(folder / "vae")
        _transformer().save_pretrained(folder / "transformer")
        for name, width in WIDTHS.items():
            _clip(width, len(_clip_tokenizer())).save_pretrained(folder / name)
        _t5(len(_t5_tokenizer())).save_pretrained(folder / "text_encoder_3")
    _clip_tokenizer().save_pretrained(folder / "tokenizer")
    # The larger CLIP model was trained with another filling than the smaller one.
    _clip_tokenizer(pad_token="!").save_pretrained(folder / "tokenizer_2")
    _t5_tokenizer().save_pretrained(folder / "tokenizer_3")
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusion3Pipeline", **CLASSES}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


@cache
def tiny_sd3_folder() -> Path:
    """One folder per test process."""
    return write_tiny_sd3(Path(mkdtemp(prefix="percov2-tiny-sd3-")))


def _autoencoder() -> AutoencoderKL:
    small = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    return AutoencoderKL(**{**VAE, **small, "sample_size": 256})


def _transformer() -> SD3Transformer2DModel:
    small = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    widths = {
        "joint_attention_dim": JOINT_WIDTH,
        "caption_projection_dim": 16,
        "pooled_projection_dim": sum(WIDTHS.values()),
    }
    return SD3Transformer2DModel(**{**TRANSFORMER, **small, **widths, "pos_embed_max_size": 64})


def _clip(width: int, vocabulary: int) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=2,  # as published; the models look for the highest number instead
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config)


def _clip_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """Every byte alone and at the end of a word, as in CLIP's vocabulary; no merges."""
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    return CLIPTokenizer(
        vocab={name: i for i, name in enumerate(names)},
        merges=[],
        pad_token=pad_token,
        model_max_length=77,
    )


def _t5(vocabulary: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=vocabulary,
        d_model=JOINT_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def _t5_tokenizer() -> T5Tokenizer:
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
