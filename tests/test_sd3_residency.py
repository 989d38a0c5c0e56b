"""Where a large model rests, in which precision, and what the weights command tells of it."""

import shutil

import pytest
import torch

from percov2_core.cli import main
from percov2_core.config import MODES
from percov2_core.errors import ConfigError
from percov2_core.weights import load_codec, warm_up
from percov2_core.weights.base import load_text
from percov2_core.weights.residency import Residency
from tests.tiny import counted, picture, tiny_codec
from tests.tiny_sd3 import tiny_checkpoint, tiny_sd3_folder

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
