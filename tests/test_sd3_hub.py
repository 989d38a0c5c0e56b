"""Stable Diffusion 3 from the Hub, and where it lives on a machine."""

import shutil

import pytest
import torch
from huggingface_hub import constants

from percov2_core import PerCoV2
from percov2_core.caption.captioner import BLIP_MODEL
from percov2_core.cli import main
from percov2_core.config import MODES
from percov2_core.errors import ConfigError, WeightsError
from percov2_core.weights import hub as client
from percov2_core.weights import load_codec, warm_up
from percov2_core.weights.base import load_text
from percov2_core.weights.find import base_files, fetch_painter, find_base
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import BASES
from tests.hub import COMMIT, TOKEN, files_of, stand_in
from tests.tiny import counted, picture, tiny_codec, tiny_folder
from tests.tiny_sd3 import tiny_checkpoint, tiny_sd3_folder
from tests.ui_server import free_port

BASE = BASES["sd3-medium"].repository
CHECKPOINT = "somebody/percov2-sd3"
WEIGHTS = ["weights", "--model", "sd3-medium", "--device", "cpu"]


def point_to(monkeypatch, address):
    """What HF_ENDPOINT does where the library is loaded later."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in in the Hub's place, an empty cache, and no token."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "PERCOV2_SD3_BASE", "PERCOV2_ALLOW_DOWNLOAD", "PERCOV2_BLIP"):
        monkeypatch.delenv(name, raising=False)
    with stand_in() as found:
        point_to(monkeypatch, found.address)
        found.models[BASE] = files_of(tiny_sd3_folder())
        yield found
    client.set_client_factory(client._client)  # closes the connections to the stand-in


def fetch():
    client.download(BASE, base_files(t5=True), probe="model_index.json")


def refusal():
    with pytest.raises(WeightsError) as caught:
        fetch()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_nothing_is_fetched_unasked_nor_second_copies_of_weights_nor_an_unwanted_encoder(hub):
    spare = ["text_encoder/model.fp16.safetensors", "sd3_medium.safetensors", "text_encoder/x.bin"]
    hub.models[BASE] |= dict.fromkeys(spare, b"large")
    with pytest.raises(WeightsError) as caught:
        find_base("sd3-medium", t5=True)
    assert str(caught.value) == (
        f"'sd3-medium': '{BASE}' is not in the Hub's cache: run `python -m percov2_core weights "
        "--model sd3-medium --download`, or set PERCOV2_SD3_BASE to its folder"
    )
    assert hub.asked == []
    client.download(BASE, base_files(t5=False), probe="model_index.json")
    assert not (find_base("sd3-medium", t5=False) / "text_encoder_3").exists()
    with pytest.raises(WeightsError, match="is not in the Hub's cache"):
        find_base("sd3-medium", t5=True)
    fetch()
    assert files_of(find_base("sd3-medium", t5=True)) == files_of(tiny_sd3_folder())


def test_what_stands_in_the_way_is_said_in_one_line(hub, monkeypatch, capsys):
    hub.gated.add(BASE)
    message = f"'{BASE}' is gated: accept its licence at {hub.address}/{BASE}, then set HF_TOKEN to"
    message += " a token of that account"
    assert refusal() == message
    assert main([*WEIGHTS, "--download"]) == 1
    assert capsys.readouterr().err == f"percov2: {message}\n"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert refusal() == f"'{BASE}': {hub.address} answers 401: set HF_TOKEN to a valid token"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    whole, hub.models[BASE] = hub.models[BASE], {"README.md": b"another thing"}
    assert refusal().startswith(f"'{BASE}' lacks a file that every such model has: ")
    del hub.models[BASE]
    where = f"'{BASE}' is not at {hub.address}/{BASE}, or not for everyone: "
    assert refusal() == f"{where}check the name, or set HF_TOKEN"
    hub.models[BASE] = whole
    with monkeypatch.context() as patch:
        point_to(patch, f"{hub.address}/elsewhere")
        assert refusal() == f"'{BASE}': {hub.address}/elsewhere answers 404: check HF_ENDPOINT"
        point_to(patch, address := f"http://127.0.0.1:{free_port()}")
        why = "cannot be reached: check the network or HF_ENDPOINT"
        assert refusal() == f"'{BASE}': {address} {why}"
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert refusal() == f"'{BASE}' cannot be fetched while HF_HUB_OFFLINE is set: unset it"
    fetch()


def test_a_second_painter_that_is_asked_for_is_fetched_once_or_refused_in_words(hub, monkeypatch):
    hub.gated.add(BASE)
    with pytest.raises(WeightsError, match="is gated: accept its licence"):
        fetch_painter("sd3-medium")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch_painter("sd3-medium")
    assert files_of(find_base("sd3-medium", t5=True)) == files_of(tiny_sd3_folder())
    asked = len(hub.asked)
    fetch_painter("sd3-medium")
    fetch_painter(str(tiny_sd3_folder()))
    assert len(hub.asked) == asked


@pytest.mark.parametrize("answered", [0, 1])
def test_a_hub_that_falls_silent_is_given_up_on(hub, monkeypatch, answered):
    monkeypatch.setattr(client, "ANSWER_S", 2.0)  # enough to answer on a busy machine
    hub.silent_from = answered
    assert f"{hub.address} did not answer in 2 s" in refusal()
    assert len(hub.asked) == answered + 1


def test_a_codec_is_saved_sent_and_found_by_the_names_of_diffusers(hub, monkeypatch, tmp_path):
    codec = PerCoV2.from_pretrained(tiny_folder(), device="cpu")
    data, place = codec.encode(picture()).to_bytes(), codec.save_pretrained(tmp_path / "a" / "b")
    assert PerCoV2.from_pretrained(place, device="cpu").encode(picture()).to_bytes() == data
    for wrong in (place, place / "c", place / "model.json"):
        with pytest.raises(ConfigError, match="folder: must be another one than the model's, got"):
            PerCoV2.from_pretrained(place).save_pretrained(wrong)
    with pytest.raises(WeightsError, match="'somebody/tiny' is not in the Hub's cache: run"):
        PerCoV2.from_pretrained("somebody/tiny")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert codec.push_to_hub("somebody/tiny") == f"{hub.address}/somebody/tiny"
    monkeypatch.setenv("PERCOV2_ALLOW_DOWNLOAD", "1")
    found = PerCoV2.from_pretrained("somebody/tiny", device="cpu")
    assert found.encode(picture()).to_bytes() == data and found.folder != codec.folder


def test_a_checkpoint_comes_back_from_the_hub_and_then_works_offline(hub, monkeypatch, capsys):
    checkpoint, hub.models[CHECKPOINT] = tiny_checkpoint(2), {}
    with pytest.raises(WeightsError, match=rf"^'{CHECKPOINT}'.*set HF_TOKEN"):
        client.upload(checkpoint, CHECKPOINT)
    del hub.models[CHECKPOINT]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("PERCOV2_SD3_BASE", str(tiny_sd3_folder()))
    words = ["weights", "--model", f"sd3-medium:{checkpoint}", "--device", "cpu"]
    assert main([*words, "--upload", CHECKPOINT]) == 0
    assert f"sent to {hub.address}/{CHECKPOINT}\n" in capsys.readouterr().out
    assert hub.models[CHECKPOINT] == files_of(checkpoint)
    data = load_codec(checkpoint, device="cpu").encode(picture()).to_bytes()
    monkeypatch.delenv("PERCOV2_SD3_BASE")
    monkeypatch.setenv("PERCOV2_ALLOW_DOWNLOAD", "1")
    for offline in (False, True):
        asked = len(hub.asked)
        codec = load_codec(f"sd3-medium:{CHECKPOINT}", device="cpu")
        assert codec.encode(picture()).to_bytes() == data
        assert (len(hub.asked) == asked) == offline
        monkeypatch.delenv("PERCOV2_ALLOW_DOWNLOAD", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_the_weights_command_tells_what_is_missing_and_fetches_it(hub, capsys):
    assert main(WEIGHTS) == 0
    before = capsys.readouterr().out
    assert "text_encoder_3     missing" in before
    assert f"accept its licence at {hub.address}/{BASE}, set HF_TOKEN (not set now)" in before
    hub.models[BLIP_MODEL] = {"config.json": b"{}", "model.safetensors": b"1234", "x.bin": b""}
    assert main([*WEIGHTS, "--download"]) == 0
    after = capsys.readouterr().out
    assert "float32 on cpu" in after
    assert f"snapshots/{COMMIT}/transformer" in after
    assert after.count("missing") == 1 and "no trained checkpoint ships" in after
    asked = len(hub.asked)
    assert main([*WEIGHTS, "--download"]) == 0
    assert len(hub.asked) == asked


pytestmark = pytest.mark.usefixtures("sd3_base")


def test_every_setting_can_be_set_and_nothing_set_means_half_precision_on_a_gpu():
    assert Residency.from_environment({}) == Residency()
    assert Residency(device="cpu").precision == torch.float32
    assert Residency(device="cuda").precision == torch.bfloat16
    words = ["DEVICE=cuda:1", "DTYPE=float32", "T5=0", "OFFLOAD=t5", "COMPILE=1", "WARM_UP=no"]
    found = Residency.from_environment(dict(f"PERCOV2_{word}".split("=") for word in words))
    assert found == Residency(
        device="cuda:1", dtype="float32", t5=False, offload="t5", compile=True, warm_up=False
    )
    assert found.precision == torch.float32
    given = Residency.from_environment({"PERCOV2_DEVICE": "cuda:1"}, device="cpu")
    assert given.target == torch.device("cpu")
    places = {"none": ("cuda", "cuda"), "t5": ("cuda", "cpu"), "text": ("cpu", "cpu")}
    for offload, (clip, t5) in places.items():
        home = Residency(device="cuda", offload=offload)
        assert (home.rest("clip").type, home.rest("t5").type) == (clip, t5)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PERCOV2_T5", "maybe", "PERCOV2_T5 must be 1 or 0, got 'maybe'"),
        ("PERCOV2_OFFLOAD", "vae", "PERCOV2_OFFLOAD must be one of none, t5, text, got 'vae'"),
        ("PERCOV2_DTYPE", "fp8", "PERCOV2_DTYPE must be one of auto, bfloat16, float32, got 'fp8'"),
        ("PERCOV2_DEVICE", "gpu", "device must be cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_a_wrong_setting_is_named(variable, value, message):
    with pytest.raises(ConfigError) as caught:
        Residency.from_environment({variable: value})
    assert str(caught.value) == message


def test_visiting_text_encoders_say_the_same_and_leave_nothing_behind(monkeypatch):
    home = load_text(tiny_sd3_folder(), Residency(device="cpu"), t5_tokens=8)
    # Another place than "cpu" to PyTorch, and yet here.
    monkeypatch.setattr(Residency, "rest", lambda *_: torch.device("cpu:0"))
    away = load_text(tiny_sd3_folder(), Residency(device="cpu"), t5_tokens=8)
    for caption in ("a red house", "by the sea"):
        for ours, theirs in zip(away.encode([caption]), home.encode([caption]), strict=True):
            assert torch.equal(ours, theirs)
        left = {p.device.type for model in away.models for p in model.parameters()}
        assert left == {"meta"}


def test_large_networks_run_in_half_precision_and_ours_do_not():
    codec = load_codec(tiny_checkpoint(0), residency=Residency(device="cpu", dtype="bfloat16"))
    painter, levels = codec.painter, codec.levels.values()
    large = [painter.flow.transformer, codec.vae.vae, *painter.text.models]
    assert {p.dtype for module in large for p in module.parameters()} == {torch.bfloat16}
    ours = [painter.decoder, *(part for m in levels for part in (m.encoder, m.quantizer))]
    assert {p.dtype for module in ours for p in module.parameters()} == {torch.float32}
    assert codec.decode(codec.encode(picture()), steps=2, guidance=2.0).size == picture().size


# Torch's own, from what it imports to compile.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_the_networks_are_compiled_only_where_that_is_asked_for_and_allowed(monkeypatch):
    def compiled():
        codec = load_codec(tiny_checkpoint(0), residency=Residency(device="cpu", compile=True))
        return codec.painter.flow.transformer._compiled_call_impl is not None

    assert compiled()
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert not compiled()


def test_warming_up_paints_one_picture_per_mode_unasked_on_a_gpu_of_ones_own(monkeypatch):
    codec = tiny_codec()
    painted = counted(monkeypatch, codec, "decode")
    warm_up(codec, Residency(device="cpu"))
    assert painted == []
    warm_up(codec, Residency(device="cpu", warm_up=True))
    assert [stream.mode for (stream,) in painted] == list(MODES)
    assert not Residency(device="cuda", warm_up=False).warms_up
    wanted = Residency(device="cuda", compile=True)
    assert wanted.compile_allowed and wanted.warms_up
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    assert not wanted.compile_allowed and not wanted.warms_up


def told(capsys, *arguments):
    assert main(["weights", "--device", "cpu", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_weights_command_tells_sizes_and_places(capsys):
    lines = told(capsys, "--model", f"sd3-medium:{tiny_checkpoint(0)}")
    vae = tiny_sd3_folder() / "vae"
    size = sum(path.stat().st_size for path in vae.iterdir())
    assert lines[0].endswith(", float32 on cpu")
    assert lines[1].split() == ["vae", f"{size / 1e3:.1f}", "kB", "cpu", str(vae)]
    names = [line.split()[0] for line in lines[1:-2]]
    parts = ["vae", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3"]
    assert names == [*parts, "coarse", "fine", "painter", "captioner"]
    names = [line.split()[0] for line in told(capsys)]
    assert names == ["embedded,", "vae", "coarse", "fine", "painter", "together"]


def test_the_weights_command_names_a_missing_part(capsys, monkeypatch, tmp_path):
    broken = shutil.copytree(tiny_sd3_folder(), tmp_path / "base")
    shutil.rmtree(broken / "transformer")
    monkeypatch.setenv("PERCOV2_SD3_BASE", str(broken))
    monkeypatch.setenv("PERCOV2_OFFLOAD", "t5")
    lines = told(capsys, "--model", f"sd3-medium:{tiny_checkpoint(0)}")
    missing = next(line for line in lines if line.startswith("transformer"))
    assert missing.split(None, 3)[1:] == ["missing", "cpu", "no such folder"]
    assert lines[-1].startswith("base: accept its licence at https://huggingface.co/stabilityai/")
