"""The commands on a real, tiny model: data in, data out, nothing lost, one line of error."""

import argparse
import io
import json
import os
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.cli import build_parser, main, terminal
from percov2_core.cli.files import Output
from percov2_core.errors import BitstreamError, ConfigError
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
    (
        ["compress", "IN", "-o", "OUT", "--tokens", "x"],
        "argument --tokens: expected a whole number",
    ),
    (["compress", "IN", "-o", "OUT", "--tokens", "4"], "--tokens: needs --mode hybrid, got --mode"),
    (["compress", "IN", "-o", "OUT", "--mode", "hybrid", "--tokens", "7"], "tokens must be in [0"),
    (["compress", "IN", "-o", "OUT", "--captioner", "fixed"], "fixed: needs --caption TEXT"),
    (
        ["compress", "IN", "-o", "OUT", "--caption", "a", "--captioner", "blip"],
        "--caption: takes the place of --captioner blip, got both",
    ),
    (["compress", "IN", "-o", "no/such/a.pcv2"], "output: no folder 'no/such'"),
    (["compress", "IN", "-o", "."], "output: must be a file, got the folder '.'"),
    (["compress", "IN", "-o", "a.png"], "output: must end in .pcv2, got 'a.png'"),
    (["compress", "IN", "-o", "/dev/full"], "output: must end in .pcv2, got '/dev/full'"),
    (["compress", "IN", "-o", "OUT", "--fit", "63"], "argument --fit: expected a whole number"),
    (["bench", "--size", "32"], "--size: expected a whole number from 64 to 4096, got '32'"),
    (["bench", "--batch", "0"], "--batch: expected a whole number from 1 to 1000, got '0'"),
    (["train", "extreme", "--out", "x", "--device", "gpu"], "--device: expected cpu, cuda or"),
    (["decompress", "PACKED", "-o", "out.jpg"], "output: must end in .png, .tif, .tiff, .bmp"),
    (["decompress", "PACKED", "-o", "no/out.png"], "output: no folder 'no'"),
    (
        ["decompress", "PACKED", "-o", "out.png", "--steps", "0"],
        "argument --steps: expected a whole number from 1",
    ),
    (
        ["decompress", "PACKED", "-o", "out.png", "--guidance", "nan"],
        "argument --guidance: expected",
    ),
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
    names = {"IN": photo, "PACKED": packed, "OUT": "a.pcv2"}
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
        ("inspect", b"", "percov2: the file is empty"),
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


@pytest.mark.parametrize(("command", "name"), [("compress", "a.pcv2"), ("decompress", "a.png")])
def test_missing_files_are_named(command, name, tmp_path, capsys):
    missing = str(tmp_path / "missing")
    assert main([command, missing, "-o", str(tmp_path / name)]) == 1
    assert capsys.readouterr().err == f"percov2: {missing}: No such file or directory\n"


def test_a_missing_model_is_named(photo, tmp_path, capsys):
    assert main(["compress", photo, "-o", "-", "--model", str(tmp_path / "none")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "none") in line


def test_weights_of_a_model_that_is_not_there_are_an_error(tmp_path, capsys):
    assert main(["weights", "--device", "cpu", "--model", str(tmp_path / "none")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "none") in line


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stderr", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_progress_is_shown_on_a_terminal_only_and_goes(stderr, shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr())
    monkeypatch.setattr(terminal, "PATIENCE_S", 0.01)
    with terminal.Progress("decompress") as progress:
        progress.say("decompress, step 1 of 2")
        for _ in range(1000):
            if "step 1 of 2, " in sys.stderr.getvalue() or not shown:
                break
            progress._done.wait(0.01)
    text = sys.stderr.getvalue()
    assert ("step 1 of 2, " in text) is shown
    assert text.rpartition("\r")[2] == ""


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
    assert capsys.readouterr().err == "percov2: standard output: Broken pipe\n"


LOST = "percov2: output: "


def links(photo, kind):
    """The picture by another name that a file of the format may have."""
    other = photo.with_name("other.pcv2")
    {"same": photo.rename, "soft": other.symlink_to, "hard": other.hardlink_to}[kind](
        other if kind == "same" else photo
    )
    return other


@pytest.mark.parametrize("kind", ["same", "soft", "hard"])
def test_the_picture_itself_is_never_written_to(kind, photo, tmp_path, capsys):
    mine = tmp_path / "photo.png"
    mine.write_bytes(Path(photo).read_bytes())
    other = links(mine, kind)
    source = other if kind == "same" else mine
    assert main(["compress", str(source), "-o", str(other), "--force"]) == 2
    assert capsys.readouterr().err == f"{LOST}{str(other)!r} is the file to read\n"
    assert source.read_bytes() == Path(photo).read_bytes()


def test_a_file_that_is_there_is_replaced_by_force_only(photo, model, tmp_path, capsys):
    file, linked = tmp_path / "a.pcv2", tmp_path / "b.pcv2"
    file.write_bytes(b"precious")
    file.chmod(0o640)
    linked.symlink_to(file)
    argv = ["compress", photo, "-o", str(linked), "--model", model]
    assert main(argv) == 2
    assert capsys.readouterr().err == f"{LOST}{str(linked)!r} exists; --force replaces it\n"
    assert file.read_bytes() == b"precious"
    assert main([*argv, "--force"]) == 0
    assert Stream.from_bytes(file.read_bytes()).width == 161
    assert linked.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_crash_before_the_new_file_is_complete_loses_nothing(step, error, tmp_path, monkeypatch):
    file = tmp_path / "a.pcv2"
    file.write_bytes(b"precious")

    def crash(*_, **__):
        raise error

    output = Output(str(file), force=True)
    monkeypatch.setattr(step, crash)
    with pytest.raises(type(error)) as caught:
        output.write(b"new")
    monkeypatch.undo()
    assert getattr(caught.value, "filename", str(file)) == str(file)
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == b"precious"


def test_a_file_that_came_during_the_work_is_kept(tmp_path):
    file = tmp_path / "a.pcv2"
    output = Output(str(file), force=False)
    output.check((".pcv2",), source="-")
    file.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists"):
        output.write(b"new")
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == b"precious"


def test_a_large_picture_is_refused_with_the_way_out_which_works(model, tmp_path, capsys):
    large, file = str(tmp_path / "large.png"), str(tmp_path / "a.pcv2")
    picture(4200, 2100).save(large)
    assert main(["compress", large, "-o", file, "--model", model]) == 1
    assert "--fit 4096" in capsys.readouterr().err
    assert main(["compress", large, "-o", file, "--model", model, "--fit", "128"]) == 0
    assert capsys.readouterr().out.startswith("128x64: ")


def shell(words, *, cwd):
    """A command as a shell runs it, with its redirections."""
    line = f"{sys.executable} -m percov2_core {words}"
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compress - -o a.pcv2 <&-", "standard input: is closed"),
        ("decompress - -o a.png <&-", "standard input: is closed"),
        ("compress IN -o - >&-", "standard output: is closed"),
        ("--version >&-", "standard output: is closed"),
        ("compress missing.png -o a.pcv2", "missing.png: No such file or directory"),
        ("compress . -o a.pcv2", ".: Is a directory"),
    ],
)
def test_every_end_is_one_sentence_and_status_1(words, message, photo, tmp_path):
    done = shell(words.replace("IN", photo), cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.startswith("percov2: ")) == (1, True)
    assert message in line
    assert not list(tmp_path.iterdir())


def test_a_full_device_behind_standard_output_is_named(packed, photo, model, monkeypatch, capsys):
    for words in (["inspect", packed], ["compress", photo, "-o", "-"]):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert main([*words, "--model", model]) == 1
        message = "percov2: standard output: No space left on device\n"
        assert capsys.readouterr().err == message


def test_a_console_that_knows_ascii_alone_gets_every_text(photo, model, tmp_path, monkeypatch):
    file = str(tmp_path / "a.pcv2")
    assert main(["compress", photo, "-o", file, "--model", model, "--caption", "\xe9t\xe9"]) == 0
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["inspect", file, "--model", model]) == 0
    assert rb"caption   '\xe9t\xe9'" in sys.stdout.buffer.getvalue()


def test_warnings_of_libraries_stay_inside(monkeypatch, capsys):
    def warn(name):
        warnings.warn("/usr/lib/python3/site-packages/x.py: old", UserWarning, stacklevel=1)
        raise BitstreamError("damaged")

    monkeypatch.setattr("percov2_core.cli.inspect.read_stream", warn)
    assert main(["inspect", "a.pcv2"]) == 1
    assert capsys.readouterr().err == "percov2: damaged\n"


def test_a_library_that_is_missing_is_named_with_the_way_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for name in [name for name in sys.modules if name.startswith("percov2_core.evaluation.")]:
        if name != "percov2_core.evaluation.command":
            monkeypatch.delitem(sys.modules, name)
    assert main(["evaluate", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == (
        "percov2: pandas is not installed: run `pip install 'percov2-core[evaluate]'`\n"
    )


def parsers():
    (commands,) = build_parser()._subparsers._group_actions
    return commands.choices


@pytest.mark.parametrize("name", parsers())
def test_help_explains_every_argument_and_shows_its_default(name):
    parser = parsers()[name]
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, action.dest
        if action.default not in (None, False, [], "", argparse.SUPPRESS):
            words = action.default if isinstance(action.default, list) else [action.default]
            assert f"(default: {' '.join(map(str, words))})" in text


HEAVY = {"torch", "numpy", "PIL", "diffusers", "transformers", "pandas", "huggingface_hub"}


def loaded(*words, cwd):
    """Status, and the modules that a command has loaded at its end."""
    code = "import sys\nfrom percov2_core.cli import main\ntry: status = main(sys.argv[1:])\n"
    code += "except SystemExit as end: status = end.code\n"
    code += "print(status, *sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cwd, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    status, *modules = done.stderr.splitlines()[-1].split()
    return int(status), set(modules)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        *(([name, "--help"], 0) for name in parsers()),
        (["compress", "photo.png", "-o", "photo.png"], 2),
        (["decompress", "missing.pcv2", "-o", "a.png"], 1),
        (["inspect", "/dev/null"], 1),
    ],
)
def test_help_and_wrong_use_load_no_heavy_library(words, status, tmp_path):
    found, modules = loaded(*words, cwd=tmp_path)
    assert found == status
    assert not HEAVY & modules


def test_a_wrong_picture_is_refused_before_torch_is_loaded(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"hello")
    status, modules = loaded("compress", "a.jpg", "-o", "a.pcv2", cwd=tmp_path)
    assert status == 1
    assert "PIL" in modules
    assert not {"torch", "diffusers"} & modules


def test_version_and_project_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    done = shell("--version", cwd=ROOT)
    assert done.stdout == f"percov2 {project['version']}\n"
