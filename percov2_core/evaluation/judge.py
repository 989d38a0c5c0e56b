"""All metrics of one decoded picture against its original. H x W pixels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from percov2_core.errors import ConfigError, ImageError, PerCoError, UnavailableError
from percov2_core.evaluation.protocol import to_tensor
from percov2_core.metrics.distortion import ms_ssim, psnr
from percov2_core.metrics.features import SqueezeNetFeatures, feature_distance
from percov2_core.metrics.lpips import load_lpips
from percov2_core.metrics.perceptual import load_picorank
from percov2_core.metrics.swd import descriptors, sliced_wasserstein

logger = logging.getLogger(__name__)

SQUEEZENET_ENVIRONMENT = "PERCOV2_SQUEEZENET_WEIGHTS"
METRICS = ("psnr", "ms_ssim", "lpips", "feature_distance", "picorank", "patch_swd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One picture's metrics; None where a metric was not asked for or cannot be had.

    Attributes:
        psnr: dB on 8-bit RGB, higher is better.
        ms_ssim: In [0, 1], higher is better.
        lpips: AlexNet v0.1, lower is better.
        feature_distance: Of SqueezeNet activations, in [0, 4], lower is better. The embedded
            model was trained with it.
        picorank: The bundled distance, lower is better.
        patch_swd: Realism of the detail, lower is better.
    """

    psnr: float | None = None
    ms_ssim: float | None = None
    lpips: float | None = None
    feature_distance: float | None = None
    picorank: float | None = None
    patch_swd: float | None = None


class Reference:
    """An original with what the metrics computed of it, so that each is computed once."""

    def __init__(self, image: Image.Image, device: torch.device) -> None:
        self.pixels = to_tensor(image).to(device)  # (1, 3, H, W) float in [0, 255]
        self._kept: dict[str, list[Tensor]] = {}

    def keep(self, name: str, make: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        if name not in self._kept:
            self._kept[name] = make(self.pixels)
        return self._kept[name]


Metric = Callable[[Reference, Tensor], Tensor]


class Judge:
    """Holds the metrics' networks.

    Attributes:
        unavailable: Metric -> why it cannot be had here.
    """

    def __init__(self, names: Iterable[str] = METRICS, *, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.unavailable: dict[str, str] = {}
        self._metrics: dict[str, Metric] = {}
        for name in names:
            if name not in METRICS:
                raise ConfigError(f"metric must be one of {', '.join(METRICS)}, got {name!r}")
            try:
                self._metrics[name] = _build(name, self.device)
            except PerCoError as error:
                self.unavailable[name] = str(error)

    @torch.inference_mode()
    def score(self, reference: Reference, image: Image.Image) -> Scores:
        """Compare a decoded picture with its original.

        A metric that cannot take a picture this small stays None.

        Raises:
            ImageError: if the sizes differ.
        """
        got = to_tensor(image).to(self.device)
        if got.shape != reference.pixels.shape:
            h, w = reference.pixels.shape[-2:]
            raise ImageError(f"decoded size must be {w}x{h}, got {image.width}x{image.height}")
        values: dict[str, float] = {}
        for name, metric in self._metrics.items():
            try:
                values[name] = float(metric(reference, got))
            except ImageError as error:
                logger.info("%s: %s", name, error)
        return Scores(**values)


def squeezenet_weights() -> Path:
    """The file that PERCOV2_SQUEEZENET_WEIGHTS names.

    Raises:
        UnavailableError: if the variable is not set.
    """
    named = os.environ.get(SQUEEZENET_ENVIRONMENT)
    if not named:
        raise UnavailableError(
            f"feature_distance is unavailable: name squeezenet1_1_features.safetensors in "
            f"{SQUEEZENET_ENVIRONMENT}"
        )
    return Path(named)


def _build(name: str, device: torch.device) -> Metric:
    if name == "psnr":
        return lambda reference, got: psnr(reference.pixels, got)
    if name == "ms_ssim":
        return lambda reference, got: ms_ssim(reference.pixels, got)
    if name == "patch_swd":
        return _patch_swd
    if name == "lpips":
        lpips = load_lpips().to(device)
        return lambda reference, got: lpips(_signed(reference.pixels), _signed(got))
    if name == "picorank":
        return _picorank(device)
    return _feature_distance(device)


def _signed(pixels: Tensor) -> Tensor:
    return pixels / 127.5 - 1


def _patch_swd(reference: Reference, got: Tensor) -> Tensor:
    return sliced_wasserstein(reference.keep("patch_swd", descriptors), descriptors(got))


def _picorank(device: torch.device) -> Metric:
    net = load_picorank().to(device)

    def measure(reference: Reference, got: Tensor) -> Tensor:
        kept = reference.keep("picorank", lambda x: net.features(_signed(x)))
        return net.compare(kept, net.features(_signed(got)))

    return measure


def _feature_distance(device: torch.device) -> Metric:
    net = SqueezeNetFeatures(squeezenet_weights()).to(device)

    def measure(reference: Reference, got: Tensor) -> Tensor:
        kept = reference.keep("feature_distance", lambda x: net(_signed(x)))
        return feature_distance(kept, net(_signed(got)))

    return measure
