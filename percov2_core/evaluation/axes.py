"""What the measured columns are called, apart from the library that draws them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

AXES: Mapping[str, str] = MappingProxyType(
    {
        "bpp": "bits per pixel",
        "psnr": "PSNR, dB (higher is better)",
        "ms_ssim": "MS-SSIM (higher is better)",
        "lpips": "LPIPS AlexNet (lower is better)",
        "feature_distance": "SqueezeNet feature distance (lower is better)",
        "picorank": "PicoRank (lower is better)",
        "patch_swd": "patch SWD (lower is better)",
    }
)
