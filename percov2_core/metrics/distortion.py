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
    """PSNR in dB on 8-bit RGB, per picture.

    Args:
        a, b: (B, 3, H, W) float in [0, 255].

    Returns:
        (B,) float; inf where the pictures are equal.
    """
    mse = (a.double() - b.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / mse)


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale SSIM (Wang et al. 2003) per picture, by pytorch-msssim.

    Args:
        a, b: (B, 3, H, W) float in [0, 255], both sides at least 161.

    Raises:
        ImageError: if the picture is too small for five scales.
    """
    check_side("MS-SSIM", a.shape, least_px=MS_SSIM_MIN_SIDE_PX)
    scores: Tensor = pytorch_msssim.ms_ssim(a.float(), b.float(), 255, size_average=False)
    return scores
