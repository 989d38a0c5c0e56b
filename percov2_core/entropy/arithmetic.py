"""The arithmetic of the integer twin: what it does besides its products.

Letters: n tokens of a stage, M entries of memory, K codebook size, D width, A heads, d = D / A.
The rules of `exact` hold for every line here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import sqrt

import torch
from torch import Tensor

from percov2_core.entropy import masked_model as mm
from percov2_core.entropy.exact import (
    LOGIT_LIMIT,
    NORM_BITS,
    RESIDUAL_BITS,
    RESIDUAL_LIMIT,
    SCORE_BITS,
    WEIGHT_TOTAL,
)

TOTAL = 1 << 16  # what the frequencies of one token add up to
_SCORES_AT_ONCE = 1 << 17  # of one block, per thread: the next step finds them in the cache


def attend(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """(A, n, d), (A, M, d) twice, (A, n, M) -> (A, n, d) float32, sums of weights x values."""
    scores = _SCORES_AT_ONCE * torch.get_num_threads()
    count = max(1, scores // (bias.shape[0] * max(1, bias.shape[2])))
    made = []
    for i in range(0, q.shape[1], count):
        weights = _weights(q[:, i : i + count], keys, bias[:, i : i + count])
        made.append((weights @ values).float())
    return made[0] if len(made) == 1 else torch.cat(made, dim=1)


def _weights(q: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """(A, n, d), (A, M, d), (A, n, M) -> (A, n, M) weights that add up to at most 16000."""
    score = torch.baddbmm(bias.to(q.dtype), q, keys.transpose(1, 2)).clamp_(min=0.0)
    total = score.sum(-1, keepdim=True, dtype=torch.float64).add_(mm.SUM_OFFSET * 2**SCORE_BITS)
    return score.mul_(_divide(WEIGHT_TOTAL, total).float()).floor_()


def normalise(x: Tensor) -> Tensor:
    """(n, D) residual integers -> integers of root mean square 2**9."""
    wide, width = x.double(), x.shape[-1]
    floor = width * (mm.NORM_FLOOR * 2**RESIDUAL_BITS) ** 2
    length = wide.square().sum(-1, keepdim=True).add_(floor).sqrt_()
    return wide.mul_(_divide(2**NORM_BITS * sqrt(width), length)).add_(0.5).floor_().float()


def _divide(number: float, by: Tensor) -> Tensor:
    """Divide tensor by tensor: a plain number on either side may become a reciprocal."""
    return torch.full_like(by, number).div_(by)


def residual(x: Tensor) -> Tensor:
    """Clip a new tensor in place."""
    return x.clamp_(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)


def to_frequencies(logits: Tensor, exponential: Tensor) -> Tensor:
    """(n, K) integers in units of 2**-6 bits -> (n, K) int64 that sum to 2**16."""
    logits = logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).to(torch.int64)
    size = logits.shape[1]
    below = logits.amax(1, keepdim=True) - logits
    mass = exponential[below.clamp(max=len(exponential) - 1)]
    spread = (TOTAL - size) * mass
    freqs = 1 + torch.div(spread, mass.sum(1, keepdim=True), rounding_mode="floor")
    # What rounding left goes to the likeliest token, of equal ones the first. The key is unique,
    # because devices differ in which of two equal maxima they report.
    key = freqs * size - torch.arange(size, device=logits.device)
    rest = TOTAL - freqs.sum(1, keepdim=True)
    return freqs.scatter_add(1, key.argmax(1, keepdim=True), rest)


@contextmanager
def plain(device: torch.device) -> Iterator[None]:
    """No autograd, no autocast."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if torch.is_autocast_enabled(device.type):  # to leave it costs as much as a product
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def float32_is_exact(device: torch.device) -> bool:
    """Whether float32 products are computed in float32, by the setting and by a trial."""
    if torch.get_float32_matmul_precision() != "highest":
        return False
    x = torch.full((64, 64), 255.0, device=device)
    x[:, 0] = 2049.0  # 12 bits: more than TF32 or bfloat16 keep
    with plain(device):
        return bool(((x @ x.T) == 2049.0**2 + 63 * 255.0**2).all())
