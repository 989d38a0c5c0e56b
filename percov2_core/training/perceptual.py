"""PicoRank learns to rank distortions as the SqueezeNet distance does.

    python -m percov2_core.training.perceptual --photos DIR --teacher FILE -o OUT.safetensors

R references, D distortions of each, S crop side in pixels, G x G cells of a target map.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from percov2_core.evaluation.distortions import distort_at_random
from percov2_core.metrics.features import SqueezeNetFeatures
from percov2_core.metrics.perceptual import PicoRank, combine
from percov2_core.training.loop import LoopConfig, StepLoss, run
from percov2_core.training.samples import Photos, random_crop, to_float

SIDE_PX = 96
CELLS = 6  # a side of a target map, so that a cell is 16 px
REFERENCES, DISTORTIONS = 8, 4  # crops in a step, and distorted versions of each


class Pairs(NamedTuple):
    references: Tensor  # (R, 3, S, S) float in [-1, 1]
    distorted: Tensor  # (R * D, 3, S, S) float in [-1, 1]


def draw_pairs(photos: Photos, *, seed: int, step: int) -> Pairs:
    """Crops of random photos and what becomes of them, the same for the same step."""
    rng = np.random.default_rng((seed, step))
    picks = rng.integers(len(photos), size=REFERENCES)
    crops = [random_crop(photos[int(i)], SIDE_PX, rng) for i in picks]
    distorted = [
        np.asarray(distort_at_random(Image.fromarray(crop), seed=int(number)))
        for crop in crops
        for number in rng.integers(2**31, size=DISTORTIONS)
    ]
    return Pairs(to_float(np.stack(crops)), to_float(np.stack(distorted)))


def teacher_maps(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Two results of `SqueezeNetFeatures` -> (B, 4, G, G) squared distances, one per tap."""
    maps = []
    for x, y in zip(a, b, strict=True):
        distance = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1, keepdim=True)
        maps.append(F.adaptive_avg_pool2d(distance, CELLS)[:, 0])
    return torch.stack([*maps[:3], torch.stack(maps[3:]).mean(0)], dim=1)


def loss_of(net: PicoRank, references: Tensor, distorted: Tensor, targets: Tensor) -> Tensor:
    """Relative error of the total, error of the maps, and wrong order inside the batch.
    (R, 3, S, S) and (R * D, 3, S, S) float in [-1, 1], and (R * D, 4, G, G) float -> () float."""
    ahead = net.features(torch.cat([references, distorted]))
    count, repeats = len(references), len(distorted) // len(references)
    originals = [f[:count].repeat_interleave(repeats, 0) for f in ahead]
    maps = net.maps(originals, [f[count:] for f in ahead])
    pooled = [F.adaptive_avg_pool2d(m[:, None], targets.shape[-1])[:, 0] for m in maps]
    cells = torch.stack(pooled, 1)  # (R * D, 4, G, G)
    per_tap, wanted = cells.mean((2, 3)), targets.mean((2, 3))
    total, truth = combine(list(per_tap.unbind(1))), combine(list(wanted.unbind(1)))
    relative = ((total - truth).abs() / (truth + 0.05)).mean()
    order = (truth[:, None] - truth).sign() * (total[:, None] - total)
    taps = ((per_tap - wanted).abs() / (wanted + 0.05)).mean()
    return relative + 0.3 * taps + 0.5 * F.l1_loss(cells, targets) + F.relu(0.01 - order).mean()


class PicoRankSystem(nn.Module):
    def __init__(self, teacher: SqueezeNetFeatures) -> None:
        super().__init__()
        self.net = PicoRank()
        self._teacher = [teacher]  # in a list: frozen, not part of the checkpoint

    def forward(self, batch: Pairs, progress: float) -> StepLoss:
        teacher = self._teacher[0]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            wanted = teacher(batch.references.repeat_interleave(DISTORTIONS, 0))
            targets = teacher_maps(wanted, teacher(batch.distorted))
        return StepLoss(loss_of(self.net, batch.references, batch.distorted, targets), {})


def train(
    photos: Photos, teacher: SqueezeNetFeatures, out: Path, *, minutes: float, seed: int = 0
) -> PicoRank:
    """Train for `minutes` on the CPU; the run's folder is `out`."""
    torch.manual_seed(seed)
    system = PicoRankSystem(teacher)
    plan: Any = {"lr": 2e-3, "floor": 0.02, "warmup_steps": 50, "weight_decay": 1e-4, "ema": 0.99}
    config = LoopConfig(minutes=minutes, seed=seed, device="cpu", **plan)
    run(system, lambda step: draw_pairs(photos, seed=seed, step=step), out, config=config)
    return system.net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="SqueezeNet safetensors")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    teacher = SqueezeNetFeatures(args.teacher)
    net = train(Photos(args.photos), teacher, args.out.with_suffix(""), minutes=args.minutes)
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
