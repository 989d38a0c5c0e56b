"""A whole model of the smallest legal sizes, with random weights, in the layout of a real one."""

import argparse
import csv
import json
import os
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from diffusers import AutoencoderDC
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from percov2_core.caption.describer import VOCABULARY, describe
from percov2_core.caption.language import save_language
from percov2_core.config import LEVELS, MODES, PARENT_RATIO, PRESETS, SearchConfig
from percov2_core.entropy.exporter import export
from percov2_core.entropy.masked_config import MaskedModelConfig
from percov2_core.entropy.masked_model import MaskedImageModel
from percov2_core.training.autoencoder import EMBEDDED
from percov2_core.training.caption_language import build_language
from percov2_core.weights import load_codec, parts
from percov2_core.weights.files import ENTROPY_FILE, PAINTER_DIR
from percov2_core.weights.sizes import TINY

ROOT = Path(__file__).parents[1]
TINY_VAE = {
    **EMBEDDED,
    "encoder_block_out_channels": (16, 16, 16, 16),
    "decoder_block_out_channels": (16, 16, 16, 16),
    "encoder_layers_per_block": (0, 1, 1, 1),
    "decoder_layers_per_block": (0, 1, 1, 1),
}
# Settings of a masked model of toy size, for its training.
TINY_MASKED = {
    "model": {
        "width": 16, "heads": 2, "content_layers": 1, "query_layers": 1, "hidden": 16,
        "code_width": 8,
    },
    "loop": {"save_every_s": 0.0, "evaluate_every_s": 0.0},
    "tuning": {"batch_tokens": 64, "held_out": 2, "min_crop": 1},
}  # fmt: skip


def run(*words, cwd=ROOT, **environment):
    """The end of a program: its status, and what it said."""
    return subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def options(about, **usual):
    """What the command line says, else what is usual."""
    parser = argparse.ArgumentParser(description=about)
    for name, value in usual.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


def picture(width=160, height=96, *, seed=0):
    """A smooth random picture, the same for the same arguments."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def change_weights(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def rename(weights, old, new):
    weights[new] = weights.pop(old)


def edit_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def counted(monkeypatch, owner, name, *, most=None):
    """A list that grows with each call of a function or method; after `most` comes a Ctrl-C."""
    calls, function = [], getattr(owner, name)

    def counting(*arguments, **named):
        if len(calls) == most:
            raise KeyboardInterrupt
        calls.append(arguments)
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, counting)
    return calls


def tiny_sizes():
    toy, search = TINY.sizes, SearchConfig(rounds=2, curvature=60.0)
    return replace(
        toy,
        coarse=replace(toy.coarse, search=search),
        fine=replace(toy.fine, search=search),
        start="codes",
        tile=64,
        noise_scale=0.5,
        heads=1,
        head_dim=32,
        layers=1,
        text_width=32,
        text_layers=1,
        guidance_width=4,
    )


def tiny_masked_model(**changes):
    config = {**TINY_MASKED["model"], "vocabulary": VOCABULARY, **changes}
    return _shaken(MaskedImageModel(MaskedModelConfig(**config)).eval())


def write_tiny_model(folder):
    """Write a complete model folder; the same bytes each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderDC(**TINY_VAE, scaling_factor=1.0).half().save_pretrained(folder / "vae")
        levels, painter = parts.build(tiny_sizes())
        for module in (painter.decoder, painter.flow, painter.text):
            assert isinstance(module, nn.Module)
            _shaken(module)
        parts.save_painter(painter, folder / PAINTER_DIR, packed=True)
        for ratio, name in zip((0, PARENT_RATIO), LEVELS, strict=True):
            _shaken(levels[name].encoder)
            parts.save_level(levels[name], folder / name, packed=True)
            export(tiny_masked_model(ratio=ratio)).save(folder / name / ENTROPY_FILE)
    captions = ["a red house by the sea", "two dogs play on the green grass"] * 3
    sentences = [describe(picture(seed=seed)) for seed in range(8)]
    save_language(build_language(captions, sentences), folder / "caption_language.npz")
    presets = {p: {"steps": i + 1, "guidance": 1.0 + i} for i, p in enumerate(PRESETS)}
    about = {"format": 2, "name": "tiny", "presets": dict.fromkeys(MODES, presets)}
    (folder / "model.json").write_text(json.dumps(about))
    return folder


@cache
def tiny_folder():
    """One folder per test process."""
    return write_tiny_model(Path(mkdtemp(prefix="percov2-tiny-")))


@cache
def tiny_codec():
    """The whole codec on a CPU; a picture takes well under a second."""
    return load_codec(tiny_folder(), device="cpu")


def _shaken(module):
    """Random numbers where training starts from zeros, so that every input matters."""
    for parameter in module.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return module
