"""A critic on the perceptual network's features (Projected GANs, Sauer et al. 2021).

B batch, C channels, h x w cells of an activation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

TAPS = (0, 1, 2, 4)  # conv1, fire3, fire5, fire7
WIDTHS = (64, 128, 256, 384)
_INNER = 64


class Critic(nn.Module):
    """Small heads that tell features of real pictures from those of painted ones, cell by cell."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_head(width) for width in WIDTHS)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Activations of the network -> (B, 1, h, w) for each tap, high where it looks real."""
        return [
            head(_normalised(features[tap])) for head, tap in zip(self.heads, TAPS, strict=True)
        ]

    def losses(
        self, made: Sequence[Tensor], real: Sequence[Tensor], weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hinge losses of the painter, whose samples have (B,) weights, and of the critic, () each.

        Either trains its own side alone: the painter looks through frozen heads.
        """
        frozen = {name: p.detach() for name, p in self.named_parameters()}
        judged = functional_call(self, frozen, (made,))
        liked = [(weight * j.float().mean(dim=(1, 2, 3))).mean() for j in judged]
        told = self([m.detach() for m in made]), self([r.detach() for r in real])
        wrong = [
            F.relu(1 + fake.float()).mean() + F.relu(1 - true.float()).mean()
            for fake, true in zip(*told, strict=True)
        ]
        return -torch.stack(liked).mean(), torch.stack(wrong).mean()


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, _INNER, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(_INNER, _INNER, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(_INNER, 1, 3, padding=1),
    )


def _normalised(x: Tensor) -> Tensor:
    """(B, C, h, w): each cell at length root of C; the feature distance compares directions too."""
    x = x.float()
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-3).rsqrt()
