"""The shipped model on the Kodak pictures: what its users were promised."""

import re

import numpy as np
import pytest
from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.caption.describer import TERMS
from percov2_core.cli import main
from percov2_core.config import MODES, SCHEDULES
from percov2_core.evaluation.protocol import centre_square
from tests.tiny import ROOT, rows


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)])
def full(request):
    """Whether to take all 24 pictures, of 512 px and with the search, not two small ones."""
    return request.param


@pytest.fixture(scope="module")
def codec(full, shipped, unsearched):
    return shipped if full else unsearched


@pytest.fixture(scope="module")
def squares(full, kodak):
    side, every = (512, 1) if full else (256, 12)
    return [centre_square(Image.open(path), side) for path in kodak[::every]]


@pytest.fixture(scope="module")
def found(codec, squares):
    """Captions and tokens of all pictures."""
    return [codec.look(picture) for picture in squares]


@pytest.mark.parametrize("mode", ["extreme", "hybrid"])
def test_files_are_at_most_two_bytes_over_header_and_ideal_length(codec, found, mode):
    for tokens in found:
        count = None if mode == "extreme" else tokens.coarse.size + tokens.fine.size
        for schedule in SCHEDULES:
            written = codec.write(tokens, mode, count=count, schedule=schedule)
            contents, ideal_bits = codec.read(written), codec.caption_bits(tokens.caption)
            for level in filter(None, (contents.coarse, contents.fine)):
                ideal_bits += level.bits.sum()
            assert 8 * written.sizes.payload <= ideal_bits + 16
            assert written.sizes.header == (7 if mode == "extreme" else 9)


def test_mean_rates_stay_within_what_is_promised(codec, full, found):
    modes = ("extreme", "ultra-low", "hybrid")
    if full:
        sizes = {m: [len(codec.write(t, m).to_bytes()) for t in found] for m in modes}
    else:  # what is published of this model and the pictures in full size
        published = rows(ROOT / "assets" / "results" / "presets.csv")
        ours = [row for row in published if row["codec"] == "percov2"]
        models = {row["description"].split(", ")[1] for row in ours}
        assert models == {f"model {codec.fingerprint:02x}"}
        sizes = {m: [int(row["size_bytes"]) for row in ours if row["mode"] == m] for m in modes}
    assert 8 * np.mean(sizes["extreme"]) / 512**2 <= 0.027
    assert np.mean(sizes["ultra-low"]) <= 124
    assert np.mean(sizes["hybrid"]) <= 40


def test_a_cut_file_is_what_encoding_gives_and_bits_fall_with_k(codec, squares, found):
    for picture, tokens in zip(squares, found, strict=True):
        total, sizes = tokens.coarse.size + tokens.fine.size, []
        stream = codec.write(tokens, count=total)
        for k in [k for k in (0, 4, 16, 40, 144, 500) if k < total]:
            shorter = codec.truncate(stream, tokens=k)
            assert codec.encode(picture, "hybrid", tokens=k) == shorter
            contents = codec.read(Stream.from_bytes(shorter.to_bytes()))
            assert contents.coarse.sent.sum() + contents.fine.sent.sum() == k
            sizes.append(len(shorter.to_bytes()))
        assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@pytest.mark.parametrize("mode", MODES)
def test_the_three_commands_turn_a_picture_into_a_file_and_back(mode, kodak, tmp_path, capsys):
    photo, file, out = (tmp_path / name for name in ("a.jpg", "a.pcv2", "b.png"))
    centre_square(Image.open(kodak[2]), 256).crop((0, 0, 250, 170)).save(photo)
    assert main(["compress", str(photo), "-o", str(file), "--mode", mode]) == 0
    assert main(["inspect", str(file), "--json"]) == 0
    assert main(["decompress", str(file), "-o", str(out)]) == 0
    with Image.open(out) as made:
        assert made.size == (250, 170)
    assert '"bits"' in capsys.readouterr().out


@pytest.mark.parametrize("side", [256, pytest.param(512, marks=pytest.mark.slow)])
def test_editing_the_colour_of_the_ground_moves_the_picture_towards_it(side, shipped, kodak):
    moved = 0
    for picture in (centre_square(Image.open(path), side) for path in kodak[::3]):
        before = shipped.encode(picture, "hybrid", tokens=0)
        caption = shipped.read(before).caption
        colour = "vivid red" if "red" not in caption else "dark blue"
        changed = re.sub(r"[^,]+ ground", f" {colour} ground", caption)
        assert changed != caption
        after = shipped.encode(picture, "hybrid", tokens=0, caption=changed)
        grounds = [
            np.asarray(shipped.decode(s), dtype=float)[2 * side // 3 :].mean(axis=(0, 1))
            for s in (before, after)
        ]
        distances = [np.linalg.norm(ground - TERMS[colour]) for ground in grounds]
        moved += distances[1] < distances[0] - 5
    assert moved >= 6
