"""All metrics of a decoded picture against its original, and of a whole set. H x W pixels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from percov2_core.errors import ImageError, PerCoError, UnavailableError
from percov2_core.evaluation.protocol import Picture, to_tensor
from percov2_core.evaluation.rows import decoded_path
from percov2_core.metrics import METRICS, Scores
from percov2_core.metrics.distortion import check_scales, ms_ssim, psnr
from percov2_core.metrics.dists import load_dists
from percov2_core.metrics.features import SqueezeNetFeatures, feature_distance
from percov2_core.metrics.lpips import load_lpips
from percov2_core.metrics.meaning import cosine, label_kept, load_network
from percov2_core.metrics.perceptual import load_picorank
from percov2_core.metrics.swd import descriptors, set_swd, sliced_wasserstein

logger = logging.getLogger(__name__)

SQUEEZENET_ENVIRONMENT = "PERCOV2_SQUEEZENET_WEIGHTS"
MIN_PICTURES = 50  # below that, FID and KID say nothing
_INCEPTION_FEATURES = 2048


class _Metric(NamedTuple):
    """`compare(see(original), see(decoded))`; pictures are (1, 3, H, W) float in [0, 255]."""

    see: Callable[[Tensor], Any]
    compare: Callable[[Any, Any], Tensor]


class Seen(NamedTuple):
    """A picture as the metrics see it; what cannot take one this small is left out."""

    size: tuple[int, int]
    by: dict[str, Any]


class Judge:
    """Holds the metrics' networks."""

    def __init__(self, names: Iterable[str] = METRICS, *, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.unavailable: dict[str, str] = {}  # metric -> why it cannot be had here
        self._metrics: dict[str, _Metric] = {}
        for name in names:
            try:
                self._metrics[name] = _build(name, self.device)
            except PerCoError as error:
                self.unavailable[name] = str(error)

    @torch.inference_mode()
    def see(self, image: Image.Image) -> Seen:
        """What `score` needs of a picture; of an original it is computed once."""
        pixels, by = to_tensor(image).to(self.device), {}
        for name, metric in self._metrics.items():
            try:
                by[name] = metric.see(pixels)
            except ImageError as error:
                logger.info("%s: %s", name, error)
        return Seen(image.size, by)

    @torch.inference_mode()
    def score(self, original: Seen, image: Image.Image) -> Scores:
        """Compare a decoded picture with its original; ImageError if the sizes differ."""
        if image.size != original.size:
            (w, h), got = original.size, f"{image.width}x{image.height}"
            raise ImageError(f"decoded size must be {w}x{h}, got {got}")
        seen, metrics = self.see(image).by, self._metrics
        return Scores(**{n: float(metrics[n].compare(original.by[n], seen[n])) for n in seen})


def _build(name: str, device: torch.device) -> _Metric:
    if name == "psnr":
        return _Metric(lambda x: x, psnr)
    if name == "ms_ssim":
        return _Metric(check_scales, ms_ssim)
    if name == "patch_swd":
        return _Metric(descriptors, sliced_wasserstein)
    if name == "lpips":
        lpips = load_lpips().to(device)
        return _Metric(lambda x: lpips.taps(_signed(x)), lpips.compare)
    if name == "dists":
        dists = load_dists().to(device)
        return _Metric(lambda x: dists.taps(_signed(x)), dists.compare)
    if name == "picorank":
        picorank = load_picorank().to(device)
        return _Metric(lambda x: picorank.features(_signed(x)), picorank.compare)
    if name in ("label_kept", "meaning"):
        network = load_network().to(device)
        compare = label_kept if name == "label_kept" else cosine
        return _Metric(lambda x: network.see(_signed(x)), compare)
    if not (weights := os.environ.get(SQUEEZENET_ENVIRONMENT)):
        wanted = f"name squeezenet1_1_features.safetensors in {SQUEEZENET_ENVIRONMENT}"
        raise UnavailableError(f"The SqueezeNet feature distance is not shown: {wanted}")
    squeezenet = SqueezeNetFeatures(Path(weights)).to(device)
    return _Metric(lambda x: squeezenet(_signed(x)), feature_distance)


def _signed(x: Tensor) -> Tensor:
    return x / 127.5 - 1


def compare_sets(
    frame: pd.DataFrame, pictures: Sequence[Picture], out: Path, *, names: Sequence[str]
) -> pd.DataFrame:
    """One line per setting whose decoded pictures were kept below `out`, with the columns key,
    pictures, `names` (of set_swd, fid, kid), and note: why a number is missing."""
    lines = []
    for key in sorted(set(frame["key"])):
        files = [(picture, out / decoded_path(key, picture.name)) for picture in pictures]
        if not (pairs := [(picture, file) for picture, file in files if file.is_file()]):
            continue
        line: dict[str, Any] = {"key": key, "pictures": len(pairs)}
        if "set_swd" in names:
            line["set_swd"] = float(set_swd(*map(list, _tensors(pairs))))
        if "fid" in names or "kid" in names:
            try:
                line |= fid_kid(*_tensors(pairs), count=len(pairs))
            except PerCoError as error:
                line["note"] = str(error)
        lines.append(line)
    return pd.DataFrame(lines, columns=["key", "pictures", *names, "note"])


def _tensors(pairs: Sequence[tuple[Picture, Path]]) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
    originals = (to_tensor(picture.open()) for picture, _ in pairs)
    return originals, (to_tensor(Image.open(file)) for _, file in pairs)


def fid_kid(
    references: Iterable[Tensor], others: Iterable[Tensor], *, count: int
) -> dict[str, float]:
    """Two sets of `count` pictures (1, 3, H, W) float in [0, 255] -> `fid` and `kid`, the mean over
    subsets of half of them, by torchmetrics. ImageError if there are fewer than 50 pictures;
    UnavailableError if torchmetrics, torch-fidelity or the Inception weights are missing."""
    if count < MIN_PICTURES:
        raise ImageError(f"FID and KID need {MIN_PICTURES} pictures a side, got {count}")
    # Heavy and optional: only whoever asks for FID pays for it.
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        fid = FrechetInceptionDistance(feature=_INCEPTION_FEATURES)
        kid = KernelInceptionDistance(feature=_INCEPTION_FEATURES, subset_size=count // 2)
    except (ImportError, OSError) as error:
        wanted = "pip install torchmetrics torch-fidelity, which fetches Inception's weights"
        raise UnavailableError(f"FID and KID are unavailable: {wanted} ({error})") from error
    for pictures, real in ((references, True), (others, False)):
        for picture in pictures:
            fid.update(picture.byte(), real=real)
            kid.update(picture.byte(), real=real)
    return {"fid": float(fid.compute()), "kid": float(kid.compute()[0])}
