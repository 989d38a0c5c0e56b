"""The commands on a real, tiny model: data in, data out, nothing lost, one line of error."""

import argparse
import io
import json
import os
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.cli import build_parser, main, terminal
from percov2_core.cli.files import Output
from percov2_core.errors import BitstreamError, ConfigError
from tests.tiny import ROOT, picture, run, tiny_codec, tiny_folder


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
    "given",
    [
        {"mode": "ultra-low", "captioner": "describer"},
        {"schedule": "var", "size": 60},
        {"mode": "hybrid", "tokens": 2, "schedule": "quincunx", "caption": "a dog"},
    ],
)
def test_compress_writes_what_python_writes(given, photo, model, tmp_path):
    file = tmp_path / "a.pcv2"
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    assert main(["compress", photo, "-o", str(file), "--model", model, *options]) == 0
    assert file.read_bytes() == tiny_codec().encode(Image.open(photo), **given).to_bytes()


def test_a_file_of_settings_stands_where_no_option_does(photo, packed, model, tmp_path):
    run, file, painted = (tmp_path / name for name in ("run.json", "a.pcv2", "a.png"))
    run.write_text('{"size": 60, "caption": "a dog", "seed": 5, "steps": 3, "guidance": 2.5}\n')
    given = ["--model", model, "--settings", str(run)]
    options = ["--mode", "ultra-low", "--captioner", "describer"]
    for more, wanted in (
        ([], {"size": 60, "caption": "a dog", "seed": 5}),
        (options, {"mode": "ultra-low", "seed": 5}),
    ):
        assert main(["compress", photo, "-o", str(file), "--force", *given, *more]) == 0
        assert file.read_bytes() == tiny_codec().encode(Image.open(photo), **wanted).to_bytes()
    for more, wanted in (
        ([], {"steps": 3, "guidance": 2.5, "seed": 5}),
        (["--preset", "vivid", "--seed", "0"], {"preset": "vivid", "seed": 0}),
    ):
        assert main(["decompress", packed, "-o", str(painted), "--force", *given, *more]) == 0
        image = tiny_codec().decode(Stream.from_bytes(Path(packed).read_bytes()), **wanted)
        assert Image.open(painted).tobytes() == image.tobytes()
    run.write_text('{"stepps": 3}')
    assert main(["decompress", packed, "-o", str(painted), "--force", *given]) == 2


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".bmp", "BMP")])
def test_decompress_paints_what_python_paints(suffix, kind, packed, model, tmp_path):
    output = tmp_path / f"a{suffix}"
    options = ["--steps", "3", "--guidance", "2.5", "--preset", "vivid", "--seed", "7"]
    assert main(["decompress", packed, "-o", str(output), "--model", model, *options]) == 0
    stream = Stream.from_bytes(Path(packed).read_bytes())
    image = tiny_codec().decode(stream, steps=3, guidance=2.5, seed=7)
    with Image.open(output) as written:
        assert (written.format, written.size) == (kind, (161, 97))
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


def test_inspect_for_people_prints_on_any_console_and_commands_none(
    photo, model, tmp_path, monkeypatch
):
    file = tmp_path / "a.pcv2"
    main(["compress", photo, "-o", str(file), "--model", model, "--caption", "\x1b[31mété"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["inspect", str(file), "--model", model]) == 0
    text = sys.stdout.buffer.getvalue().decode()
    size = f"{file.stat().st_size} bytes"
    for expected in ("161x97", "extreme", "qlds", "fine      77 of 77 tokens sent", size):
        assert expected in text
    assert r"caption   '\x1b[31m\xe9t\xe9'" in text


WRONG_USE = [
    ("", "the following arguments are required: COMMAND"),
    ("explode", "argument COMMAND: invalid choice: 'explode'"),
    ("compress", "the following arguments are required: IN"),
    ("compress -", "output: -o OUT is needed for standard input"),
    ("compress IN -o OUT --force --skip-existing", "not allowed with argument --force"),
    ("compress IN -o OUT --mode best", "argument --mode: invalid choice: 'best'"),
    ("compress IN -o OUT --tokens x", "--tokens: expected a whole number"),
    ("compress IN -o OUT --tokens 4", "tokens: needs mode hybrid, got mode extreme"),
    ("compress IN -o OUT --size 0", "--size: expected a whole number from 1 to 200000, got '0'"),
    (
        "compress IN -o OUT --size 99 --mode extreme",
        "size: takes the place of mode extreme, got both",
    ),
    ("compress IN -o OUT --size 9", "size: the caption alone takes"),
    ("compress IN -o OUT --captioner fixed", "fixed: needs --caption TEXT"),
    ("compress IN -o OUT --caption a --captioner blip", "captioner blip, got both"),
    ("compress IN -o no/such/a.pcv2", "output: no folder 'no/such'"),
    ("compress . -o a.pcv2", "input: '.' holds no file that ends in .avif, .bmp"),
    ("compress IN -o a.png", "output: must end in .pcv2, got 'a.png'"),
    ("compress IN -o /dev/full", "output: must be a file, got the device '/dev/full'"),
    ("compress IN -o OUT --fit 63", "argument --fit: expected a whole number"),
    ("bench --size 32", "--size: expected a whole number from 64 to 4096, got '32'"),
    ("train tokens --out x --device gpu", "--device: expected cpu, cuda or"),
    ("decompress PACKED -o out.jpg", "output: must end in .png, .tif, .tiff, .bmp"),
    ("decompress PACKED -o a.png --steps 0", "--steps: expected a whole number"),
    ("decompress PACKED -o a.png --guidance nan", "--guidance: expected a number"),
    ("decompress PACKED -o a.png --seed -1", "--seed: expected a whole number"),
    ("decompress PACKED -o a.png --seed 4294967296", "from 0 to 4294967295, got"),
    ("evaluate DATA -o a --limit 0", "--limit: expected a whole number of at least 1, got '0'"),
    ("evaluate DATA -o a --processes 0", "--processes: expected a whole number of at least 1"),
    ("evaluate DATA -o a --device gpu", "device must be cpu, cuda, cuda:N or auto, got 'gpu'"),
    ("evaluate DATA -o a --device mps", "device must be cpu, or one of the "),
    ("evaluate DATA -o a --codecs gif", "codec must be one of jpeg, "),
    ("evaluate DATA -o a --codecs jpeg@0", "codec 'jpeg@0': no quality 0; it has 1 to 95"),
    ("evaluate DATA -o a --codecs jpeg@x", "codec 'jpeg@x': qualities must be whole numbers"),
    ("evaluate DATA -o a --modes extreme --steps 0", "steps must be in [1, 100], got 0"),
]
WHAT_IS_MISSING = [
    ("compress missing.png -o a.pcv2", "missing.png: No such file or directory"),
    ("decompress missing.pcv2 -o a.png", "missing.pcv2: No such file or directory"),
    ("compress IN -o a.pcv2 --settings none.json", "none.json: No such file or directory"),
    ("compress IN missing.png -o out", "missing.png: No such file or directory"),
    ("compress IN --model ./no/model -o -", "no/model"),
    ("compress IN --model sd3-medium:none -o -", "'sd3-medium:none': no folder 'none'"),
    ("inspect PACKED --model ./no/model", "no/model"),
    ("weights --device cpu --model ./no/model", "no/model"),
]
PROBLEMS = [*((*row, 2) for row in WRONG_USE), *((*row, 1) for row in WHAT_IS_MISSING)]


@pytest.mark.parametrize(("words", "message", "status"), PROBLEMS)
def test_wrong_use_is_one_line_and_status_2_and_what_is_missing_status_1(
    words, message, status, photo, packed, model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    data = str(Path(photo).parent)
    names = {"IN": photo, "PACKED": packed, "OUT": "a.pcv2", "DATA": data}
    argv = [names.get(word, word) for word in words.split()]
    argv += ["--model", model] if "-o" in argv and "--model" not in argv else []
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        sys.exit(main(argv))
    (line,) = capsys.readouterr().err.splitlines()
    assert (caught.value.code, line.startswith("percov2")) == (status, True)
    assert message in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "data", "message"),
    [
        ("compress", b"hello", "percov2: this file is not a picture that can be read here: save"),
        ("inspect", b"", "percov2: the file is empty"),
        ("inspect", b"\x89PNG", "percov2: not a PerCoV2 file: starts with byte 89"),
        ("decompress", bytes(300_000), "percov2: file: expected at most 200000 bytes, got 200001"),
        ("decompress", "PACKED", "percov2: "),  # with one bit changed
    ],
)
def test_bad_data_is_one_line_status_1_and_no_file(
    command, data, message, packed, model, tmp_path, monkeypatch, capsys
):
    if data == "PACKED":
        data = bytearray(Path(packed).read_bytes())
        data[-3] ^= 0x10
    feed(monkeypatch, data)
    monkeypatch.chdir(tmp_path)
    output = [] if command == "inspect" else ["-o", "a.png" if command == "decompress" else "-"]
    assert main([command, "-", *output, "--model", model]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_on_a_terminal_only_and_goes(shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: shown)
    monkeypatch.setattr(terminal, "PATIENCE_S", 0.01)
    with terminal.Progress("decompress") as progress:
        progress.what = "decompress, step 1 of 2"
        for _ in range(1000):
            if "step 1 of 2, " in sys.stderr.getvalue() or not shown:
                break
            progress._done.wait(0.01)
    assert ("step 1 of 2, " in sys.stderr.getvalue()) is shown
    assert sys.stderr.getvalue().rpartition("\r")[2] == ""


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [(KeyboardInterrupt(), 130, "interrupted"), (BitstreamError("damaged"), 1, "damaged")],
)
def test_an_end_in_the_middle_shows_no_traceback_or_warning(
    error, status, line, monkeypatch, capsys
):
    def stop(name):
        warnings.warn("/usr/lib/python3/site-packages/x.py: old", UserWarning, stacklevel=1)
        raise error

    monkeypatch.setattr("percov2_core.cli.pictures.read_stream", stop)
    assert main(["inspect", "a.pcv2"]) == status
    assert capsys.readouterr().err == f"percov2: {line}\n"


@pytest.mark.parametrize("link", [None, Path.symlink_to, Path.hardlink_to])
def test_the_picture_itself_is_never_written_to(link, photo, tmp_path, capsys):
    other = tmp_path / "other.pcv2"
    mine = tmp_path / "photo.png" if link else other
    mine.write_bytes(Path(photo).read_bytes())
    if link:
        link(other, mine)
    assert main(["compress", str(mine), "-o", str(other), "--force"]) == 2
    assert capsys.readouterr().err == f"percov2: output: {str(other)!r} is the file to read\n"
    assert mine.read_bytes() == Path(photo).read_bytes()


def test_a_file_that_is_there_is_replaced_by_force_only(photo, model, tmp_path, capsys):
    file, linked = tmp_path / "a.pcv2", tmp_path / "b.pcv2"
    output = Output(str(file), force=False)
    output.check((".pcv2",), source="-")
    file.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists"):  # though it came during the work
        output.write(b"new")
    assert list(tmp_path.iterdir()) == [file]
    file.chmod(0o640)
    linked.symlink_to(file)
    argv = ["compress", photo, "-o", str(linked), "--model", model]
    assert main(argv) == 2
    said = f"percov2: output: {str(linked)!r} exists; --force replaces it\n"
    assert capsys.readouterr().err == said
    assert file.read_bytes() == b"precious"
    assert main([*argv, "--force"]) == 0
    assert Stream.from_bytes(file.read_bytes()).width == 161
    assert linked.is_symlink() and file.stat().st_mode & 0o777 == 0o640


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compress - -o a.pcv2 <&-", "standard input: is closed"),
        ("compress IN -o - >&-", "standard output: is closed"),
        ("--version >&-", "standard output: is closed"),
    ],
)
def test_a_closed_input_or_output_is_one_sentence_and_status_1(words, message, photo, tmp_path):
    line = f"{sys.executable} -m percov2_core {words.replace('IN', photo)}"
    done = run("bash", "-c", line, cwd=tmp_path, PYTHONPATH=str(ROOT))
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.startswith("percov2: ")) == (1, True)
    assert message in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["inspect", "compress"])
@pytest.mark.parametrize("problem", ["No space left on device", "Broken pipe"])
def test_an_output_that_fails_is_named(command, problem, packed, photo, model, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    words = [packed] if command == "inspect" else [photo, "-o", "-"]
    with open(writer if problem == "Broken pipe" else "/dev/full", "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main([command, *words, "--model", model]) == 1
    assert capsys.readouterr().err == f"percov2: standard output: {problem}\n"


def test_a_library_that_is_missing_is_named_with_the_way_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for name in [name for name in sys.modules if name.startswith("percov2_core.evaluation.")]:
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


NETWORKS = {"diffusers", "transformers", "scipy", "torch._dynamo"}
HEAVY = {"torch", "numpy", "PIL", "pandas", "huggingface_hub"} | NETWORKS
LOADED = """
import os, sys
set_first = ("OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS")
for name in set_first:
    os.environ.pop(name, None)
from percov2_core.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print(status, *map(os.environ.get, set_first), *sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "status", "unwanted"),
    [
        ("--help", 0, HEAVY),
        ("--version", 0, HEAVY),
        *((f"{name} --help", 0, HEAVY) for name in parsers()),
        ("compress photo.png -o photo.png", 2, HEAVY),
        ("decompress missing.pcv2 -o a.png", 1, HEAVY),
        ("inspect /dev/null", 1, HEAVY),
        ("compress /dev/null -o a.pcv2", 1, {"torch"} | NETWORKS),
        ("inspect PACKED --model MODEL", 0, HEAVY - {"numpy", "PIL"} | {"httpx2"}),
    ],
)
def test_a_command_loads_only_what_it_needs(words, status, unwanted, packed, model, tmp_path):
    names = {"PACKED": packed, "MODEL": model}
    argv = [names.get(word, word) for word in words.split()]
    done = run(sys.executable, "-c", LOADED, *argv, cwd=tmp_path, PYTHONPATH=str(ROOT))
    found, waiting, threads, *modules = done.stderr.splitlines()[-1].split()
    assert int(found) == status
    # What torch and NumPy ask for when they are imported.
    assert (waiting, threads) == ("passive", "1")
    assert not unwanted & set(modules)


WITHOUT_NETWORKS = """
import sys
sys.modules.update(dict.fromkeys(("torch", "diffusers", "transformers")))  # they cannot be had
from percov2_core.bitstream import Stream
from percov2_core.cli import main
from percov2_core.contents import Tokens
from percov2_core.weights import load_file_codec

path, model = sys.argv[1:]
assert main(["inspect", path, "--model", model]) == 0
codec, stream = load_file_codec(model), Stream.from_bytes(open(path, "rb").read())
_, caption, coarse, fine, *_ = codec.read(stream)
tokens = Tokens((stream.width, stream.height), caption, coarse.tokens, fine.tokens)
assert codec.write(tokens, stream.mode) == stream
small = codec.write(tokens, size=40)
assert len(small.to_bytes()) <= 40 and codec.read(small).caption == caption
cut = codec.read(codec.truncate(stream, tokens=2)).coarse
assert cut.sent.sum() == 2 and (cut.tokens == coarse.tokens)[cut.sent].all()
"""


def test_files_are_read_written_and_cut_where_there_is_no_torch(photo, model, tmp_path):
    path = str(tmp_path / "low.pcv2")
    assert main(["compress", photo, "-o", path, "--mode", "ultra-low", "--model", model]) == 0
    done = run(sys.executable, "-c", WITHOUT_NETWORKS, path, model, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "mode      ultra-low" in done.stdout
