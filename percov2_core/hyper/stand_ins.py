"""What stands for a fine token that was not sent: what the masked image model knows of it, as a
vector for the hyper-decoder.

n tokens, K codebook size, D code width.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor

# (n, K) float probabilities, (K, D) codebook -> (n, D)
StandIn = Callable[[Tensor, Tensor], Tensor]


def expected(p: Tensor, codebook: Tensor) -> Tensor:
    """The mean code, whose length tells how sure the model is: what the painter was trained on."""
    return p @ codebook


def likeliest(p: Tensor, codebook: Tensor) -> Tensor:
    """The code that is most likely."""
    return codebook[p.argmax(dim=1)]


def drawn(p: Tensor, codebook: Tensor) -> Tensor:
    """A code by chance, the same each time."""
    generator = torch.Generator(p.device).manual_seed(0)
    return codebook[torch.multinomial(p, 1, generator=generator)[:, 0]]


def blend(p: Tensor, codebook: Tensor) -> Tensor:
    """Half way from the mean code to a drawn one."""
    return (expected(p, codebook) + drawn(p, codebook)) / 2


def nothing(p: Tensor, codebook: Tensor) -> Tensor:
    """Zeros."""
    return codebook.new_zeros(len(p), codebook.shape[1])


STAND_INS: MappingProxyType[str, StandIn] = MappingProxyType(
    {each.__name__: each for each in (expected, likeliest, drawn, blend, nothing)}
)
