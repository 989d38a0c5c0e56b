"""Vector quantiser: hyper-latent vectors <-> tokens.

B batch, D code width, h x w token grid, K codebook size. Nearest neighbour by cosine, as the
quantiser was trained (vector-quantize-pytorch); only the codebook is needed afterwards.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

from percov2_core.errors import BitstreamError


class VectorQuantizer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A codebook of K unit vectors."""

    @register_to_config
    def __init__(self, codebook_size: int = 256, code_dim: int = 16) -> None:
        super().__init__()
        codebook = F.normalize(torch.randn(codebook_size, code_dim), dim=-1)
        self.codebook = torch.nn.Parameter(codebook, requires_grad=False)  # (K, D)

    def tokens(self, vectors: Tensor) -> Tensor:
        """(B, D, h, w) float -> (B, h, w) int64 in [0, K): the nearest code of each cell."""
        unit = F.normalize(vectors.float().movedim(1, -1), dim=-1)
        return (unit @ self.codebook.float().T).argmax(dim=-1)

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, h, w) int64 -> (B, D, h, w) float codes. The decoder's half of `tokens`.

        Raises:
            BitstreamError: if a token is outside the codebook.
        """
        size = self.codebook.shape[0]
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            raise BitstreamError(f"tokens must be in [0, {size}), got up to {int(tokens.max())}")
        return F.embedding(tokens, self.codebook.float()).movedim(-1, 1)
