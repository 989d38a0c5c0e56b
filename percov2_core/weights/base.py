"""The frozen Stable Diffusion 3 under a PerCoV2 model: a diffusers folder -> loaded parts.

Captions are embedded by the published pipeline (Esser et al. 2024, section 4): the last hidden
state but one of both CLIP models side by side, padded with zeros to T5's width, then T5's tokens.
Without T5 its part of the sequence is left out, not set to zero: shorter and faster, and a
checkpoint has to be trained as it is used.

B batch, L caption length in tokens, C = 4096 width, P = 2048 pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import nn
from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

from percov2_core.config import OWN_PAINTER, check_choice
from percov2_core.errors import UnavailableError, WeightsError
from percov2_core.flow.sampler import TimesOf
from percov2_core.flow.text import TextEmbedding
from percov2_core.flow.transformer import TIMESTEPS, FlowConfig, FlowModel
from percov2_core.latent import LatentAutoencoder
from percov2_core.repaint import Repainter
from percov2_core.weights.files import existing, one_line, read_json
from percov2_core.weights.find import INDEX_FILE, find_base
from percov2_core.weights.networks import load_published
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import BASES, SD3, T5_TOKENS

SCHEDULER_FILE = "scheduler/scheduler_config.json"


class SD3TextEncoder:
    """The frozen text models: two CLIP text models with projection and, if the `t5_tokens` that a
    caption becomes for it are not 0, T5; a tokenizer for each. `width` is C."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        tokenizers: Sequence[Any],
        *,
        width: int,
        t5_tokens: int,
        device: torch.device,
    ) -> None:
        self.models, self.t5_tokens, self.device = models, t5_tokens, device
        absent = ("text_encoder_3", "tokenizer_3", "transformer", "scheduler", "vae")
        parts: dict[str, Any] = dict.fromkeys(absent)
        for suffix, model, tokenizer in zip(("", "_2", "_3"), models, tokenizers, strict=False):
            parts |= {f"text_encoder{suffix}": model, f"tokenizer{suffix}": tokenizer}
        self.pipeline: Any = StableDiffusion3Pipeline(**parts)
        # The pipeline asks its transformer for the width where there is no T5.
        config = SimpleNamespace(joint_attention_dim=width)
        self.pipeline.transformer = SimpleNamespace(config=config)
        self._empty: TextEmbedding | None = None

    @property
    def clip_tokens(self) -> int:
        """Text tokens before those of T5."""
        return int(self.pipeline.tokenizer_max_length)

    @property
    def clip_widths(self) -> tuple[int, ...]:
        """Of both CLIP models, whose states stand beside each other."""
        clips: Sequence[Any] = self.models[:2]
        return tuple(model.config.hidden_size for model in clips)

    # Not as inference tensors: what is cached here may condition a training step later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def encode(self, captions: list[str]) -> TextEmbedding:
        """Captions -> (B, L, C) and (B, P) float32 on `device`; the empty caption is kept."""
        if captions == [""] and self._empty is not None:
            return self._empty
        options = {"do_classifier_free_guidance": False, "max_sequence_length": self.t5_tokens}
        made = self.pipeline.encode_prompt(captions, None, None, device=self.device, **options)
        sequence, _, pooled, _ = made
        found = TextEmbedding(sequence.float(), pooled.float())
        if captions == [""]:
            self._empty = found
        return found


class SD3Base(NamedTuple):
    """What all rates share, frozen."""

    vae: LatentAutoencoder  # 16 channels at 1/8
    text: SD3TextEncoder
    times: TimesOf


def load_base(
    folder: Path, *, name: str = "sd3-medium", residency: Residency, t5_tokens: int = T5_TOKENS
) -> SD3Base:
    """Load all but the transformer of a folder in diffusers' layout, strictly.
    WeightsError if a file is missing or damaged, or a parameter does not fit; UnavailableError if
    text encoders are to visit the GPU and accelerate is not installed. 0 `t5_tokens` leave the
    third text encoder out."""
    if not (folder / INDEX_FILE).is_file():
        raise WeightsError(f"base {name!r}: no {INDEX_FILE} in folder {str(folder)!r}")
    home = residency
    vae = load_published(AutoencoderKL, folder / "vae", device=home.target, dtype=home.precision)
    text = load_text(folder, home, t5_tokens=t5_tokens if home.t5 else 0)
    return SD3Base(LatentAutoencoder(vae), text, load_times(folder))


def load_shift(folder: Path) -> float:
    """The shift of the flow's time of a base folder."""
    return float(read_json(folder / SCHEDULER_FILE).get("shift", 1.0))


def load_times(folder: Path) -> TimesOf:
    """What the scheduler of a base folder says, with all its settings.
    WeightsError if it is of another kind, or has settings that Euler steps do not follow."""
    config = read_json(folder / SCHEDULER_FILE)
    usual = {"_class_name": FlowMatchEulerDiscreteScheduler.__name__}
    usual |= {"num_train_timesteps": TIMESTEPS, "stochastic_sampling": False}
    for name, expected in {**usual, "invert_sigmas": False}.items():
        if (found := config.get(name, expected)) != expected:
            problem = f"{name} must be {expected!r}, got {found!r}"
            raise WeightsError(f"{str(folder / SCHEDULER_FILE)!r}: {problem}")
    return partial(scheduled, FlowMatchEulerDiscreteScheduler.from_config(config))


def scheduled(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, height: int, width: int
) -> list[float]:
    """The times at which the published pipeline looks at a latent of this grid."""
    own, config = type(scheduler).from_config(scheduler.config), scheduler.config  # it has a state
    mu = None
    if config.use_dynamic_shifting:
        bounds = (f"{end}_{of}" for of in ("image_seq_len", "shift") for end in ("base", "max"))
        mu = calculate_shift(height // 2 * (width // 2), *(config[name] for name in bounds))
    own.set_timesteps(steps, mu=mu)
    return [float(t) for t in own.sigmas]


def load_repainter(name: str, home: Residency) -> Repainter:
    """The second painter: a key into `sizes.BASES`, or a folder in diffusers' layout.
    ConfigError if it is neither; WeightsError if it cannot be had: says what to accept or set."""
    if (Path(name) / INDEX_FILE).is_file():
        folder = Path(name)
    else:
        check_choice("painter", name, (OWN_PAINTER, *BASES, "a folder in diffusers' layout"))
        folder = find_base(name, t5=home.t5)
    base = load_base(folder, name=name, residency=home)
    place = folder / "transformer"
    kind = SD3Transformer2DModel
    transformer = load_published(kind, place, device=home.target, dtype=home.precision)
    if home.compile_allowed:
        transformer.compile()
    return repainter(name, base, transformer)


def repainter(name: str, base: SD3Base, transformer: nn.Module) -> Repainter:
    """Of loaded parts. The published pipeline puts zeros in the place of a text encoder that is
    left out: these weights were not trained without."""
    base.text.t5_tokens = T5_TOKENS
    flow = FlowModel(transformer, FlowConfig(start="noise", tile=SD3.tile)).eval()
    return Repainter(name=name, vae=base.vae, text=base.text, flow=flow, times=base.times)


def load_text(folder: Path, home: Residency, *, t5_tokens: int) -> SD3TextEncoder:
    """The text encoders of a base folder; `t5_tokens` is 0 to leave T5 out."""
    models, tokenizers = [], []
    for suffix in ("", "_2", "_3") if t5_tokens else ("", "_2"):
        kind = T5EncoderModel if suffix == "_3" else CLIPTextModelWithProjection
        place = folder / f"text_encoder{suffix}"
        model = load_published(kind, place, device=torch.device("cpu"), dtype=home.precision)
        models.append(settled(model, home))
        tokenizers.append(_load_tokenizer(folder / f"tokenizer{suffix}"))
    width = int(read_json(folder / "transformer" / "config.json")["joint_attention_dim"])
    return SD3TextEncoder(models, tokenizers, width=width, t5_tokens=t5_tokens, device=home.target)


def settled(model: nn.Module, home: Residency) -> nn.Module:
    """Put a text encoder where it rests, from where it visits the device that it runs on."""
    rest = home.rest("t5" if isinstance(model, T5EncoderModel) else "clip")
    if rest == home.target:
        return model.to(rest)
    try:
        from accelerate import cpu_offload
    except ImportError as error:
        message = "PERCOV2_OFFLOAD needs a library: run `pip install accelerate`"
        raise UnavailableError(message) from error
    # Layer by layer, and nothing is copied back: nothing has changed.
    visitor: nn.Module = cpu_offload(model.to(rest), home.target, offload_buffers=True)
    return visitor


def _load_tokenizer(folder: Path) -> Any:
    existing(folder / "tokenizer_config.json")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        problem = f"tokenizer {str(folder)!r} cannot be read: {one_line(error)}"
        raise WeightsError(problem) from error
