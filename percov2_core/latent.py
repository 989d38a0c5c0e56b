"""Image <-> latent, through any diffusers autoencoder with 16 channels at 1/8.

B batch, H x W pixels (multiples of 8). Latents are scaled to about unit variance.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn


class LatentAutoencoder(nn.Module):
    """One face for `AutoencoderKL` (Stable Diffusion 3) and `AutoencoderDC` (embedded).

    `AutoencoderKL` works in blended tiles of its own size (1024 px a side as published) on
    anything longer, which bounds the memory of its activations.
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae
        if isinstance(vae, AutoencoderKL):
            vae.enable_tiling()
        config: Any = vae.config
        self.scale = float(config.scaling_factor)
        self.shift = float(config.get("shift_factor") or 0.0)

    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float in [-1, 1] -> (B, 16, H/8, W/8) float, the posterior mean.

        The mean and never a sample: the same picture must give the same file.
        """
        out = self.vae.encode(x.to(self.vae.dtype))
        mean: Tensor = out.latent if hasattr(out, "latent") else out.latent_dist.mode()
        return (mean.float() - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """(B, 16, H/8, W/8) float -> (B, 3, H, W) float, about [-1, 1], not clamped."""
        sample: Tensor = self.vae.decode((z / self.scale + self.shift).to(self.vae.dtype)).sample
        return sample.float()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
