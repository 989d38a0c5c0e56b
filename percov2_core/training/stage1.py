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
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from torch import Tensor, nn

from percov2_core.config import COARSE, FINE, Level, check_choice, check_real
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
from percov2_core.painting import Painter
from percov2_core.searching import LevelModules
from percov2_core.training.loop import Groups, StepLoss
from percov2_core.training.quantize import TrainingQuantizer
from percov2_core.training.samples import Samples
from percov2_core.training.shown import Shown, expected_codes, shown_codes

_NEARNESS = 20.0  # of the soft choice between codes that the rate is taken of, per unit of cosine
SCORED_TIMES = (0.2, 0.5, 0.8, 1.0)
_TIME_FLOOR = {"whole": 0.02, "logistic": 1e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage1Loss:
    """Weights of the terms (pairs: at the least and the highest guidance), and how steps draw."""

    # Of the hyper-decoder's own estimate of the latent, by its squared error: the encoder's search
    # decodes it, and it gives the codes a direct gradient.
    start: float = 0.3
    flow: float = 1.0  # of the squared error of the velocity
    commitment: float = 0.1  # of the quantiser
    text_drop: float = 0.1  # share of samples that see the empty caption, for guidance
    # "whole": `whole_flow` of the samples at t = 1, where one step has to do it all, the others
    # uniform in (0, 1); "logistic": the logistic of a normal number, as Stable Diffusion 3 was
    # trained, moved towards the noisy end by `shift` (`sampler.shifted`).
    times: str = "whole"
    whole_flow: float = 0.85
    shift: float = 3.0
    pixel_share: float = 1.0  # of each batch: decoded to pixels; 0: latents only
    feature_share: float = 0.5  # of those, by the highest guidance: in the perceptual terms
    pixel: float = 6.0  # of the squared error of pixels
    perceptual: tuple[float, float] = (0.05, 0.6)  # of the feature distance
    texture: float = 0.0  # of the texture distance at the highest guidance; zero at the least
    structure: float = 0.0  # of the structure distance
    meaning: tuple[float, float] = (0.0, 0.0)  # of the distance of EfficientNet-Lite0's features
    pixel_relief: float = 0.0  # share of the pixel term that the highest guidance takes away
    tune_autoencoder: bool = False  # train its decoder along, on what the flow gives it
    freeze_tokens: bool = False  # once the entropy model is trained on them
    fixed_codebook: bool = False  # train the hyper-encoders for the codes that there are
    rate: float = 0.0  # with it: of the bits of a fine token that the entropy model has to tell
    own_path: bool = False  # few-step distillation, see `Stage1._flow`

    def __post_init__(self) -> None:
        check_real("text_drop", self.text_drop, 0, 1)
        check_choice("times", self.times, _TIME_FLOOR)
        if self.shift <= 0:
            raise ConfigError(f"shift must be above 0, got {self.shift}")


class _Quantised(NamedTuple):
    codes: Tensor  # (B, D, h, w) float, gradient passed straight through
    tokens: Tensor  # (B, h, w) int64
    loss: Tensor  # () float, commitment
    unit: Tensor  # (B, D, h, w) float, vectors of the hyper-encoder, of unit length


class Stage1(nn.Module):
    """Levels and painter with their loss."""

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
        encoders: TextEmbedding | None = None,
        prior: MaskedImageModel | None = None,
        vae: LatentAutoencoder | None = None,
        features: SqueezeNetFeatures | None = None,
        meaning: EfficientNetLite0 | None = None,
    ) -> None:
        """For `mean_use`, by level, and `warmup` see `TrainingQuantizer`.
        `empty` is the caption that is not there, where a cache embeds the captions, and `encoders`
        says whose each number of an embedding is; `prior` says
        what stands for fine tokens that were not sent (None: nothing does). Samples that are pixels
        need `vae`, the perceptual terms `features` and `meaning`."""
        super().__init__()
        self.levels, self.painter = levels, painter
        self.encoders, self.quantizers = nn.ModuleDict(), nn.ModuleDict()
        for name, level in levels.items():
            self.encoders[name] = level.encoder.train().requires_grad_(not loss.freeze_tokens)
            moving = TrainingQuantizer(level.quantizer, warmup=warmup, mean_use=mean_use[name])
            self.quantizers[name] = moving
        self.decoder = painter.decoder.train().requires_grad_(True)
        self.flow = painter.flow.train()
        if isinstance(painter.text, TextEncoder):
            self.text = painter.text
        self.weights, self.shown = loss, shown
        for module in filter(None, (vae, prior)):
            module.requires_grad_(False).eval()
        # In a tuple: frozen, and therefore no part of the checkpoint.
        self._frozen = (vae, features, empty, meaning, prior, encoders)
        if loss.tune_autoencoder and vae:
            self.pixels = vae.vae.decoder.requires_grad_(True)
        trained = {f"flow.{name}" for name, p in self.flow.named_parameters() if p.requires_grad}
        # A frozen base's weights, which do not change.
        self.unsaved = frozenset(f"flow.{name}" for name in self.flow.state_dict()) - trained

    @property
    def vae(self) -> LatentAutoencoder:
        assert self._frozen[0] is not None
        return self._frozen[0]

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
        if not (w.freeze_tokens or w.fixed_codebook):
            for name, quantizer in self.quantizers.items():
                logs[f"{name}_bits"] = cast(TrainingQuantizer, quantizer).entropy_bits()
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
        fine, coarse = (self._quantised(level, z) for level in (FINE, COARSE))
        unknown, with_coarse = self.shown.draw((fine.tokens.shape[1], fine.tokens.shape[2]), rng)
        cost, expected, prior = fine.loss + coarse.loss, None, self._frozen[4]
        blind = rng.random() < self.shown.blind or not unknown.any()
        if isinstance(prior, MaskedImageModel) and not blind:
            quantizer = self.levels[FINE.name].quantizer
            above = coarse.tokens if with_coarse else None
            expected, bits = expected_codes(
                prior, quantizer, fine.tokens, above, unknown, batch.captions
            )
            if self.weights.rate:
                near = fine.unit.movedim(1, -1) @ quantizer.codebook.float().T  # (B, h, w, K)
                rate = ((_NEARNESS * near).softmax(-1) * bits).sum(-1)  # (B, h, w)
                rate = rate[:, torch.from_numpy(unknown).to(z.device)].mean()
                cost = cost + self.weights.rate / self.weights.commitment * rate
        # Times zero: several processes want a gradient for every parameter.
        parents = coarse.codes * float(with_coarse)
        return shown_codes(fine.codes, unknown, parents, expected=expected), cost

    def _quantised(self, level: Level, z: Tensor) -> _Quantised:
        encoder, quantizer = self.encoders[level.name], self.levels[level.name].quantizer
        vectors = encoder(z)
        unit = F.normalize(vectors.float(), dim=1)
        tokens = quantizer.tokens(vectors.detach())
        nearest = quantizer.lookup(tokens)
        if self.weights.freeze_tokens or not self.training:
            return _Quantised(nearest, tokens, z.new_zeros(()), unit)
        if self.weights.fixed_codebook:
            loss = F.mse_loss(unit, nearest) * unit.shape[1]
            return _Quantised(unit + (nearest - unit).detach(), tokens, loss, unit)
        codes, loss = self.quantizers[level.name](vectors)
        return _Quantised(codes, tokens, loss, unit)

    def _codes(self, z: Tensor) -> Codes:
        """Codes of a whole file."""
        fine, coarse = (self._quantised(level, z).codes for level in (FINE, COARSE))
        return Codes(fine, torch.ones_like(fine[:, :1]), coarse)

    def _conditions(self, codes: Codes, text: TextEmbedding, guidance: Tensor) -> Conditions:
        told = guidance_features(guidance, self.decoder.guidance_width)
        start, features = self.decoder(codes, told)
        return Conditions(start, features, text)

    def _text(self, batch: Samples, device: torch.device) -> TextEmbedding:
        """What the captions say, some of them replaced by the empty one. Each text encoder is
        dropped by itself, as Stable Diffusion 3 was trained (Esser et al. 2024): all of them in
        `text_drop` of the samples, which of three is 46 % each."""
        if batch.text is None:
            both = self.text.encode([*batch.captions, ""])
            text, empty = TextEmbedding(*(v[:-1] for v in both)), [v[-1:] for v in both]
        else:
            assert isinstance(self._frozen[2], TextEmbedding)
            text, empty = send_to_device((batch.text, self._frozen[2]), device)
        whose = [torch.zeros(v.shape[1:], dtype=torch.int64) for v in text]
        if isinstance(self._frozen[5], TextEmbedding):
            whose = [*self._frozen[5]]
        count = int(whose[0].max()) + 1
        rate = self.weights.text_drop ** (1 / count)
        dropped = torch.rand(len(batch), count, device=device) < rate
        parts = zip(whose, empty, text, strict=True)
        return TextEmbedding(*(torch.where(dropped[:, w.to(device)], e, t) for w, e, t in parts))

    def _flow(
        self, z: Tensor, t: Tensor, c: Conditions, guidance: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The latent that the velocity points at, and the flow-matching loss.
        With `own_path`, times are those of a path to where the sampler's first step leads, instead
        of to the truth. Few Euler steps meet no other states than these: a network this small,
        trained on true interpolations alone, takes its own errors for texture."""
        w, config, tt = self.weights, self.flow.config, t[:, None, None, None]
        first, end = self.flow.first(c, noise), z
        if w.own_path:
            with torch.no_grad():
                end = first - self.flow(first, torch.ones_like(t), c, guidance)
        x_t = (1 - tt) * end + tt * first
        v = self.flow(x_t, t, c, guidance)
        estimate = x_t - tt * v
        if w.own_path:
            error = (estimate - z).square().mean(dim=(1, 2, 3)) / config.noise_scale**2
            return estimate, ((1 - _between((0, w.pixel_relief), guidance)) * error).mean()
        error = (v - (first - z)).square()
        if config.start == "codes":
            # (n / s)^2 undoes the scale of the network's output: every t weighs the same.
            error = error * ((1 - tt) ** 2 + tt**2) / config.noise_scale**2
        return estimate, error.mean()

    def _pixels(self, x: Tensor, estimate: Tensor, guidance: Tensor) -> StepLoss:
        w, features, meaning = self.weights, self._frozen[1], self._frozen[3]
        n = math.ceil(w.pixel_share * x.shape[0])
        y = self.vae.decode(estimate[:n])
        mse = (y - x[:n]).square().mean(dim=(1, 2, 3))
        relief = _between((0, w.pixel_relief), guidance[:n])
        loss, logs = (w.pixel * (1 - relief) * mse).mean(), {"mse": mse.mean().item()}
        if w.structure:
            structure = structure_distance(y, x[:n]).mean()
            loss = loss + w.structure * structure
            logs["structure"] = structure.item()
        if isinstance(features, SqueezeNetFeatures):
            n = math.ceil(w.feature_share * n)
            with torch.no_grad():
                target = features(x[:n])
            made = features(y[:n])
            distance, texture = feature_distance(made, target), _texture_distance(made, target)
            perceptual = _between(w.perceptual, guidance[:n]) * distance
            loss = loss + (perceptual + _between((0, w.texture), guidance[:n]) * texture).mean()
            logs |= {"fd": distance.mean().item(), "texture": texture.mean().item()}
        if isinstance(meaning, EfficientNetLite0):
            # At half the size: what things are, not how they are textured.
            with torch.no_grad():
                target = meaning.features(F.avg_pool2d(x[:n], 2))
            distance = feature_distance(meaning.features(F.avg_pool2d(y[:n], 2)), target)
            loss = loss + (_between(w.meaning, guidance[:n]) * distance).mean()
            logs["meaning"] = distance.mean().item()
        return StepLoss(loss, logs)

    def _scored(self, batch: Samples) -> StepLoss:
        """Squared error of the velocity at fixed times, with the same noise every time."""
        _, z = self._latents(batch)
        assert batch.text is not None
        ones = torch.ones(len(z), device=z.device)
        c = self._conditions(self._codes(z), send_to_device(batch.text, z.device), ones)
        noise = draw_noise(tuple(z.shape), 0, z.device)
        errors = [self._flow(z, time * ones, c, ones, noise)[1] for time in SCORED_TIMES]
        logs = {f"flow_{t:g}": e.item() for t, e in zip(SCORED_TIMES, errors, strict=True)}
        return StepLoss(torch.stack(errors).mean(), logs)

    @torch.inference_mode()
    def reconstruct(self, x: Tensor, caption: str, guidance: float) -> Tensor:
        """(1, 3, H, W) -> the same through the tokens and one step of the flow."""
        x = x.to(self.vae.device)
        z = self.vae.encode(x)
        text, null = (self.text.encode([words]) for words in (caption, ""))
        c = self._conditions(self._codes(z), text, x.new_full((1,), guidance))
        noise = draw_noise(tuple(z.shape), 0, z.device)
        *_, z_hat = sample(self.flow, c, null, times=sigmas(1, 1.0), guidance=guidance, noise=noise)
        assert z_hat is not None  # the last of a step is the latent
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


def _between(ends: tuple[float, float], guidance: Tensor) -> Tensor:
    """(B,) float: a weight that goes evenly from the least to the highest guidance."""
    u, (low, high) = (guidance - 1) / (TOLD_MAX - 1), ends
    return low + (high - low) * u


def _texture_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """(B,) float: how much the local strength of the first three activations differs.
    Strength is the root mean square of a channel over 6 x 6 cells. Other than a distance between
    activations it does not ask for the texture to be in place, so that blur never pays."""
    terms = []
    for x, y in zip(a[:3], b[:3], strict=True):
        made, real = (F.avg_pool2d(v.float().square(), 6, 3).add(1e-3).sqrt() for v in (x, y))
        terms.append((made - real).abs().mean(dim=(1, 2, 3)) / real.mean(dim=(1, 2, 3)))
    return torch.stack(terms).mean(dim=0)


def mean_scores(system: nn.Module, batches: Sequence[Samples]) -> dict[str, float]:
    """Means over samples of what a `Stage1` in evaluation says of each batch."""
    rows = [(system(batch, 1.0).logs, len(batch)) for batch in batches]
    count = sum(size for _, size in rows)
    means = {name: sum(logs[name] * size for logs, size in rows) / count for name in rows[0][0]}
    return {name: round(mean, 5) for name, mean in means.items()}


def parameter_groups(module: nn.Module, *, new_scale: float) -> Groups:
    """A base's own weights at the run's learning rate, what starts fresh at a multiple of it."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    base = [name for name in trained if name.startswith("flow.") and "lora_" not in name]
    new = [p for name, p in trained.items() if name not in base]
    return [{"params": [trained[name] for name in base]}, {"params": new, "lr_scale": new_scale}]
