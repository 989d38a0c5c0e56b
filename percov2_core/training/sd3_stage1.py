"""Stage 1 over Stable Diffusion 3: flow matching from noise with the hyper-latent beside it.

Rectified flow (Liu et al. 2022): x_t = (1 - t) z + t e, velocity e - z. Times are drawn as
Stable Diffusion 3 was trained: the logistic of a normal number, then shifted towards noise (Esser
et al. 2024, sections 3.1 and 5.3.2). Hyper-encoder, quantiser and hyper-decoder learn along; the
hyper-latent enters through the extended patch embedding (PerCoV2, section 3). Autoencoder and
text models have done their work before: see `cache`. B batch, H' x W' latent grid, t flow time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from percov2_core.errors import ConfigError
from percov2_core.flow.sampler import shifted
from percov2_core.flow.text import TextEmbedding
from percov2_core.flow.transformer import Conditions, FlowModel, guidance_features
from percov2_core.hyper.networks import HyperDecoder, HyperEncoder
from percov2_core.training.cache import LatentBatch
from percov2_core.training.loop import StepLoss
from percov2_core.training.quantize import TrainingQuantizer

SCORED_TIMES = (0.2, 0.5, 0.8, 1.0)
_TIME_FLOOR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class SD3Loss:
    """Weights of the terms, and how times and captions are drawn.

    Attributes:
        flow: Of the squared error of the velocity.
        start: Of the squared error of the hyper-decoder's own estimate of the latent, which the
            encoder's search decodes and which gives the codes a direct gradient.
        commitment: Of the quantiser.
        text_drop: Share of samples that see the empty caption, for guidance.
        shift: Of the flow's time, towards its noisy end; 1 leaves it.
    """

    flow: float = 1.0
    start: float = 0.3
    commitment: float = 0.1
    text_drop: float = 0.1
    shift: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.text_drop <= 1:
            raise ConfigError(f"text_drop must be in [0, 1], got {self.text_drop}")
        if self.shift <= 0:
            raise ConfigError(f"shift must be above 0, got {self.shift}")


class SD3Parts(NamedTuple):
    """What stage 1 trains."""

    encoder: HyperEncoder
    quantizer: TrainingQuantizer
    decoder: HyperDecoder
    flow: FlowModel


def draw_times(count: int, shift: float, device: torch.device) -> Tensor:
    """(B,) float in (0, 1): logistic of a standard normal, shifted."""
    return shifted(torch.randn(count, device=device).sigmoid(), shift).clamp_min(_TIME_FLOOR)


class SD3System(nn.Module):
    """The parts of one rate and their loss.

    Attributes:
        unsaved: Names of weights that come from the base and do not change; no checkpoint of the
            run holds them.
    """

    empty_sequence: Tensor
    empty_pooled: Tensor

    def __init__(self, parts: SD3Parts, empty: TextEmbedding, loss: SD3Loss) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder, self.flow = parts
        self.weights = loss
        # The caption that is not there: (1, L, C) and (1, P).
        self.register_buffer("empty_sequence", empty.sequence.clone(), persistent=False)
        self.register_buffer("empty_pooled", empty.pooled.clone(), persistent=False)
        self.unsaved = _unchanging(self.flow)

    def forward(self, batch: LatentBatch, progress: float) -> StepLoss:
        if not self.training:
            return self._scored(batch)
        follow_first(self.quantizer)
        device = next(self.encoder.parameters()).device
        z, text = batch.latent.to(device), self._text(batch.text, device)
        codes, _, commitment = self.quantizer(self.encoder(z))
        t = draw_times(len(z), self.weights.shift, device)
        flow, start = self._errors(z, t, codes, text, torch.randn_like(z))
        w = self.weights
        loss = w.flow * flow + w.start * start + w.commitment * commitment
        bits = self.quantizer.entropy_bits()
        logs = {"flow": flow.item(), "start": start.item(), "code_bits": bits}
        return StepLoss(loss, logs)

    def _text(self, text: TextEmbedding, device: torch.device) -> TextEmbedding:
        """The captions' embeddings, some of them replaced by the empty one."""
        sequence, pooled = (value.to(device) for value in text)
        dropped = torch.rand(len(pooled), device=device) < self.weights.text_drop
        return TextEmbedding(
            torch.where(dropped[:, None, None], self.empty_sequence, sequence),
            torch.where(dropped[:, None], self.empty_pooled, pooled),
        )

    def _errors(
        self, z: Tensor, t: Tensor, codes: Tensor, text: TextEmbedding, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Squared errors of the velocity and of the start."""
        ones = torch.ones_like(t)
        told = guidance_features(ones, self.decoder.guidance_width)
        start, features = self.decoder(codes, told)
        tt = t[:, None, None, None]
        x_t = (1 - tt) * z + tt * noise
        v = self.flow(x_t, t, Conditions(start, features, text), ones)
        return F.mse_loss(v, noise - z), F.mse_loss(start, z)

    def _scored(self, batch: LatentBatch) -> StepLoss:
        """Squared error of the velocity at fixed times, with the same noise every time."""
        device = next(self.encoder.parameters()).device
        z, text = batch.latent.to(device), TextEmbedding(*(v.to(device) for v in batch.text))
        quantizer = self.quantizer.quantizer
        codes = quantizer.lookup(quantizer.tokens(self.encoder(z)))
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(device)
        errors = {}
        for time in SCORED_TIMES:
            t = torch.full((len(z),), time, device=device)
            errors[f"flow_{time:g}"] = self._errors(z, t, codes, text, noise)[0]
        logs = {name: error.item() for name, error in errors.items()}
        return StepLoss(torch.stack(list(errors.values())).mean(), logs)


def mean_scores(system: nn.Module, batches: Sequence[LatentBatch]) -> dict[str, float]:
    """Means over samples of what an `SD3System` in evaluation says of each batch."""
    totals: dict[str, float] = {}
    for batch in batches:
        for name, value in system(batch, 1.0).logs.items():
            totals[name] = totals.get(name, 0.0) + value * len(batch.latent)
    count = sum(len(batch.latent) for batch in batches)
    return {name: round(total / count, 5) for name, total in totals.items()}


def parameter_groups(module: nn.Module, *, new_scale: float) -> Iterable[dict[str, Any]]:
    """The base's own weights at the run's learning rate, what starts fresh at a multiple of it."""
    base: list[nn.Parameter] = []
    new: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            fresh = not name.startswith("flow.") or "lora_" in name
            (new if fresh else base).append(parameter)
    return [{"params": base}, {"params": new, "lr_scale": new_scale}]


def follow_first(quantizer: TrainingQuantizer) -> None:
    """Take the codebook of the first process.

    All see the same counts, but each revives dead codes from vectors of its own batch.
    """
    if dist.is_available() and dist.is_initialized():
        for value in quantizer.state_dict().values():
            dist.broadcast(value, src=0)


def _unchanging(flow: nn.Module) -> frozenset[str]:
    trained = {f"flow.{name}" for name, p in flow.named_parameters() if p.requires_grad}
    return frozenset(f"flow.{name}" for name in flow.state_dict()) - trained
