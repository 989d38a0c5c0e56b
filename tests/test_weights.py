"""Loading: what is missing, damaged or foreign; the bundled model."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from percov2_core.caption.describer import TERMS
from percov2_core.config import SCHEDULES
from percov2_core.errors import WeightsError
from percov2_core.evaluation.protocol import centre_square
from percov2_core.weights import load_codec
from percov2_core.weights.files import WEIGHTS_FILE, model_digest, pack, unpack
from tests.tiny import ROOT, change_weights, edit_json, rename, rows, tiny_folder

SHORT = {"proj_out.bias": torch.zeros(3)}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(tiny_folder(), tmp_path / "model")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("coarse/hyper_encoder", lambda w: rename(w, "out.weight", "a"), r"HyperEncoder: .*out\.w"),
        ("painter/transformer", lambda w: w.update(SHORT), r"SD3Transformer2DModel: .*out\.bias"),
    ],
)
def test_parameters_that_do_not_fit_are_named(folder, part, change, message):
    change_weights(folder / part / WEIGHTS_FILE, change)
    with pytest.raises(WeightsError, match=f"does not fit {message}"):
        load_codec(folder)


def test_missing_and_damaged_weights_another_format_and_missing_presets_are_named(folder):
    path, about = folder / "vae" / WEIGHTS_FILE, folder / "model.json"
    (folder / "painter" / "hyper_decoder" / WEIGHTS_FILE).unlink()
    with pytest.raises(WeightsError, match=r"weights: no file at .*hyper_decoder"):
        load_codec(folder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="does not fit AutoencoderDC"):
        load_codec(folder)
    presets = json.loads(about.read_text())["presets"]
    del presets["hybrid"]["vivid"]
    edit_json(about, presets=presets)
    with pytest.raises(WeightsError, match=r"presets lack hybrid/vivid"):
        load_codec(folder)
    edit_json(about, format=9)
    with pytest.raises(WeightsError, match="format 9, this build reads 2"):
        load_codec(folder)


def test_packing_halves_the_file_and_changes_each_weight_by_half_a_step(tmp_path):
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    path = tmp_path / WEIGHTS_FILE
    save_file({"w": weight.half(), "b": torch.ones(3)}, path)
    before = path.stat().st_size
    pack(tmp_path)
    found = unpack(load_file(path))
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert path.stat().st_size < 0.65 * before
    assert set(found) == {"w", "b"}
    rounding = 2e-3  # of the half precision that is packed
    assert ((found["w"] - weight).abs() <= 0.5 * step + rounding).all()


def test_the_digest_follows_what_gives_tokens_their_meaning_and_nothing_else(folder):
    before = model_digest(folder)
    path = folder / "painter" / "transformer" / WEIGHTS_FILE
    change_weights(path, lambda w: w.update({"proj_out.bias": w["proj_out.bias"] + 1}))
    assert model_digest(folder) == before
    path = folder / "fine" / "quantizer" / WEIGHTS_FILE
    change_weights(path, lambda w: w.update({"codebook": -w["codebook"]}))
    assert model_digest(folder) != before


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
