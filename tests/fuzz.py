"""Damaged files through the reader and the token decoder, with their time and memory; then files
that claim large sizes through `/inspect` and `/decompress` of a real server; then damaged pictures.

    python -m tests.fuzz [--count 100000] [--claims 200] [--pictures 20000] [--model NAME]
        [--seed 0]

Without --model the tiny random model is used. Ends with status 1 if anything but `BitstreamError`
was raised, if one file took more than 2 s of one core, if memory grew by more than 200 MB, if more
than one damaged file in 10,000 was read (the check value has 16 bits), or if fewer than 99.9 % of
the files with one changed byte were reported.
"""

import random
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import product
from math import isqrt
from pathlib import Path
from tempfile import mkdtemp

import psutil

from percov2_core.bitstream import Stream
from percov2_core.config import FILE_MODES, SCHEDULES
from percov2_core.errors import BitstreamError
from percov2_core.ui.border import MAX_WORKING_PIXELS
from percov2_core.weights import load_codec
from tests import fuzz_pictures
from tests.hostile.stranger import Stranger
from tests.hostile.values import claim
from tests.tiny import options, picture, tiny_codec, tiny_folder
from tests.ui_server import serve

LIMIT_S = 2.0
LARGEST = isqrt(MAX_WORKING_PIXELS)  # side of the largest square that the page reads
SIDES = (64, 1024, LARGEST, 2048, 3000, 4096)  # pixels that a file claims
AT_FULL_SIZE = 4  # files of each kind: noise does not always fit the model to its end
LIMIT_BYTES = 200 * 2**20
ONE_BYTE = 3  # the kind of damage that changes a single byte


def passed(tally):
    read = tally["rejected"] + tally["intact"] + tally["missed"]
    return (
        tally["slowest_s"] <= LIMIT_S
        and tally["grown_bytes"] <= LIMIT_BYTES
        and tally["missed"] <= read / 10_000
        and tally["one_byte_missed"] <= tally["one_byte"] / 1_000
    )


def seeds(codec):
    """Valid files of every mode, schedule and a few sizes."""
    sizes = [(64, 64), (160, 96), (300, 211)]
    found, files = [codec.look(picture(*size)) for size in sizes], []
    for i, (mode, schedule) in enumerate((m, s) for m in FILE_MODES.values() for s in SCHEDULES):
        count = 9 if mode.partial else None
        files.append(codec.write(found[i % 3], mode.name, count=count, schedule=schedule))
    return [file.to_bytes() for file in files]


def mutate(data, kind, dice):
    out = bytearray(data)
    if kind == 0:
        return dice.randbytes(dice.randrange(200))
    if kind == 1:
        return bytes(out[: dice.randrange(len(out))])
    if kind == 2:
        return bytes(out) + dice.randbytes(1 + dice.randrange(40))
    for _ in range(1 if kind == ONE_BYTE else dice.randrange(1, 9)):
        out[dice.randrange(len(out))] = dice.randrange(256)
    if kind == 5:  # another size, with all else as it was
        out[2:5] = dice.randbytes(3)
    return bytes(out)


def run(model, count, seed):
    """Feed `count` damaged files to a codec; anything but a BitstreamError gets out.

    -> how many were `rejected`, `intact` (the mutation had put back what was there) or `missed`,
    how many of those with exactly one byte changed; `slowest_s`, processor time; `grown_bytes`, of
    memory at most, over what the valid files had taken.
    """
    codec, dice, tally = load(model), random.Random(seed), Counter(rejected=0, intact=0, missed=0)
    files = seeds(codec)
    for data in files:
        codec.read(Stream.from_bytes(data))
    before = fuzz_pictures.peak_bytes()
    for _ in range(count):
        original, kind = dice.choice(files), dice.randrange(6)
        data = mutate(original, kind, dice)
        began, readable = time.process_time(), False
        with suppress(BitstreamError):
            readable = bool(codec.read(Stream.from_bytes(data)))
        tally["slowest_s"] = max(tally["slowest_s"], time.process_time() - began)
        damaged = data != original
        fate = ("missed" if damaged else "intact") if readable else "rejected"
        tally[fate] += 1
        one_byte = kind == ONE_BYTE and damaged
        tally["one_byte"] += one_byte
        tally["one_byte_missed"] += one_byte and readable
    tally["grown_bytes"] = fuzz_pictures.peak_bytes() - before
    return tally


def claims(model, count, seed):
    """Processor time of the slowest answer of a real server to files that claim large sizes.

    The first are as large as the page reads, and so long that all their tokens are read; it is the
    time of the whole server, whatever else the machine does.
    """
    dice, slowest_s = random.Random(seed), 0.0
    valid = load(model).encode(picture(64, 64), "extreme", caption="a cat")
    folder = Path(mkdtemp(prefix="percov2-fuzz-"))
    with serve(model or tiny_folder(), folder) as server, Stranger(server.address) as stranger:
        process = psutil.Process(server.pid)
        # The first one waits for the model.
        stranger.one(stranger.named("inspect"), [stranger.upload("a.pcv2", valid.to_bytes())])
        kinds = list(product(FILE_MODES, SCHEDULES))
        for number in range(count):
            (mode, schedule), size = dice.choice(kinds), (dice.choice(SIDES), dice.choice(SIDES))
            kept, more = dice.randrange(8), dice.choice((0, 100, 1000, 10_000, 100_000))
            if number < AT_FULL_SIZE * len(kinds):
                (mode, schedule), size = kinds[number % len(kinds)], (LARGEST, LARGEST)
                kept, more = 8, 100_000
            payload = valid.payload[:kept] + dice.randbytes(more)
            claimed = claim(replace(valid, schedule=schedule), mode, size, payload)
            file = stranger.upload("claim.pcv2", claimed)
            for end_point, settings in (("inspect", []), ("decompress", ["balanced", 0, ""])):
                before_s = sum(process.cpu_times()[:2])
                answer = stranger.one(stranger.named(end_point), [file, *settings])
                spent_s = sum(process.cpu_times()[:2]) - before_s
                assert answer.refused and answer.error, (mode, schedule, size, len(payload))
                if spent_s > slowest_s:
                    print(f"{end_point} {mode} {schedule} {size} {len(payload)}: {spent_s:.2f} s")
                slowest_s = max(slowest_s, spent_s)
    return slowest_s


def load(model):
    return load_codec(model, device="cpu") if model else tiny_codec()


def main():
    args = options(__doc__, count=100_000, claims=200, pictures=20_000, model="", seed=0)
    tally = run(args.model, args.count, args.seed)
    print(", ".join(f"{name} {value:.6g}" for name, value in tally.items()))
    slowest_s = claims(args.model, args.claims, args.seed)
    print(f"{args.claims} large claims, slowest {slowest_s:.3g} s of one core")
    failed = fuzz_pictures.main(args.pictures, args.seed)
    return int(failed or not passed(tally) or slowest_s > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
