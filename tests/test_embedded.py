"""The shipped model on the Kodak pictures: what its users were promised."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from percov2_core import load_codec
from percov2_core.bitstream import Stream
from percov2_core.caption.colours import TERMS
from percov2_core.cli import main
from percov2_core.config import RATES, SCHEDULES
from percov2_core.evaluation.protocol import centre_square
from percov2_core.weights import EMBEDDED_DIR

pytestmark = pytest.mark.skipif(
    not (EMBEDDED_DIR / "model.json").is_file(), reason="the embedded model is not in place"
)


# Every n-th picture: a few on each run, all 24 with `pytest -m slow`.
EVERY = [6, pytest.param(1, marks=pytest.mark.slow)]
SENT = (0, 4, 8, 16, 32, 64)


@pytest.fixture(scope="module")
def codec():
    return load_codec(device="cpu")


@pytest.fixture(scope="module", params=EVERY)
def squares(request, kodak):
    return [centre_square(Image.open(path)) for path in kodak[:: request.param]]


@pytest.fixture(scope="module")
def streams(codec, squares):
    """Full files of all pictures at both rates."""
    return {rate: [codec.encode(picture, rate) for picture in squares] for rate in RATES}


@pytest.mark.parametrize("rate", RATES)
def test_files_are_at_most_two_bytes_over_header_and_ideal_length(codec, streams, rate):
    for _, caption, tokens, *_ in map(codec.read, streams[rate]):
        for schedule in SCHEDULES:
            blank = Stream.blank((512, 512), rate, codec.fingerprint, schedule=schedule)
            written = codec.write(blank, tokens, caption)
            ideal_bits = codec.caption_bits(caption) + codec.read(written).token_bits.sum()
            assert 8 * written.sizes.payload <= ideal_bits + 16


def test_headers_take_at_most_eight_bytes(streams):
    for stream in (s for per_rate in streams.values() for s in per_rate):
        assert stream.sizes.header == 7
        if stream.cuts:
            assert stream.truncate(0).sizes.header == 8


def test_mean_rates_stay_within_what_is_promised(streams):
    means = {r: np.mean([len(s.to_bytes()) for s in per_rate]) for r, per_rate in streams.items()}
    assert 8 * means["extreme"] / 512**2 <= 0.027
    assert means["ultra-low"] <= 85
    assert np.mean([len(s.truncate(0).to_bytes()) for s in streams["ultra-low"]]) <= 40


def test_hybrid_decodes_for_every_k_and_bits_fall_with_k(codec, streams):
    for full in streams["ultra-low"]:
        sizes = []
        for k in SENT:
            stream = codec.truncate(full, tokens=k)
            assert codec.read(Stream.from_bytes(stream.to_bytes())).sent.sum() == k
            sizes.append(len(stream.to_bytes()))
        assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_a_cut_file_is_what_encoding_with_so_many_tokens_gives(codec, squares, streams):
    for i, (picture, full) in enumerate(zip(squares, streams["ultra-low"], strict=True)):
        # Each encode searches anew: in the short run each picture has its turn with one number.
        for k in SENT if len(squares) == 24 else [SENT[(1 + i) % len(SENT)]]:
            assert codec.truncate(full, tokens=k) == codec.encode(picture, "hybrid", tokens=k)


def test_single_byte_corruptions_of_a_file_are_reported(codec, streams):
    rng = np.random.default_rng(0)
    data = streams["ultra-low"][0].to_bytes()
    missed = 0
    for _ in range(250):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        try:
            codec.read(Stream.from_bytes(bytes(damaged)))
        except ValueError:
            continue
        missed += 1
    assert missed <= 1


@pytest.mark.parametrize("mode", ["ultra-low", "extreme", "hybrid"])
def test_the_three_commands_turn_a_picture_into_a_file_and_back(mode, kodak, tmp_path, capsys):
    file, out = tmp_path / "a.pcv2", tmp_path / "a.png"
    assert main(["compress", str(kodak[2]), "-o", str(file), "--mode", mode]) == 0
    assert main(["inspect", str(file), "--json"]) == 0
    assert main(["decompress", str(file), "-o", str(out)]) == 0
    with Image.open(out) as made, Image.open(kodak[2]) as original:
        assert made.size == original.size
    assert '"bits"' in capsys.readouterr().out


def edited(caption: str) -> tuple[str, str]:
    """The caption with another colour of the ground, and the name of that colour."""
    colour = "vivid red" if "red" not in caption else "dark blue"
    changed = re.sub(r"[^,]+ ground", f" {colour} ground", caption)
    assert changed != caption
    return changed, colour


def test_editing_the_colour_of_the_ground_moves_the_picture_towards_it(codec, kodak):
    moved = 0
    for picture in (centre_square(Image.open(path)) for path in kodak[::3]):
        before = codec.encode(picture, "hybrid", tokens=0)
        changed, colour = edited(codec.read(before).caption)
        after = codec.encode(picture, "hybrid", tokens=0, caption=changed)
        grounds = [
            np.asarray(codec.decode(s, preset="balanced"), dtype=float)[342:].mean(axis=(0, 1))
            for s in (before, after)
        ]
        distances = [np.linalg.norm(ground - TERMS[colour]) for ground in grounds]
        moved += distances[1] < distances[0] - 5
    assert moved >= 6
