"""All metrics of one decoded picture against its original. H x W pixels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from percov2_core.config import check_choice
from percov2_core.errors import ImageError, PerCoError, UnavailableError
from percov2_core.evaluation.protocol import to_tensor
from percov2_core.metrics import METRICS, Scores
from percov2_core.metrics.distortion import ms_ssim, msssim_library, psnr
from percov2_core.metrics.features import SqueezeNetFeatures, feature_distance
from percov2_core.metrics.lpips import load_lpips
from percov2_core.metrics.perceptual import load_picorank
from percov2_core.metrics.swd import descriptors, sliced_wasserstein

logger = logging.getLogger(__name__)

SQUEEZENET_ENVIRONMENT = "PERCOV2_SQUEEZENET_WEIGHTS"


class Reference:
    """An original with what the metrics computed of it, so that each is computed once."""

    def __init__(self, image: Image.Image, device: torch.device) -> None:
        self.pixels = to_tensor(image).to(device)  # (1, 3, H, W) float in [0, 255]
        self._kept: dict[str, Any] = {}

    def seen(self, name: str, by: _Metric) -> Any:
        if name not in self._kept:
            self._kept[name] = by.see(self.pixels)
        return self._kept[name]


class _Metric(NamedTuple):
    """`compare(see(original), see(decoded))`; pictures are (1, 3, H, W) float in [0, 255]."""

    see: Callable[[Tensor], Any]
    compare: Callable[[Any, Any], Tensor]


class Judge:
    """Holds the metrics' networks.

    Attributes:
        unavailable: Metric -> why it cannot be had here.
    """

    def __init__(self, names: Iterable[str] = METRICS, *, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.unavailable: dict[str, str] = {}
        self._metrics: dict[str, _Metric] = {}
        for name in names:
            check_choice("metric", name, METRICS)
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
                kept = reference.seen(name, metric)
                values[name] = float(metric.compare(kept, metric.see(got)))
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


def _build(name: str, device: torch.device) -> _Metric:
    if name == "psnr":
        return _Metric(_pixels, psnr)
    if name == "ms_ssim":
        msssim_library()
        return _Metric(_pixels, ms_ssim)
    if name == "patch_swd":
        return _Metric(descriptors, sliced_wasserstein)
    if name == "lpips":
        lpips = load_lpips().to(device)
        return _Metric(lambda x: lpips.taps(_signed(x)), lpips.compare)
    if name == "picorank":
        picorank = load_picorank().to(device)
        return _Metric(lambda x: picorank.features(_signed(x)), picorank.compare)
    squeezenet = SqueezeNetFeatures(squeezenet_weights()).to(device)
    return _Metric(lambda x: squeezenet(_signed(x)), feature_distance)


def _pixels(x: Tensor) -> Tensor:
    return x


def _signed(x: Tensor) -> Tensor:
    return x / 127.5 - 1
