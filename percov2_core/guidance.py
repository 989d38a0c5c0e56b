"""How a distilled network is told the guidance. B batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOLD_MAX = 4.0  # the most that a network is told; distillation goes as far


def guidance_features(guidance: Tensor, width: int) -> Tensor:
    """(B,) float guidance >= 1 -> (B, width) float: sines and cosines of log2(guidance)."""
    angles = torch.log2(guidance.clamp(1.0, TOLD_MAX))[:, None] * (
        math.pi / 4 * torch.arange(1, width // 2 + 1, device=guidance.device)
    )
    return torch.cat([angles.sin(), angles.cos()], dim=1)
