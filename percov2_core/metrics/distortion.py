"""PSNR and MS-SSIM. Letters: B batch, H x W pixels."""

from __future__ import annotations

import pytorch_msssim
import torch
from torch import Tensor

from percov2_core.metrics import check_side

MS_SSIM_MIN_SIDE_PX = 161  # five scales of an 11 px window


def to_8bit(x: Tensor) -> Tensor:
    """(B, 3, H, W) float in [-1, 1] -> the same as whole numbers 0..255, as float."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(B, 3, H, W) float in [0, 255], twice -> (B,) PSNR in dB; inf where pictures are equal."""
    mse = (a.double() - b.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / mse)


def check_scales(x: Tensor) -> Tensor:
    """`x` if MS-SSIM can take it; ImageError if it is too small for five scales."""
    check_side("MS-SSIM", x.shape, least_px=MS_SSIM_MIN_SIDE_PX)
    return x


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """(B, 3, H, W) float in [0, 255], twice -> (B,) multi-scale SSIM (Wang et al. 2003)."""
    scores: Tensor = pytorch_msssim.ms_ssim(a.float(), b.float(), 255, size_average=False)
    return scores
