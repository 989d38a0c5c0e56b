"""Models from and to the Hub, against a stand-in on this machine; every refusal is one line."""

import pytest
from huggingface_hub import constants

from percov2_core.caption.captioner import BLIP_MODEL
from percov2_core.cli import main
from percov2_core.errors import WeightsError
from percov2_core.weights import hub as client
from percov2_core.weights import load_codec
from percov2_core.weights.find import base_files, find_base
from percov2_core.weights.sizes import BASES
from tests.hub import COMMIT, TOKEN, files_of, stand_in
from tests.tiny import picture
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


def test_base_and_checkpoint_are_fetched_and_then_work_offline(hub, monkeypatch):
    monkeypatch.setenv("PERCOV2_ALLOW_DOWNLOAD", "1")
    hub.models[CHECKPOINT] = files_of(tiny_checkpoint(2))
    data = load_codec(f"sd3-medium:{CHECKPOINT}", device="cpu").encode(picture()).to_bytes()
    asked = len(hub.asked)
    monkeypatch.delenv("PERCOV2_ALLOW_DOWNLOAD")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    codec = load_codec(f"sd3-medium:{CHECKPOINT}", device="cpu")
    assert codec.encode(picture()).to_bytes() == data
    assert asked > 0 and len(hub.asked) == asked


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


@pytest.mark.parametrize("answered", [0, 1])
def test_a_hub_that_falls_silent_is_given_up_on(hub, monkeypatch, answered):
    monkeypatch.setattr(client, "ANSWER_S", 2.0)  # enough to answer on a busy machine
    hub.silent_from = answered
    assert f"{hub.address} did not answer in 2 s" in refusal()
    assert len(hub.asked) == answered + 1


def test_a_checkpoint_survives_the_way_to_the_hub_and_back(hub, monkeypatch, capsys):
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
    monkeypatch.setenv("PERCOV2_ALLOW_DOWNLOAD", "1")
    back = load_codec(f"sd3-medium:{CHECKPOINT}", device="cpu")
    here = load_codec(checkpoint, device="cpu")
    assert back.encode(picture()).to_bytes() == here.encode(picture()).to_bytes()


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
