"""Checkpoints over Stable Diffusion 3: written fresh, changed, saved, loaded strictly, used."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from percov2_core.bitstream import Stream
from percov2_core.config import LEVELS, MODES
from percov2_core.errors import UnavailableError, WeightsError
from percov2_core.flow.transformer import Conditions, guidance_features
from percov2_core.hyper.networks import Codes
from percov2_core.weights import load_codec, parts
from percov2_core.weights.base import load_text
from percov2_core.weights.files import ENTROPY_FILE, WEIGHTS_FILE, read_about, write_about
from percov2_core.weights.parts import ADAPTER_FILE
from percov2_core.weights.residency import Residency
from tests.hub import files_of
from tests.tiny import change_weights, edit_json, picture, rename
from tests.tiny_sd3 import tiny_checkpoint, tiny_sd3_folder

pytestmark = pytest.mark.usefixtures("sd3_base")
CPU = Residency(device="cpu")
RANKS = {"lora": 2, "full": 0}


@pytest.fixture(params=RANKS)
def folder(request, tmp_path):
    return shutil.copytree(tiny_checkpoint(RANKS[request.param]), tmp_path / request.param)


@pytest.fixture
def lora(tmp_path):
    return shutil.copytree(tiny_checkpoint(RANKS["lora"]), tmp_path / "lora")


def change(module, names=("",)):
    """What training would do: every parameter that it may change becomes another."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if any(part in name for part in names):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("mode", MODES)
def test_two_loads_read_the_same_tokens_and_paint_the_same_picture(folder, mode):
    first, second = (load_codec(f"sd3-medium:{folder}", device="cpu") for _ in range(2))
    data = first.encode(picture(), mode).to_bytes()
    assert data == second.encode(picture(), mode).to_bytes()
    stream = Stream.from_bytes(data)
    a, b = (codec.read(stream).fine.tokens for codec in (first, second))
    assert np.array_equal(a, b)
    a, b = (codec.decode(stream, steps=2, guidance=3.0) for codec in (first, second))
    assert a.tobytes() == b.tobytes() and a.size == picture().size


def test_the_tokens_in_the_file_are_those_of_the_encoder(folder):
    codec = load_codec(f"sd3-medium:{folder}", device="cpu")
    stream = codec.encode(picture(256, 192), "hybrid", tokens=12 + 12 * 16)
    contents = codec.read(Stream.from_bytes(stream.to_bytes()))
    x = torch.from_numpy(np.array(picture(256, 192))).permute(2, 0, 1)[None] / 127.5 - 1
    for name, modules in codec.levels.items():
        with torch.no_grad():
            tokens = modules.quantizer.tokens(modules.encoder(codec.vae.encode(x)))
        assert np.array_equal(getattr(contents, name).tokens, tokens[0].numpy())
        assert len(np.unique(tokens)) > 1


def test_what_training_changed_is_what_is_loaded(folder):
    plain = load_codec(folder, device="cpu")
    how = {"base": tiny_sd3_folder(), "text": plain.painter.text, "merge": False}
    painter = parts.load_painter(folder / "painter", CPU, **how)
    trained = ("lora_", "pos_embed.proj") if folder.name == "lora" else ("",)
    change(painter.flow.transformer, trained)
    change(painter.decoder)
    change(plain.levels["fine"].encoder)
    parts.save_painter(painter, folder / "painter", packed=False)
    parts.save_level(plain.levels["fine"], folder / "fine", packed=False)
    loaded = load_codec(folder, device="cpu")
    z, codes, above = (
        torch.randn(1, *size, generator=torch.Generator().manual_seed(2))
        for size in ((16, 8, 8), (4, 4, 4), (4, 1, 1))
    )
    t, one = torch.tensor([0.6]), torch.ones(1)

    def velocity(painter):
        told = guidance_features(one, painter.decoder.guidance_width)
        start, features = painter.decoder(Codes(codes, torch.ones(1, 1, 4, 4), above), told)
        conditions = Conditions(start, features, painter.text.encode(["a red house"]))
        return painter.flow(z, t, conditions, one)

    with torch.no_grad():
        encoders = (codec.levels["fine"].encoder(z) for codec in (plain, loaded))
        assert torch.equal(*encoders)
        assert torch.allclose(velocity(painter), velocity(loaded.painter), atol=1e-5)
    before, after = (codec.painter.flow.transformer for codec in (plain, loaded))
    name = "transformer_blocks.0.attn.to_q.weight"
    assert not torch.allclose(before.get_parameter(name), after.get_parameter(name))


def test_facts_survive_writing_a_file_has_the_digest_and_an_adapter_is_folded_in(lora):
    about = read_about(lora)
    write_about(about, lora)
    assert read_about(lora) == about
    codec = load_codec(lora, device="cpu")
    transformer = codec.painter.flow.transformer
    assert type(transformer).__name__ == "SD3Transformer2DModel"
    assert not any("lora" in name for name, _ in transformer.named_modules())
    assert codec.encode(picture()).fingerprint == bytes.fromhex(about.digest)[0]
    assert (about.shift, about.base, about.captioner) == (3.0, "sd3-medium", "auto")
    assert codec.shift == 3.0


def test_the_folder_holds_the_documented_files_and_no_others(folder):
    wanted = {"model.json", "caption_language.npz", "painter/flow.json"}
    wanted |= {f"{level}/{name}" for level in LEVELS for name in (ENTROPY_FILE, "search.json")}
    networks = [f"{level}/{part}" for level in LEVELS for part in ("hyper_encoder", "quantizer")]
    networks.append("painter/hyper_decoder")
    if folder.name == "lora":
        wanted |= {f"painter/lora/{name}" for name in ("adapter_config.json", ADAPTER_FILE)}
    else:
        networks.append("painter/transformer")
    wanted |= {f"{part}/{name}" for part in networks for name in ("config.json", WEIGHTS_FILE)}
    assert set(files_of(folder)) == wanted


QUERY = "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight"
SHORT = {"base_model.model.pos_embed.proj.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: rename(w, QUERY, "lost"), r"to_q\.lora_A\.weight is missing; lost is unknown$"),
        (lambda w: w.update(lost=torch.zeros(1)), rf"{ADAPTER_FILE}': lost is unknown$"),
        (lambda w: w.update(SHORT), r"embed\.proj\.bias has shape \(3,\), expected \(16,\)$"),
    ],
)
def test_an_adapter_that_is_damaged_or_does_not_fit_is_named(lora, edit, message):
    change_weights(lora / "painter" / "lora" / ADAPTER_FILE, edit)
    with pytest.raises(WeightsError, match=message) as caught:
        load_codec(lora, device="cpu")
    assert "\n" not in str(caught.value)
    (lora / "painter" / "lora" / "adapter_config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"adapter .*painter/lora' cannot be read"):
        load_codec(lora, device="cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 1}, r"format 1, this build reads 2$"),
        ({"base": "sd4"}, r"model\.json: base must be one of sd3-medium, sd3\.5-medium, got 'sd4'"),
        ({"base": "sd3.5-medium"}, r"base is 'sd3\.5-medium', expected 'sd3-medium'$"),
        ({"digest": "00" * 32}, r"model\.json says 000000000000: codebooks or entropy models are"),
    ],
)
def test_a_checkpoint_of_another_version_or_base_is_refused(lora, values, message):
    edit_json(lora / "model.json", **values)
    with pytest.raises(WeightsError, match=message):
        load_codec(f"sd3-medium:{lora}", device="cpu")


def test_an_unknown_setting_is_named(lora):
    path = lora / "painter" / "flow.json"
    for key, message in (("tyle", "tyle"), ("start", "start must be 'codes' or 'noise'")):
        path.write_text(json.dumps({key: 64}))
        with pytest.raises(WeightsError, match=rf"flow\.json.*{message}"):
            load_codec(lora, device="cpu")


def test_an_adapter_without_its_library_says_what_to_install(lora, monkeypatch):
    text = load_text(tiny_sd3_folder(), CPU, t5_tokens=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UnavailableError, match="run `pip install peft`"):
        parts.load_painter(lora / "painter", CPU, base=tiny_sd3_folder(), text=text)


def test_no_checkpoint_ships_and_the_message_says_so():
    with pytest.raises(WeightsError, match="'sd3-medium': no trained checkpoint ships"):
        load_codec("sd3-medium")
    with pytest.raises(WeightsError, match="'sd3-medium:not here': no folder 'not here'"):
        load_codec("sd3-medium:not here")
