"""Where two pictures of one size differ: maps (H, W), for the eye."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from percov2_core.evaluation.protocol import to_tensor
from percov2_core.metrics.perceptual import load_picorank

Map = NDArray[np.float64]


def absolute_error(a: Image.Image, b: Image.Image) -> Map:
    """In levels of 255, mean of the channels."""
    levels = [np.asarray(picture, dtype=np.float64) for picture in (a, b)]
    return np.asarray(np.abs(levels[0] - levels[1]).mean(axis=-1))


@torch.inference_mode()
def picorank(a: Image.Image, b: Image.Image) -> Map:
    """In units of the distance, whose mean over the picture is about PicoRank itself;
    ImageError under 32 px a side."""
    network = load_picorank()
    one, other = (network.features(to_tensor(picture) / 127.5 - 1) for picture in (a, b))
    where: Map = network.where(one, other, (a.height, a.width))[0].double().numpy()
    return where
