"""Damaged files through the reader and the token decoder, with their time and memory.

    python -m tests.fuzz [--count 100000] [--model DIR_OR_NAME] [--seed 0]

Without --model the tiny random model is used. Ends with status 1 if anything but `BitstreamError`
was raised, if one file took more than 2 s, if memory grew by more than 200 MB, or if more than one
damaged file in 10,000 was read: the check value has 16 bits.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time

from percov2_core.bitstream import Stream
from percov2_core.codec import PerCoV2
from percov2_core.config import MODES, SCHEDULES
from percov2_core.errors import BitstreamError
from percov2_core.weights import load_codec
from tests.tiny import picture, tiny_codec

LIMIT_S = 2.0
LIMIT_BYTES = 200 * 2**20


def seeds(codec: PerCoV2) -> list[bytes]:
    """Valid files of every mode, schedule and a few sizes."""
    sizes = [(64, 64), (160, 96), (300, 211)]
    return [
        codec.encode(picture(*sizes[i % 3]), mode, schedule=schedule).to_bytes()
        for i, (mode, schedule) in enumerate((m, s) for m in MODES for s in SCHEDULES)
    ]


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Flip, cut, extend, splice, or replace by noise."""
    kind = dice.randrange(6)
    out = bytearray(data)
    if kind == 0:
        return dice.randbytes(dice.randrange(200))
    if kind == 1:
        return bytes(out[: dice.randrange(len(out))])
    if kind == 2:
        return bytes(out) + dice.randbytes(1 + dice.randrange(40))
    for _ in range(1 if kind == 3 else dice.randrange(1, 9)):
        out[dice.randrange(len(out))] = dice.randrange(256)
    if kind == 5:  # another size, with all else as it was
        out[2:5] = dice.randbytes(3)
    return bytes(out)


def run(codec: PerCoV2, count: int, seed: int) -> dict[str, float]:
    """Feed `count` damaged files to the codec; anything but a BitstreamError gets out."""
    dice, files = random.Random(seed), seeds(codec)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rejected, intact, missed, slowest = 0, 0, 0, 0.0
    for _ in range(count):
        original = dice.choice(files)
        data = mutate(original, dice)
        began = time.perf_counter()
        try:
            codec.read(Stream.from_bytes(data))
            intact += data == original
            missed += data != original
        except BitstreamError:
            rejected += 1
        slowest = max(slowest, time.perf_counter() - began)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return {
        "rejected": rejected,
        "intact": intact,
        "missed": missed,
        "slowest_s": slowest,
        "grown_bytes": grown,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    result = run(load_codec(args.model) if args.model else tiny_codec(), args.count, args.seed)
    print(", ".join(f"{name} {value:.6g}" for name, value in result.items()))
    return int(
        result["slowest_s"] > LIMIT_S
        or result["grown_bytes"] > LIMIT_BYTES
        or result["missed"] > args.count / 10_000
    )


if __name__ == "__main__":
    sys.exit(main())
