"""Stage 1 of the paper: hyper-encoders and quantisers of both levels, hyper-decoder, flow.

Each step sees another part of the files (`shown`), so that one painter paints every size. The same
loss, with frozen tokens and the masked image model beside it, trains the painter to the end.

One loss for both models. Rectified flow (Liu et al. 2022) from the flow's first sample, be it noise
or the hyper-decoder's start: x_t = (1 - t) z + t first, velocity first - z. The autoencoder is
frozen, and so are the text models of Stable Diffusion 3, whose work a cache holds.

The embedded model decodes what it paints as well: squared error on pixels, and a perceptual
distance whose weight grows with the guidance that the network is told, so that one network holds
the whole trade between distortion and perception. B batch, H x W pixels, h x w token grid, t time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percov2_core.codec import LevelModules, Painter
from percov2_core.config import COARSE, FINE, Level
from percov2_core.entropy.masked_model import MaskedImageModel
from percov2_core.errors import ConfigError
from percov2_core.flow.sampler import draw_noise, sample, shifted, sigmas
from percov2_core.flow.text import TextEmbedding, TextEncoder
from percov2_core.flow.transformer import TOLD_MAX, Conditions, guidance_features
from percov2_core.hyper.networks import Codes
from percov2_core.latent import LatentAutoencoder
from percov2_core.metrics.features import SqueezeNetFeatures, feature_distance
from percov2_core.metrics.meaning import EfficientNetLite0
from percov2_core.metrics.structure import structure_distance
from percov2_core.training.loop import StepLoss
from percov2_core.training.quantize import TrainingQuantizer
from percov2_core.training.samples import Samples
from percov2_core.training.shown import Shown, expected_codes, shown_codes

SCORED_TIMES = (0.2, 0.5, 0.8, 1.0)
_TIME_FLOOR = {"whole": 0.02, "logistic": 1e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage1Loss:
    """Weights of the terms, and how times and captions are drawn.

    Attributes:
        start: Of the squared error of the hyper-decoder's own estimate of the latent, which the
            encoder's search decodes and which gives the codes a direct gradient.
        flow: Of the squared error of the velocity.
        commitment: Of the quantiser.
        text_drop: Share of samples that see the empty caption, for guidance.
        times: "whole": `whole_flow` of the samples at t = 1, the others uniform in (0, 1);
            "logistic": the logistic of a normal number, as Stable Diffusion 3 was trained.
        whole_flow: Share of samples at t = 1, where one step has to do it all.
        shift: Of logistic times towards the noisy end, see `sampler.shifted`.
        pixel_share: Share of each batch that is decoded to pixels (0: latents only).
        feature_share: Share of those crops on which the perceptual terms are computed, those
            of the highest guidance.
        pixel: Of the squared error of pixels.
        perceptual: Weight of the feature distance at the least and the highest guidance.
        texture: Weight of the texture energy at the highest guidance; it is zero at the least.
        structure: Weight of the structure distance.
        meaning: Weight of the distance between features of EfficientNet-Lite0 at the least and the
            highest guidance.
        pixel_relief: Share of the pixel term that the highest guidance takes away.
        tune_autoencoder: Train the autoencoder's decoder along, on what the flow gives it.
        freeze_tokens: True once the entropy model is trained on the tokens.
        freeze_start: Train the transformer and the text encoder alone.
        own_path: Few-step distillation: see `Stage1._own_path`.
    """

    start: float = 0.3
    flow: float = 1.0
    commitment: float = 0.1
    text_drop: float = 0.1
    times: str = "whole"
    whole_flow: float = 0.85
    shift: float = 3.0
    pixel_share: float = 1.0
    feature_share: float = 0.5
    pixel: float = 6.0
    perceptual: tuple[float, float] = (0.05, 0.6)
    texture: float = 0.0
    structure: float = 0.0
    meaning: tuple[float, float] = (0.0, 0.0)
    pixel_relief: float = 0.0
    tune_autoencoder: bool = False
    freeze_tokens: bool = False
    freeze_start: bool = False
    own_path: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.text_drop <= 1:
            raise ConfigError(f"text_drop must be in [0, 1], got {self.text_drop}")
        if self.shift <= 0:
            raise ConfigError(f"shift must be above 0, got {self.shift}")
        if self.times not in _TIME_FLOOR:
            raise ConfigError(f"times must be one of {', '.join(_TIME_FLOOR)}, got {self.times!r}")


class Stage1(nn.Module):
    """Levels and painter with their loss.

    Attributes:
        unsaved: Names of weights of the transformer that do not change: a frozen base's.
    """

    def __init__(
        self,
        levels: Mapping[str, LevelModules],
        painter: Painter,
        loss: Stage1Loss,
        shown: Shown,
        *,
        mean_use: Mapping[str, float],
        warmup: int = 250,
        empty: TextEmbedding | None = None,
        prior: MaskedImageModel | None = None,
        vae: LatentAutoencoder | None = None,
        features: SqueezeNetFeatures | None = None,
        meaning: EfficientNetLite0 | None = None,
    ) -> None:
        """Set what is to be trained.

        Args:
            mean_use, warmup: See `TrainingQuantizer`; the first by level.
            empty: The caption that is not there, where a cache embeds the captions.
            prior: Says what stands for fine tokens that were not sent; None: nothing does.
            vae: Needed where samples are pixels.
            features, meaning: For the perceptual terms.
        """
        super().__init__()
        self.levels, self.painter = levels, painter
        self.encoders = nn.ModuleDict(
            {n: m.encoder.train().requires_grad_(not loss.freeze_tokens) for n, m in levels.items()}
        )
        self.quantizers = nn.ModuleDict(
            {
                name: TrainingQuantizer(m.quantizer, warmup=warmup, mean_use=mean_use[name])
                for name, m in levels.items()
            }
        )
        self.decoder = painter.decoder.train().requires_grad_(not loss.freeze_start)
        self.flow = painter.flow.train()
        if isinstance(painter.text, TextEncoder):
            self.text = painter.text
        self.weights, self.shown = loss, shown
        # In a list: frozen, and therefore no part of the checkpoint.
        frozen_vae = vae.requires_grad_(False).eval() if vae else None
        frozen_prior = prior.requires_grad_(False).eval() if prior else None
        self._frozen = [frozen_vae, features, empty, meaning, frozen_prior]
        if loss.tune_autoencoder and vae:
            self.pixels = vae.vae.decoder.requires_grad_(True)
        trained = {f"flow.{name}" for name, p in self.flow.named_parameters() if p.requires_grad}
        self.unsaved = frozenset(f"flow.{name}" for name in self.flow.state_dict()) - trained

    @property
    def vae(self) -> LatentAutoencoder:
        vae = self._frozen[0]
        assert isinstance(vae, LatentAutoencoder)
        return vae

    def forward(self, batch: Samples, progress: float) -> StepLoss:
        if not self.training:
            return self._scored(batch)
        w, x, z = self.weights, *self._latents(batch)
        codes, commitment = self._coded(batch, z)
        guidance = _random_guidance(len(z)).to(z.device)
        c = self._conditions(codes, self._text(batch, z.device), guidance)
        t = draw_times(len(z), w, z.device)
        estimate, flow_loss = self._flow(z, t, c, guidance, torch.randn_like(z))
        start_loss = F.mse_loss(c.start, z)
        loss = w.flow * flow_loss + w.start * start_loss + w.commitment * commitment
        logs = {"flow": flow_loss.item(), "start": start_loss.item()}
        if not w.freeze_tokens:
            logs |= {
                f"{name}_bits": cast(TrainingQuantizer, q).entropy_bits()
                for name, q in self.quantizers.items()
            }
        if x is not None and w.pixel_share:
            extra, more = self._pixels(x, estimate, guidance)
            loss, logs = loss + extra, {**logs, **more}
        return StepLoss(loss, logs)

    def _latents(self, batch: Samples) -> tuple[Tensor | None, Tensor]:
        """Pixels if there are any, and latents."""
        device = next(self.encoders.parameters()).device
        if batch.pixels is None:
            assert batch.latent is not None
            return None, batch.latent.to(device)
        x = batch.pixels.to(device)
        with torch.no_grad():
            return x, self.vae.encode(x)

    def _coded(self, batch: Samples, z: Tensor) -> tuple[Codes, Tensor]:
        """Codes of a random part of a file, and what committing to them costs."""
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        (fine, tokens, a), (coarse, parents, b) = (self._quantised(n, z) for n in (FINE, COARSE))
        unknown, with_coarse = self.shown.draw((fine.shape[2], fine.shape[3]), rng)
        expected, prior = None, self._frozen[4]
        blind = rng.random() < self.shown.blind or not unknown.any()
        if isinstance(prior, MaskedImageModel) and not blind:
            quantizer, above = self.levels[FINE.name].quantizer, parents if with_coarse else None
            expected = expected_codes(prior, quantizer, tokens, above, unknown, batch.captions)
        # Times zero: several processes want a gradient for every parameter.
        shown = shown_codes(fine, unknown, coarse * float(with_coarse), expected=expected)
        return shown, a + b

    def _quantised(self, level: Level, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D, h, w) codes of a level, (B, h, w) tokens, () commitment."""
        encoder, quantizer = self.encoders[level.name], self.levels[level.name].quantizer
        if self.weights.freeze_tokens or not self.training:
            with torch.no_grad():
                tokens = quantizer.tokens(encoder(z))
                return quantizer.lookup(tokens), tokens, z.new_zeros(())
        vectors = encoder(z)
        with torch.no_grad():
            tokens = quantizer.tokens(vectors)
        codes, commitment = self.quantizers[level.name](vectors)
        return codes, tokens, commitment

    def _codes(self, z: Tensor) -> Codes:
        """Codes of a whole file."""
        fine, coarse = (self._quantised(n, z)[0] for n in (FINE, COARSE))
        unknown = np.zeros(tuple(fine.shape[2:]), dtype=np.bool_)
        return shown_codes(fine, unknown, coarse, expected=None)

    def _conditions(self, codes: Codes, text: TextEmbedding, guidance: Tensor) -> Conditions:
        told = guidance_features(guidance, self.decoder.guidance_width)
        start, features = self.decoder(codes, told)
        return Conditions(start, features, text)

    def _text(self, batch: Samples, device: torch.device) -> TextEmbedding:
        """What the captions say, some of them replaced by the empty one."""
        if batch.text is None:
            both = self.text.encode([*batch.captions, ""])
            text, empty = TextEmbedding(*(v[:-1] for v in both)), [v[-1:] for v in both]
        else:
            assert isinstance(self._frozen[2], TextEmbedding)
            text = TextEmbedding(*(v.to(device) for v in batch.text))
            empty = [v.to(device) for v in self._frozen[2]]
        dropped = torch.rand(len(batch), device=device) < self.weights.text_drop
        return TextEmbedding(
            torch.where(dropped[:, None, None], empty[0], text.sequence),
            torch.where(dropped[:, None], empty[1], text.pooled),
        )

    def _flow(
        self, z: Tensor, t: Tensor, c: Conditions, guidance: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The latent that the velocity points at, and the flow-matching loss."""
        first = self.flow.first(c, noise)
        if self.weights.own_path:
            return self._own_path(z, t, c, guidance, first)
        tt = t[:, None, None, None]
        x_t = (1 - tt) * z + tt * first
        v = self.flow(x_t, t, c, guidance)
        error = (v - (first - z)).square()
        if self.flow.config.start == "codes":
            # (n / s)^2 undoes the scale of the network's output: every t weighs the same.
            error = error * ((1 - tt) ** 2 + tt**2) / self.flow.config.noise_scale**2
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
            texture = _texture_distance(made, target)
            loss = loss + ((low + (high - low) * u) * distance + w.texture * u * texture).mean()
            logs |= {"fd": distance.mean().item(), "texture": texture.mean().item()}
        if isinstance(meaning := self._frozen[3], EfficientNetLite0):
            # At half the size: what things are, not how they are textured.
            with torch.no_grad():
                target = meaning.features(F.avg_pool2d(x[:n], 2))
            distance = feature_distance(meaning.features(F.avg_pool2d(y[:n], 2)), target)
            low, high = w.meaning
            loss = loss + ((low + (high - low) * u[:n]) * distance).mean()
            logs["meaning"] = distance.mean().item()
        return loss, logs

    def _scored(self, batch: Samples) -> StepLoss:
        """Squared error of the velocity at fixed times, with the same noise every time."""
        _, z = self._latents(batch)
        assert batch.text is not None
        text = TextEmbedding(*(v.to(z.device) for v in batch.text))
        ones = torch.ones(len(z), device=z.device)
        c = self._conditions(self._codes(z), text, ones)
        noise = draw_noise(tuple(z.shape), 0, z.device)
        errors = [self._flow(z, time * ones, c, ones, noise)[1] for time in SCORED_TIMES]
        logs = {f"flow_{t:g}": e.item() for t, e in zip(SCORED_TIMES, errors, strict=True)}
        return StepLoss(torch.stack(errors).mean(), logs)

    @torch.inference_mode()
    def reconstruct(self, x: Tensor, caption: str, guidance: float) -> Tensor:
        """(1, 3, H, W) -> the same through the tokens and one step of the flow."""
        x = x.to(self.vae.device)
        z = self.vae.encode(x)
        text = self.text.encode([caption])
        *_, z_hat = sample(
            self.flow,
            self._conditions(self._codes(z), text, x.new_full((1,), guidance)),
            self.text.encode([""]),
            times=sigmas(1, shift=1.0),
            guidance=guidance,
            noise=draw_noise(tuple(z.shape), 0, z.device),
        )
        return self.vae.decode(z_hat)


def draw_times(count: int, loss: Stage1Loss, device: torch.device) -> Tensor:
    """(B,) float in (0, 1]."""
    if loss.times == "logistic":
        t = shifted(torch.randn(count, device=device).sigmoid(), loss.shift)
    else:
        whole = torch.rand(count, device=device) < loss.whole_flow
        t = torch.where(whole, 1.0, torch.rand(count, device=device))
    return t.clamp_min(_TIME_FLOOR[loss.times])


def _random_guidance(count: int) -> Tensor:
    """(B,) float, falling: a third each at the least, at the highest, and anywhere between."""
    u = (1.5 * torch.rand(count) * 2 - 1).clamp(0, 1)
    return (1 + (TOLD_MAX - 1) * u).sort(descending=True).values


def _texture_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """(B,) float: how much the local strength of the first three activations differs.

    Strength is the root mean square of a channel over 6 x 6 cells. Other than a distance between
    activations it does not ask for the texture to be in place, so that blur never pays.
    """
    terms = []
    for x, y in zip(a[:3], b[:3], strict=True):
        made, real = (F.avg_pool2d(v.float().square(), 6, 3).add(1e-3).sqrt() for v in (x, y))
        terms.append((made - real).abs().mean(dim=(1, 2, 3)) / real.mean(dim=(1, 2, 3)))
    return torch.stack(terms).mean(dim=0)


def mean_scores(system: nn.Module, batches: Sequence[Samples]) -> dict[str, float]:
    """Means over samples of what a `Stage1` in evaluation says of each batch."""
    totals: dict[str, float] = {}
    for batch in batches:
        for name, value in system(batch, 1.0).logs.items():
            totals[name] = totals.get(name, 0.0) + value * len(batch)
    count = sum(map(len, batches))
    return {name: round(total / count, 5) for name, total in totals.items()}


def parameter_groups(module: nn.Module, *, new_scale: float) -> list[dict[str, Any]]:
    """A base's own weights at the run's learning rate, what starts fresh at a multiple of it."""
    base: list[nn.Parameter] = []
    new: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            fresh = not name.startswith("flow.") or "lora_" in name
            (new if fresh else base).append(parameter)
    return [{"params": base}, {"params": new, "lr_scale": new_scale}]
