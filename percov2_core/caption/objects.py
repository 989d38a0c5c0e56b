"""What a network is sure to see, in front of the describer's sentence.

EfficientNet-Lite0 (see `metrics.meaning`) looks at the whole picture and at three squares along it:
a thing counts as much as the mean of its probability in the whole and in the best square. Classes
that share an everyday word are one thing.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from percov2_core import image_io
from percov2_core.caption import things
from percov2_core.caption.describer import describe
from percov2_core.metrics.meaning import SIDE_PX, load_network

# Least probability. In 968 training photos, none of ImageNet, NIPS 2017 or Caltech,
# it names 343 things, of which 313 were right when looked at by eye (91 %).
SURE = 0.5
_LONGEST = 3  # what is further from the middle of a long picture is not looked at


def tell(image: Image.Image) -> str:
    """Name the things in an RGB picture of any size, if there are any, and describe it.
    WeightsError if the package with the network's weights is not installed."""
    return things.join(things.Parted(name_things(image), describe(image)))


def name_things(image: Image.Image) -> tuple[str, ...]:
    """Up to `things.MOST` things that are in a picture, the surest first. WeightsError as there."""
    whole, *squares = (_seen(view) for view in _views(image))  # (words,)
    sure = (whole + np.max(squares or [whole], axis=0)) / 2
    words = tuple(things.counts())
    best = np.argsort(-sure, kind="stable")[: things.MOST]
    return tuple(words[i] for i in best if sure[i] >= SURE)


def _views(image: Image.Image) -> list[Image.Image]:
    """The whole picture, then its squares if it is none, each with a short side of 224 pixels."""
    small, most = ImageOps.cover(image, (SIDE_PX, SIDE_PX)), _LONGEST * SIDE_PX
    w, h = min(small.width, most), min(small.height, most)
    left, top = (small.width - w) // 2, (small.height - h) // 2
    corners = ((left + (w - SIDE_PX) * i // 2, top + (h - SIDE_PX) * i // 2) for i in range(3))
    boxes = [
        (left, top, left + w, top + h),
        *((x, y, x + SIDE_PX, y + SIDE_PX) for x, y in corners),
    ]
    return [small.crop(box) for box in dict.fromkeys(boxes)]


@torch.inference_mode()
def _seen(view: Image.Image) -> NDArray[np.float64]:
    """(words,) probability of each thing in one view."""
    network = load_network()
    x = image_io.to_tensor(view, 1).to(network.get_buffer("labels_bias").device)
    chances = network.see(x).logits[0].double().softmax(0).cpu().numpy()
    found = dict.fromkeys(things.counts(), 0.0)
    for word, chance in zip(things.classes(), chances, strict=True):
        if word:
            found[word] += chance
    return np.array(list(found.values()))
