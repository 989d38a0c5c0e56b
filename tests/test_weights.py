"""A model folder loads strictly, or says in one line what is wrong with it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from percov2_core.errors import WeightsError
from percov2_core.weights import load_codec
from percov2_core.weights.files import WEIGHTS_FILE, model_digest, pack, unpack
from tests.tiny import picture, tiny_codec, tiny_folder


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(tiny_folder(), tmp_path / "model")


def change_weights(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_a_loaded_model_is_the_same_each_time(folder):
    stream = load_codec(folder, device="cpu").encode(picture(), "extreme")
    assert stream.to_bytes() == tiny_codec().encode(picture(), "extreme").to_bytes()


def test_a_missing_file_is_named(folder):
    (folder / "extreme" / "hyper_decoder" / WEIGHTS_FILE).unlink()
    with pytest.raises(WeightsError, match=r"weights: no file at .*hyper_decoder"):
        load_codec(folder)


def test_a_renamed_parameter_is_an_error_and_not_a_random_number(folder):
    path = folder / "ultra-low" / "hyper_encoder" / WEIGHTS_FILE
    change_weights(path, lambda w: w.update({"out.weigth": w.pop("out.weight")}))
    with pytest.raises(WeightsError, match=r"does not fit HyperEncoder: .*out\.weight"):
        load_codec(folder)


def test_a_misshapen_parameter_is_named(folder):
    path = folder / "extreme" / "transformer" / WEIGHTS_FILE
    change_weights(path, lambda w: w.update({"proj_out.bias": w["proj_out.bias"][:-1].clone()}))
    with pytest.raises(WeightsError, match=r"does not fit SD3Transformer2DModel: .*proj_out\.bias"):
        load_codec(folder)


def test_a_damaged_weights_file_is_named(folder):
    path = folder / "vae" / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="does not fit AutoencoderDC"):
        load_codec(folder)


def test_another_format_is_refused(folder):
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, "format": 9}))
    with pytest.raises(WeightsError, match="format 9, this build reads 1"):
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


def test_presets_must_be_complete(folder):
    about = json.loads((folder / "model.json").read_text())
    del about["presets"]["hybrid"]["vivid"]
    (folder / "model.json").write_text(json.dumps(about))
    with pytest.raises(WeightsError, match=r"presets lack hybrid/vivid"):
        load_codec(folder)


def test_the_digest_follows_what_gives_tokens_their_meaning_and_nothing_else(folder):
    before = model_digest(folder)
    path = folder / "extreme" / "transformer" / WEIGHTS_FILE
    change_weights(path, lambda w: w.update({"proj_out.bias": w["proj_out.bias"] + 1}))
    assert model_digest(folder) == before
    path = folder / "extreme" / "quantizer" / WEIGHTS_FILE
    change_weights(path, lambda w: w.update({"codebook": -w["codebook"]}))
    assert model_digest(folder) != before
