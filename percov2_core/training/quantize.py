"""Training of the vector quantiser: moving averages, k-means start, dead-code revival.

Cosine codebook as in van den Oord et al. 2017 (appendix A.1) on unit vectors. The first steps
run unquantised; then k-means on the vectors collected so far sets the codebook, which is what
keeps a coarse grid from collapsing to one code. B batch, D code width, K codebook size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from percov2_core.hyper.networks import VectorQuantizer

_DEAD_BELOW = 0.05  # of the mean use: such a code moves onto a vector of the batch
_KMEANS_ROUNDS = 12


class Quantized(NamedTuple):
    codes: Tensor  # (B, D, h, w) float, gradient passed straight through
    tokens: Tensor  # (B, h, w) int64
    loss: Tensor  # () float, commitment


class TrainingQuantizer(nn.Module):
    """Wraps the run-time quantiser and moves its codebook."""

    used: Tensor
    sums: Tensor
    pool: Tensor
    seen: Tensor

    def __init__(
        self,
        quantizer: VectorQuantizer,
        *,
        warmup: int = 250,
        decay: float = 0.99,
        pool: int = 8192,
    ) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.warmup, self.decay = warmup, decay
        k, d = quantizer.codebook.shape
        self.register_buffer("used", torch.ones(k))
        self.register_buffer("sums", quantizer.codebook.detach().clone())
        self.register_buffer("pool", torch.zeros(pool, d))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # steps

    def forward(self, z: Tensor) -> Quantized:
        """(B, D, h, w) float, output of the hyper-encoder -> codes, tokens, loss."""
        unit = F.normalize(z.float(), dim=1)
        flat = unit.detach().movedim(1, -1).flatten(0, 2)  # (N, D)
        if self.training:
            self._collect(flat)
        if self.training and self.seen <= self.warmup:
            return Quantized(unit, self.quantizer.tokens(unit), unit.new_zeros(()))
        tokens = self.quantizer.tokens(unit)
        codes = self.quantizer.lookup(tokens)
        if self.training:
            self._move(flat, tokens.flatten())
        loss = F.mse_loss(unit, codes.detach()) * z.shape[1]
        return Quantized(unit + (codes - unit).detach(), tokens, loss)

    @torch.no_grad()
    def _collect(self, flat: Tensor) -> None:
        self.seen += 1
        if self.seen <= self.warmup:
            new = flat[torch.randperm(len(flat), device=flat.device)[: self.pool.shape[0] // 16]]
            self.pool.copy_(torch.cat([new, self.pool])[: self.pool.shape[0]])
        if self.seen == self.warmup:
            self._set(kmeans(self.pool, self.quantizer.codebook.shape[0]))

    def _set(self, centres: Tensor) -> None:
        self.quantizer.codebook.copy_(centres)
        self.sums.copy_(centres)
        self.used.fill_(1.0)

    @torch.no_grad()
    def _move(self, flat: Tensor, tokens: Tensor) -> None:
        k = self.used.shape[0]
        count = torch.zeros_like(self.used).index_add_(
            0, tokens, torch.ones(len(tokens), device=flat.device)
        )
        total = torch.zeros_like(self.sums).index_add_(0, tokens, flat)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            dist.all_reduce(total)
        scale = k / count.sum()
        self.used.lerp_(count * scale, 1 - self.decay)
        self.sums.lerp_(total * scale, 1 - self.decay)
        dead = self.used < _DEAD_BELOW
        if int(dead.sum()):
            picks = flat[torch.randint(len(flat), (int(dead.sum()),), device=flat.device)]
            self.sums[dead] = picks
            self.used[dead] = 1.0
        self.quantizer.codebook.copy_(F.normalize(self.sums, dim=-1))

    def entropy_bits(self) -> float:
        """Entropy of the averaged code histogram, in bits."""
        p = self.used / self.used.sum()
        return float(-(p * p.clamp_min(1e-12).log2()).sum())


def kmeans(vectors: Tensor, k: int) -> Tensor:
    """(N, D) unit vectors -> (K, D) unit centres, by cosine."""
    centres = vectors[torch.randperm(len(vectors), device=vectors.device)[:k]].clone()
    for _ in range(_KMEANS_ROUNDS):
        nearest = (vectors @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        empty = torch.bincount(nearest, minlength=k) == 0
        sums[empty] = vectors[torch.randint(len(vectors), (int(empty.sum()),))]
        centres = F.normalize(sums, dim=-1)
    return centres
