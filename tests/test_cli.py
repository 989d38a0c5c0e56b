"""The three commands on a real, tiny model: data in, data out, and one line when it is wrong."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.cli import main
from tests.tiny import picture, tiny_codec, tiny_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def model():
    return str(tiny_folder())


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "photo.png"
    picture(161, 97).save(path)
    return str(path)


@pytest.fixture(scope="session")
def packed(photo, model):
    path = Path(photo).with_suffix(".pcv2")
    assert main(["compress", photo, "-o", str(path), "--model", model]) == 0
    return str(path)


def feed(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize(
    "options",
    [
        ["--mode", "ultra-low"],
        ["--mode", "extreme", "--schedule", "var"],
        ["--mode", "hybrid", "--tokens", "3", "--caption", "a red barn"],
        ["--mode", "hybrid", "--captioner", "describer"],
    ],
)
def test_a_picture_becomes_a_file_and_a_picture_of_the_same_size(options, photo, model, tmp_path):
    file, output = tmp_path / "a.pcv2", tmp_path / "a.png"
    assert main(["compress", photo, "-o", str(file), "--model", model, *options]) == 0
    stream = Stream.from_bytes(file.read_bytes())
    assert stream.mode == options[1]
    assert main(["decompress", str(file), "-o", str(output), "--model", model]) == 0
    with Image.open(output) as image:
        assert (image.size, image.mode, image.format) == ((161, 97), "RGB", "PNG")


def test_the_command_writes_what_python_writes(photo, model, tmp_path):
    file = tmp_path / "a.pcv2"
    options = ["--mode", "hybrid", "--tokens", "2", "--schedule", "quincunx", "--caption", "a dog"]
    assert main(["compress", photo, "-o", str(file), "--model", model, *options]) == 0
    stream = tiny_codec().encode(
        Image.open(photo), "hybrid", tokens=2, schedule="quincunx", caption="a dog"
    )
    assert file.read_bytes() == stream.to_bytes()


def test_the_painting_options_reach_the_codec(packed, model, tmp_path):
    output = tmp_path / "a.bmp"
    options = ["--steps", "3", "--guidance", "2.5", "--preset", "vivid", "--seed", "7"]
    assert main(["decompress", packed, "-o", str(output), "--model", model, *options]) == 0
    stream = Stream.from_bytes(Path(packed).read_bytes())
    image = tiny_codec().decode(stream, steps=3, guidance=2.5, seed=7)
    with Image.open(output) as written:
        assert written.tobytes() == image.tobytes()


def test_a_dash_is_standard_input_and_output(photo, model, monkeypatch, capsysbinary):
    feed(monkeypatch, Path(photo).read_bytes())
    assert main(["compress", "-", "-o", "-", "--model", model]) == 0
    data = capsysbinary.readouterr().out
    feed(monkeypatch, data)
    assert main(["decompress", "-", "-o", "-", "--model", model]) == 0
    assert Image.open(io.BytesIO(capsysbinary.readouterr().out)).size == (161, 97)
    feed(monkeypatch, data)
    assert main(["inspect", "-", "--json", "--model", model]) == 0
    assert json.loads(capsysbinary.readouterr().out)["bytes"] == len(data)


@pytest.mark.parametrize("mode", ["ultra-low", "extreme", "hybrid"])
def test_inspect_as_json_has_these_keys_and_bits_that_add_up(mode, photo, model, tmp_path, capsys):
    file = tmp_path / "a.pcv2"
    main(["compress", photo, "-o", str(file), "--model", model, "--mode", mode, "--caption", "é\n"])
    capsys.readouterr()
    assert main(["inspect", str(file), "--json", "--model", model]) == 0
    found = json.loads(capsys.readouterr().out)
    keys = "width height mode schedule tokens_sent caption bytes bpp bits"
    assert list(found) == keys.split()
    assert list(found["bits"]) == ["header", "caption", "tokens"]
    assert sum(found["bits"].values()) == 8 * found["bytes"] == 8 * file.stat().st_size
    assert found["bpp"] == 8 * found["bytes"] / (161 * 97)
    assert (found["width"], found["height"], found["caption"]) == (161, 97, "é\n")


def test_inspect_for_people_shows_the_same_and_no_control_characters(
    photo, model, tmp_path, capsys
):
    file = tmp_path / "a.pcv2"
    main(["compress", photo, "-o", str(file), "--model", model, "--caption", "\x1b[31mred"])
    capsys.readouterr()
    assert main(["inspect", str(file), "--model", model]) == 0
    text = capsys.readouterr().out
    for expected in ("161x97", "extreme", "qlds", "77 of 77 sent", f"{file.stat().st_size} bytes"):
        assert expected in text
    assert r"\x1b[31mred" in text
    assert "\x1b" not in text


WRONG_USE = [
    ([], "the following arguments are required: COMMAND"),
    (["explode"], "argument COMMAND: invalid choice: 'explode'"),
    (["compress", "IN"], "the following arguments are required: -o/--output"),
    (["compress", "IN", "-o", "OUT", "--mode", "best"], "argument --mode: invalid choice: 'best'"),
    (["compress", "IN", "-o", "OUT", "--tokens", "x"], "argument --tokens: invalid int value: 'x'"),
    (["compress", "IN", "-o", "OUT", "--tokens", "4"], "--tokens: needs --mode hybrid, got --mode"),
    (["compress", "IN", "-o", "OUT", "--mode", "hybrid", "--tokens", "7"], "tokens must be in [0"),
    (["compress", "IN", "-o", "OUT", "--captioner", "fixed"], "fixed: needs --caption TEXT"),
    (
        ["compress", "IN", "-o", "OUT", "--caption", "a", "--captioner", "blip"],
        "--caption: takes the place of --captioner blip, got both",
    ),
    (["compress", "IN", "-o", "no/such/OUT"], "output: no folder 'no/such'"),
    (["compress", "IN", "-o", "."], "output: must be a file, got the folder '.'"),
    (["decompress", "PACKED", "-o", "out.jpg"], "output: must end in .png, .tif, .tiff, .bmp"),
    (["decompress", "PACKED", "-o", "no/out.png"], "output: no folder 'no'"),
    (["decompress", "PACKED", "-o", "out.png", "--steps", "0"], "steps must be in [1, "),
    (["decompress", "PACKED", "-o", "out.png", "--guidance", "nan"], "guidance must be in [1, "),
    (["decompress", "PACKED", "-o", "out.png", "--seed", "-1"], "argument --seed: expected"),
    (
        ["decompress", "PACKED", "-o", "out.png", "--seed", "4294967296"],
        "argument --seed: expected a whole number from 0 to 4294967295, got '4294967296'",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_USE)
def test_wrong_use_is_one_line_and_status_2(
    arguments, message, photo, packed, model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    names = {"IN": photo, "PACKED": packed}
    argv = [names.get(word, word) for word in arguments]
    argv += ["--model", model] if "-o" in argv else []
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        sys.exit(main(argv))
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("percov2")
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "data", "message"),
    [
        (
            "compress",
            b"hello",
            "percov2: this file is not a picture that can be read here: save it",
        ),
        ("inspect", b"", "percov2: magic: needs bytes 0 to 0, file has 0"),
        ("inspect", b"\x89PNG", "percov2: not a PerCoV2 file: starts with byte 89"),
        ("decompress", bytes(300_000), "percov2: file: expected at most 200000 bytes, got 200001"),
    ],
)
def test_bad_data_is_one_line_and_status_1(command, data, message, monkeypatch, capsys):
    feed(monkeypatch, data)
    output = [] if command == "inspect" else ["-o", "-"]
    assert main([command, "-", *output]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_a_damaged_file_is_reported_and_writes_nothing(packed, model, tmp_path, capsys):
    damaged = bytearray(Path(packed).read_bytes())
    damaged[-3] ^= 0x10
    file, output = tmp_path / "a.pcv2", tmp_path / "a.png"
    file.write_bytes(damaged)
    assert main(["decompress", str(file), "-o", str(output), "--model", model]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not output.exists()


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_missing_files_are_named(command, tmp_path, capsys):
    missing = str(tmp_path / "missing")
    assert main([command, missing, "-o", str(tmp_path / "a.png")]) == 1
    assert capsys.readouterr().err == f"percov2: {missing}: No such file or directory\n"


def test_a_missing_model_is_named(photo, tmp_path, capsys):
    assert main(["compress", photo, "-o", "-", "--model", str(tmp_path / "none")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "none") in line


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stderr", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_the_progress_bar_is_shown_on_a_terminal_only(
    stderr, shown, packed, model, tmp_path, monkeypatch
):
    stream = stderr()
    monkeypatch.setattr(sys, "stderr", stream)
    argv = ["decompress", packed, "-o", str(tmp_path / "a.png"), "--model", model, "--steps", "2"]
    assert main(argv) == 0
    assert ("decompress" in stream.getvalue()) is shown


def test_an_interrupted_command_leaves_no_traceback(packed, monkeypatch, capsys):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("percov2_core.cli.inspect.read_stream", interrupt)
    assert main(["inspect", packed]) == 130
    assert capsys.readouterr().err == "percov2: interrupted\n"


def test_a_reader_that_leaves_causes_no_traceback(packed, model, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["inspect", packed, "--model", model]) == 1
    assert capsys.readouterr().err == ""


def test_the_module_runs_and_wrong_use_loads_no_heavy_library():
    code = (
        "import sys, percov2_core.cli as c; print(c.main(['inspect', '/dev/null']), *sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    status, *modules = result.stdout.split()
    assert status == "1"
    assert not {"torch", "numpy", "PIL"} & set(modules)
    run = [sys.executable, "-m", "percov2_core", "inspect", "/dev/null"]
    result = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "percov2: magic: needs bytes 0 to 0, file has 0\n"
