"""Stage `perceptual`: PicoRank learns to rank distortions as the SqueezeNet distance does.

    python -m percov2_core.training.perceptual --photos DIR --teacher FILE -o OUT.safetensors

R references, D distortions of each, S crop side in pixels, G x G cells of a target map.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from percov2_core.evaluation.distortions import distort_at_random
from percov2_core.evaluation.protocol import list_pictures
from percov2_core.metrics.features import SqueezeNetFeatures
from percov2_core.metrics.perceptual import PicoRank, combine
from percov2_core.training.data import random_crop

SIDE_PX = 192
CELLS = 12  # a side of a target map, so that a cell is 16 px
TRAIN_CELLS = 6  # a side of the window that a training step sees
PER_REFERENCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSet:
    """References, their distorted versions, and what the teacher says of each pair.

    Attributes:
        references: (R, S, S, 3) uint8.
        distorted: (R, D, S, S, 3) uint8.
        targets: (R, D, 4, G, G) float16, the teacher's squared distances per tap.
    """

    references: NDArray[np.uint8]
    distorted: NDArray[np.uint8]
    targets: NDArray[np.float16]


def to_float(pixels: NDArray[np.uint8]) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, 3, S, S) float in [-1, 1]."""
    x = torch.from_numpy(pixels).movedim(-1, 1).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def teacher_maps(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Two results of `SqueezeNetFeatures` -> (B, 4, G, G) squared distances, one per tap."""
    maps = []
    for x, y in zip(a, b, strict=True):
        distance = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1, keepdim=True)
        maps.append(F.adaptive_avg_pool2d(distance, CELLS)[:, 0])
    return torch.stack([*maps[:3], torch.stack(maps[3:]).mean(0)], dim=1)


def window(pairs: PairSet, rows: NDArray[np.int64], rng: np.random.Generator) -> PairSet:
    """The same random square of `TRAIN_CELLS` cells from each of the chosen references."""
    y, x = (int(v) for v in rng.integers(CELLS - TRAIN_CELLS + 1, size=2))
    cell = SIDE_PX // CELLS
    px_y, px_x = (slice(v * cell, (v + TRAIN_CELLS) * cell) for v in (y, x))
    return PairSet(
        references=pairs.references[rows][:, px_y, px_x],
        distorted=pairs.distorted[rows][:, :, px_y, px_x],
        targets=pairs.targets[rows][..., y : y + TRAIN_CELLS, x : x + TRAIN_CELLS],
    )


@torch.inference_mode()
def make_pairs(photos: Path, teacher: SqueezeNetFeatures, *, count: int, seed: int = 0) -> PairSet:
    """Crop, distort and ask the teacher, `count` references from the photos below `photos`."""
    files = list_pictures(photos)
    references = np.empty((count, SIDE_PX, SIDE_PX, 3), np.uint8)
    distorted = np.empty((count, PER_REFERENCE, SIDE_PX, SIDE_PX, 3), np.uint8)
    targets = np.empty((count, PER_REFERENCE, 4, CELLS, CELLS), np.float16)
    rng = np.random.default_rng(seed)
    for i in tqdm(range(count), desc="pairs", disable=None):
        with Image.open(files[i % len(files)]) as photo:
            references[i] = random_crop(np.asarray(photo.convert("RGB")), SIDE_PX, rng)
        picture = Image.fromarray(references[i])
        for j in range(PER_REFERENCE):
            again = distort_at_random(picture, seed=seed + i * PER_REFERENCE + j)
            distorted[i, j] = np.asarray(again)
        want = teacher(to_float(references[i : i + 1]))
        got = teacher(to_float(distorted[i]))
        maps = teacher_maps([w.expand_as(g) for w, g in zip(want, got, strict=True)], got)
        targets[i] = maps.numpy()
    return PairSet(references=references, distorted=distorted, targets=targets)


def loss_of(net: PicoRank, references: Tensor, distorted: Tensor, targets: Tensor) -> Tensor:
    """Relative error of the total, error of the maps, and wrong order inside the batch.

    Args:
        references: (R, 3, S, S) float in [-1, 1].
        distorted: (R * D, 3, S, S) float in [-1, 1].
        targets: (R * D, 4, G, G) float.
    """
    ahead = net.features(torch.cat([references, distorted]))
    count, repeats = len(references), len(distorted) // len(references)
    maps = net.maps(
        [f[:count].repeat_interleave(repeats, 0) for f in ahead], [f[count:] for f in ahead]
    )
    grid = targets.shape[-1]
    cells = torch.stack(
        [F.adaptive_avg_pool2d(m[:, None], grid)[:, 0] for m in maps], 1
    )  # (R * D, 4, G, G)
    per_tap, wanted = cells.mean((2, 3)), targets.mean((2, 3))
    total, truth = combine(list(per_tap.unbind(1))), combine(list(wanted.unbind(1)))
    relative = ((total - truth).abs() / (truth + 0.05)).mean()
    order = (truth[:, None] - truth).sign() * (total[:, None] - total)
    taps = ((per_tap - wanted).abs() / (wanted + 0.05)).mean()
    return relative + 0.3 * taps + 0.5 * F.l1_loss(cells, targets) + F.relu(0.01 - order).mean()


def train(pairs: PairSet, *, minutes: float, batch: int = 8, seed: int = 0) -> PicoRank:
    """Train for `minutes`, one-cycle learning rate over the time."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = PicoRank()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-4)
    begun, step, recent = time.monotonic(), 0, 1.0
    bar = tqdm(desc="PicoRank", disable=None)
    while (progress := (time.monotonic() - begun) / (60 * minutes)) < 1:
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 50, 1.02 - progress)
        rows = rng.choice(len(pairs.references), batch, replace=False)
        seen = window(pairs, rows, rng)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(
                net,
                to_float(seen.references),
                to_float(seen.distorted.reshape(-1, *seen.references.shape[1:])),
                torch.from_numpy(seen.targets).flatten(0, 1).float(),
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step, recent = step + 1, 0.98 * recent + 0.02 * loss.item()
        bar.update()
        bar.set_postfix(loss=f"{recent:.4f}")
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="SqueezeNet safetensors")
    parser.add_argument("--count", type=int, default=3044, help="reference crops")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    pairs = make_pairs(args.photos, SqueezeNetFeatures(args.teacher), count=args.count)
    net = train(pairs, minutes=args.minutes)
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
