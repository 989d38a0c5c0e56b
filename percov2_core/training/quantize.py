"""Training of the vector quantiser: moving averages, k-means start, dead-code revival.

The codebook moves as vector-quantize-pytorch moves it (van den Oord et al. 2017, appendix A.1, on
unit vectors). The first steps run unquantised; then k-means on the vectors collected so far (one
batch has fewer than there are codes) sets the codebook, which keeps a coarse grid from collapsing
to one code. B batch, D code width, K codebook size, h x w token grid.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

from percov2_core.hyper.networks import VectorQuantizer

_DECAY = 0.99
_DEAD_BELOW = 0.05  # of the mean use: such a code moves onto a vector of the batch
_KMEANS_ROUNDS = 12
_POOL, _POOL_STEPS = 8192, 16  # vectors collected for k-means, and the steps that they come from


class TrainingQuantizer(nn.Module):
    """Wraps the run-time quantiser and moves its codebook."""

    pool: Tensor
    seen: Tensor

    def __init__(self, quantizer: VectorQuantizer, *, warmup: int = 250, mean_use: float) -> None:
        """Go on from the quantiser's codebook, or set it afresh after `warmup` steps (if not 0).
        `mean_use`: tokens of a step on all processes, over K."""
        super().__init__()
        self.quantizer, self.warmup = quantizer, warmup
        k, d = quantizer.codebook.shape
        self.moving = Codebook(
            dim=d,
            codebook_size=k,
            kmeans_init=warmup > 0,
            kmeans_iters=_KMEANS_ROUNDS,
            decay=_DECAY,
            threshold_ema_dead_code=_DEAD_BELOW * mean_use,
            reset_cluster_size=mean_use,
            use_cosine_sim=True,
            use_ddp=dist.is_available() and dist.is_initialized(),
        )
        for average in (self.moving.embed, self.moving.embed_avg):
            average.copy_(quantizer.codebook[None])
        self.moving.embed_avg.mul_(mean_use)
        self.moving.cluster_size.fill_(mean_use)
        self.register_buffer("pool", torch.zeros(_POOL, d))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # steps

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, h, w) float, output of the hyper-encoder -> codes alike, gradient passed straight
        through, and () commitment loss; moves the codebook."""
        unit = F.normalize(z.float(), dim=1)
        flat = unit.detach().movedim(1, -1).flatten(0, 2)  # (N, D)
        self.seen += 1
        if self.seen <= self.warmup:
            self._collect(flat)
            return unit, unit.new_zeros(())
        # Counts and sums would lose small numbers in half precision.
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            nearest = self.moving(flat[None])[0][0]  # (N, D), from the codebook before it moves
            self.quantizer.codebook.copy_(self.moving.embed[0])
        codes = nearest.unflatten(0, unit.movedim(1, -1).shape[:3]).movedim(-1, 1)
        loss = F.mse_loss(unit, codes) * z.shape[1]
        return unit + (codes - unit).detach(), loss

    @torch.no_grad()
    def _collect(self, flat: Tensor) -> None:
        new = flat[torch.randperm(len(flat), device=flat.device)[: _POOL // _POOL_STEPS]]
        self.pool.copy_(torch.cat([new, self.pool])[:_POOL])
        if self.seen == self.warmup:
            held = self.pool[self.pool.any(dim=1)]
            with torch.autocast(flat.device.type, enabled=False):
                self.moving.init_embed_(held[None])
            self.quantizer.codebook.copy_(self.moving.embed[0])

    def entropy_bits(self) -> float:
        """Entropy of the averaged code histogram, in bits."""
        p = self.moving.cluster_size[0] / self.moving.cluster_size.sum()
        return float(-(p * p.clamp_min(1e-12).log2()).sum())
