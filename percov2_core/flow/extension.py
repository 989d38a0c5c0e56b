"""More input channels for a trained transformer: room for the hyper-latent."""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel
from torch import nn


@torch.no_grad()
def extend_patch_embedding(
    transformer: SD3Transformer2DModel, extra_channels: int
) -> SD3Transformer2DModel:
    """Add input channels behind the others, in place: old weights kept, new ones zero.

    Before training the output therefore does not depend on what the new channels hold.

    Args:
        transformer: A trained network with C input channels.
        extra_channels: How many to add.

    Returns:
        The same object, with C + `extra_channels` input channels.
    """
    old = transformer.pos_embed.proj
    new = nn.Conv2d(
        old.in_channels + extra_channels,
        old.out_channels,
        old.kernel_size,
        stride=old.stride,
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    new.weight.zero_()
    new.weight[:, : old.in_channels] = old.weight
    if old.bias is not None and new.bias is not None:
        new.bias.copy_(old.bias)
    transformer.pos_embed.proj = new.requires_grad_(old.weight.requires_grad)
    transformer.register_to_config(in_channels=new.in_channels)
    return transformer
