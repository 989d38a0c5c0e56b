"""Stage 1 of the paper: hyper-encoder, quantiser, hyper-decoder and flow transformer of one rate.

The autoencoder is frozen. Three losses: squared error on the latent (hyper-decoder's start and
flow matching), squared error on decoded pixels, and a perceptual distance whose weight grows
with the guidance that the network is told, so that one network holds the whole trade between
distortion and perception. B batch, H x W pixels, h x w token grid, t flow time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from percov2_core.caption.describer import describe
from percov2_core.flow.sampler import draw_noise, sample, sigmas
from percov2_core.flow.text import TextEmbedding, TextEncoder
from percov2_core.flow.transformer import TOLD_MAX, Conditions, FlowModel, guidance_features
from percov2_core.hyper.networks import HyperDecoder, HyperEncoder
from percov2_core.latent import LatentAutoencoder
from percov2_core.metrics.features import SqueezeNetFeatures, feature_distance
from percov2_core.metrics.structure import structure_distance
from percov2_core.training.autoencoder import to_float
from percov2_core.training.data import CropPlan, Photos, crop_batch
from percov2_core.training.loop import StepLoss
from percov2_core.training.quantize import TrainingQuantizer

TEXT_DROP = 0.1


class Crops(NamedTuple):
    pixels: Tensor  # (B, 3, H, W) float in [-1, 1]
    captions: list[str]


def captioned_batch(photos: Photos, plan: CropPlan, *, seed: int, step: int) -> Crops:
    """Crops with the describer's caption of each."""
    pixels = crop_batch(photos, plan, seed=seed, step=step)
    return Crops(to_float(pixels), [describe(Image.fromarray(np.asarray(p))) for p in pixels])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage1Loss:
    """Weights of the terms.

    Attributes:
        pixel_share: Share of each batch that is decoded to pixels (0: latents only).
        feature_share: Share of those crops on which the perceptual terms are computed, those
            of the highest guidance.
        whole_flow: Share of samples at t = 1, where one step has to do it all; the others are
            uniform in (0, 1).
        perceptual: Weight of the feature distance at the least and the highest guidance.
        texture: Weight of the texture energy at the highest guidance; it is zero at the least.
        structure: Weight of the structure distance.
        pixel_relief: Share of the pixel term that the highest guidance takes away.
        tune_painter: Train the autoencoder's decoder along, on what the flow gives it.
        freeze_start: Train the transformer and the text encoder alone.
        own_path: Few-step distillation: see `Stage1System._own_path`.
        freeze_tokens: True once the entropy model is trained on the tokens.
    """

    start: float = 0.3
    flow: float = 1.0
    commitment: float = 0.1
    pixel_share: float = 1.0
    feature_share: float = 0.5
    pixel: float = 6.0
    whole_flow: float = 0.85
    perceptual: tuple[float, float] = (0.05, 0.6)
    texture: float = 0.0
    structure: float = 0.0
    pixel_relief: float = 0.0
    tune_painter: bool = False
    freeze_tokens: bool = False
    freeze_start: bool = False
    own_path: bool = False


@dataclass
class Stage1Parts:
    """The modules of one rate; the autoencoder is frozen."""

    vae: LatentAutoencoder
    encoder: HyperEncoder
    quantizer: TrainingQuantizer
    decoder: HyperDecoder
    text: TextEncoder
    flow: FlowModel


def _random_guidance(count: int) -> Tensor:
    """(B,) float, falling: a third each at the least, at the highest, and anywhere between."""
    u = (1.5 * torch.rand(count) * 2 - 1).clamp(0, 1)
    return (1 + (TOLD_MAX - 1) * u).sort(descending=True).values


def texture_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """(B,) float: how much the local strength of the first three activations differs.

    Strength is the root mean square of a channel over 6 x 6 cells. Other than a distance between
    activations it does not ask for the texture to be in place, so that blur never pays.
    """
    terms = []
    for x, y in zip(a[:3], b[:3], strict=True):
        made, real = (F.avg_pool2d(v.float().square(), 6, 3).add(1e-3).sqrt() for v in (x, y))
        terms.append((made - real).abs().mean(dim=(1, 2, 3)) / real.mean(dim=(1, 2, 3)))
    return torch.stack(terms).mean(dim=0)


class Stage1System(nn.Module):
    """The parts of one rate and their loss."""

    def __init__(
        self, parts: Stage1Parts, loss: Stage1Loss, features: SqueezeNetFeatures | None
    ) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder = parts.encoder, parts.quantizer, parts.decoder
        self.text, self.flow = parts.text, parts.flow
        self.weights = loss
        # In a list: frozen, and therefore no part of the checkpoint.
        self._frozen = [parts.vae.requires_grad_(False).eval(), features]
        if loss.freeze_tokens:
            self.encoder.requires_grad_(False)
        if loss.freeze_start:
            self.decoder.requires_grad_(False)
        if loss.tune_painter:
            self.painter = parts.vae.vae.decoder.requires_grad_(True)

    @property
    def vae(self) -> LatentAutoencoder:
        vae = self._frozen[0]
        assert isinstance(vae, LatentAutoencoder)
        return vae

    def conditions(self, codes: Tensor, text: TextEmbedding, guidance: Tensor) -> Conditions:
        told = guidance_features(guidance, self.decoder.guidance_width)
        start, features = self.decoder(codes, told)
        return Conditions(start, features, text)

    def forward(self, batch: Crops, progress: float) -> StepLoss:
        device = next(self.encoder.parameters()).device
        x = batch.pixels.to(device)
        with torch.no_grad():
            z = self.vae.encode(x)
        b = z.shape[0]
        if self.weights.freeze_tokens:
            with torch.no_grad():
                tokens = self.quantizer.quantizer.tokens(self.encoder(z))
            codes, commitment = self.quantizer.quantizer.lookup(tokens), z.new_zeros(())
        else:
            codes, _, commitment = self.quantizer(self.encoder(z))
        dropped = torch.rand(b) < TEXT_DROP
        captions = ["" if drop else c for c, drop in zip(batch.captions, dropped, strict=True)]
        guidance = _random_guidance(b).to(device)
        c = self.conditions(codes, self.text.encode(captions), guidance)
        w = self.weights
        t = torch.where(
            torch.rand(b, device=device) < w.whole_flow, 1.0, torch.rand(b, device=device)
        )
        t = t.clamp_min(0.02)
        estimate, flow_loss = self._flow(z, t, c, guidance)
        start_loss = F.mse_loss(c.start, z)
        loss = w.flow * flow_loss + w.start * start_loss + w.commitment * commitment
        logs = {
            "flow": flow_loss.item(),
            "start": start_loss.item(),
            "code_bits": self.quantizer.entropy_bits(),
        }
        if w.pixel_share:
            extra, more = self._pixels(x, estimate, guidance)
            loss, logs = loss + extra, {**logs, **more}
        return StepLoss(loss, logs)

    def _flow(self, z: Tensor, t: Tensor, c: Conditions, guidance: Tensor) -> tuple[Tensor, Tensor]:
        """Flow-matching loss, and the latent that the velocity points at."""
        first = self.flow.first(c, torch.randn_like(z))
        tt = t[:, None, None, None]
        if self.weights.own_path:
            return self._own_path(z, t, c, guidance, first)
        x_t = (1 - tt) * z + tt * first
        v = self.flow(x_t, t, c, guidance)
        n2 = (1 - tt) ** 2 + tt**2
        # (n / s)^2 undoes the scale of the network's output: every t weighs the same.
        error = (v - (first - z)).square() * n2 / self.flow.config.noise_scale**2
        return x_t - tt * v, error.mean()

    def _own_path(
        self, z: Tensor, t: Tensor, c: Conditions, guidance: Tensor, first: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same from where the sampler's own first step leads, instead of from the truth.

        Few Euler steps meet no other states than these: a network this small, trained on true
        interpolations alone, takes its own errors for texture.
        """
        tt = t[:, None, None, None]
        with torch.no_grad():
            whole = torch.ones_like(t)
            reached = first - self.flow(first, whole, c, guidance)
        x_t = (1 - tt) * reached + tt * first
        estimate = x_t - tt * self.flow(x_t, t, c, guidance)
        u = (guidance - 1) / (TOLD_MAX - 1)
        error = (estimate - z).square().mean(dim=(1, 2, 3)) / self.flow.config.noise_scale**2
        return estimate, ((1 - self.weights.pixel_relief * u) * error).mean()

    def _pixels(
        self, x: Tensor, estimate: Tensor, guidance: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        w, features = self.weights, self._frozen[1]
        n = math.ceil(w.pixel_share * x.shape[0])
        y = self.vae.decode(estimate[:n])
        u = (guidance[:n] - 1) / (TOLD_MAX - 1)
        mse = (y - x[:n]).square().mean(dim=(1, 2, 3))
        loss = (w.pixel * (1 - w.pixel_relief * u) * mse).mean()
        logs = {"mse": mse.mean().item()}
        if w.structure:
            structure = structure_distance(y, x[:n]).mean()
            loss = loss + w.structure * structure
            logs["structure"] = structure.item()
        if isinstance(features, SqueezeNetFeatures):
            n = math.ceil(w.feature_share * n)
            with torch.no_grad():
                target = features(x[:n])
            made = features(y[:n])
            distance = feature_distance(made, target)
            low, high = w.perceptual
            u = u[:n]
            texture = texture_distance(made, target)
            loss = loss + ((low + (high - low) * u) * distance + w.texture * u * texture).mean()
            logs |= {"fd": distance.mean().item(), "texture": texture.mean().item()}
        return loss, logs

    @torch.inference_mode()
    def reconstruct(
        self, x: Tensor, caption: str, *, steps: int = 1, guidance: float = 1.0
    ) -> Tensor:
        """(1, 3, H, W) -> the same through the tokens, with the weights as they are now."""
        z = self.vae.encode(x)
        q = self.quantizer.quantizer
        codes = q.lookup(q.tokens(self.encoder(z)))
        for latent in sample(
            self.flow,
            self.conditions(codes, self.text.encode([caption]), x.new_full((1,), guidance)),
            self.text.encode([""]),
            times=sigmas(steps, shift=1.0),
            guidance=guidance,
            noise=draw_noise(tuple(z.shape), 0, z.device),
        ):
            z_hat = latent
        return self.vae.decode(z_hat)
