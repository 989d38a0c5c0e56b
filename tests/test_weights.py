"""Loading: what is missing, damaged or foreign; the bundled model; checkpoints over SD3."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from percov2_core.bitstream import Stream
from percov2_core.caption.describer import TERMS
from percov2_core.config import LEVELS, MODES, SCHEDULES
from percov2_core.errors import UnavailableError, WeightsError
from percov2_core.evaluation.protocol import centre_square
from percov2_core.flow.transformer import Conditions, guidance_features
from percov2_core.hyper.networks import Codes
from percov2_core.weights import load_codec, parts
from percov2_core.weights.base import load_text, load_times
from percov2_core.weights.files import (
    ENTROPY_FILE,
    WEIGHTS_FILE,
    model_digest,
    read_about,
    write_about,
)
from percov2_core.weights.networks import pack, unpack
from percov2_core.weights.parts import ADAPTER_FILE
from percov2_core.weights.residency import Residency
from tests.hub import files_of
from tests.tiny import ROOT, change_weights, edit_json, picture, rename, rows, tiny_folder
from tests.tiny_sd3 import tiny_checkpoint, tiny_sd3_folder

pytestmark = pytest.mark.usefixtures("sd3_base")
SHORT = {"proj_out.bias": torch.zeros(3)}


@pytest.fixture
def bundle(tmp_path):
    return shutil.copytree(tiny_folder(), tmp_path / "model")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("coarse/hyper_encoder", lambda w: rename(w, "out.weight", "a"), r"HyperEncoder: .*out\.w"),
        ("painter/transformer", lambda w: w.update(SHORT), r"SD3Transformer2DModel: .*out\.bias"),
    ],
)
def test_parameters_that_do_not_fit_are_named(bundle, part, change, message):
    change_weights(bundle / part / WEIGHTS_FILE, change)
    with pytest.raises(WeightsError, match=f"does not fit {message}"):
        load_codec(bundle)


def test_missing_and_damaged_weights_another_format_and_missing_presets_are_named(bundle):
    path, about = bundle / "vae" / WEIGHTS_FILE, bundle / "model.json"
    (bundle / "painter" / "hyper_decoder" / WEIGHTS_FILE).unlink()
    with pytest.raises(WeightsError, match=r"weights: no file at .*hyper_decoder"):
        load_codec(bundle)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="does not fit AutoencoderDC"):
        load_codec(bundle)
    presets = json.loads(about.read_text())["presets"]
    del presets["hybrid"]["vivid"]
    edit_json(about, presets=presets)
    with pytest.raises(WeightsError, match=r"presets lack hybrid/vivid"):
        load_codec(bundle)
    edit_json(about, format=9)
    with pytest.raises(WeightsError, match="format 9, this build reads 2"):
        load_codec(bundle)


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


def test_the_digest_follows_what_gives_tokens_their_meaning_and_nothing_else(bundle):
    before = model_digest(bundle)
    path = bundle / "painter" / "transformer" / WEIGHTS_FILE
    change_weights(path, lambda w: w.update({"proj_out.bias": w["proj_out.bias"] + 1}))
    assert model_digest(bundle) == before
    path = bundle / "fine" / "quantizer" / WEIGHTS_FILE
    change_weights(path, lambda w: w.update({"codebook": -w["codebook"]}))
    assert model_digest(bundle) != before


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)])
def full(request):
    """Whether to take all 24 pictures, of 512 px and with the search, not two small ones."""
    return request.param


@pytest.fixture(scope="module")
def codec(full, shipped, unsearched):
    return shipped if full else unsearched


@pytest.fixture(scope="module")
def found(codec, full, kodak):
    side, every = (512, 1) if full else (256, 12)
    return [codec.look(centre_square(Image.open(path), side)) for path in kodak[::every]]


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
    for image in (centre_square(Image.open(path), side) for path in kodak[::3]):
        before = shipped.encode(image, "hybrid", tokens=0)
        caption = shipped.read(before).caption
        colour = "vivid red" if "red" not in caption else "dark blue"
        changed = re.sub(r"[^,]+ ground", f" {colour} ground", caption)
        assert changed != caption
        after = shipped.encode(image, "hybrid", tokens=0, caption=changed)
        grounds = [
            np.asarray(shipped.decode(s), dtype=float)[2 * side // 3 :].mean(axis=(0, 1))
            for s in (before, after)
        ]
        distances = [np.linalg.norm(ground - TERMS[colour]) for ground in grounds]
        moved += distances[1] < distances[0] - 5
    assert moved >= 6


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
    assert codec.times(4, 8, 8) == load_times(tiny_sd3_folder())(4, 8, 8)


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
NARROW = {"base_model.model.pos_embed.proj.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: rename(w, QUERY, "lost"), r"to_q\.lora_A\.weight is missing; lost is unknown$"),
        (lambda w: w.update(lost=torch.zeros(1)), rf"{ADAPTER_FILE}': lost is unknown$"),
        (lambda w: w.update(NARROW), r"embed\.proj\.bias has shape \(3,\), expected \(16,\)$"),
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
