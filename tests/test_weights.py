"""A model folder loads strictly, or says in one line what is wrong with it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from percov2_core.errors import WeightsError
from percov2_core.weights import load_codec
from percov2_core.weights.files import WEIGHTS_FILE, model_digest, pack, unpack
from tests.tiny import change_weights, edit_json, rename, tiny_folder

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
