"""The installed package: a wheel in an empty environment and an empty folder, without a network."""

import re
import shutil
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import ROOT, picture, run

MODEL = ROOT / "percov2_core" / "models" / "embedded"

# Runs commands and prints where the package is, and for which libraries its modules ask themselves.
WATCHED = """
import builtins, sys
wanted, original = set(), builtins.__import__

def watched(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and (globals or {}).get("__name__", "").startswith("percov2_core"):
        wanted.add(name.partition(".")[0])
    return original(name, globals, locals, fromlist, level)

builtins.__import__ = watched
import percov2_core
from percov2_core.cli import main
status = main(["compress", "photo.jpg", "-o", "again.pcv2", "--mode", "hybrid"])
status |= main(["decompress", "photo.pcv2", "-o", "out.png"])
status |= main(["inspect", "photo.pcv2"])
libraries = wanted - set(sys.stdlib_module_names) - {"percov2_core"}
print(percov2_core.__file__, *libraries, file=sys.stderr)
sys.exit(status)
"""
CORE = {"PIL", "constriction", "diffusers", "numpy", "safetensors"}
CORE |= {"tokenizers", "torch", "transformers"}
HUB = {"httpx2", "huggingface_hub"}  # diffusers brings them


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as `pip wheel .` builds it, from a copy: building writes into the folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "percov2_core", source / "percov2_core", ignore=caches)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out]
    built = run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=out)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of an environment with the wheel; libraries are those of this one."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", home / "bin" / "python"]
    done = run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=home)
    assert done.returncode == 0, done.stderr
    # After the environment's own, without the hooks that an editable install has there.
    (here,) = home.glob("lib/python*/site-packages")
    (here / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_the_wheel_holds_the_model_and_requires_what_the_codec_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        (about,) = [name for name in sizes if name.endswith(".dist-info/METADATA")]
        text = archive.read(about).decode()
    always = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", text, re.M)
    assert set(always) == CORE - {"PIL"} | {"pillow"}
    model = {path: path.stat().st_size for path in MODEL.rglob("*") if path.is_file()}
    for path, size_bytes in model.items():
        assert sizes[path.relative_to(ROOT).as_posix()] == size_bytes
    assert len([name for name in sizes if "/models/" in name]) == len(model)
    assert wheel.stat().st_size < 40 * 2**20
    assert {name.partition("/")[0].partition("-")[0] for name in sizes} == {"percov2_core"}


def test_the_installed_command_works_in_an_empty_folder(installed, tmp_path):
    picture(160, 96).save(tmp_path / "photo.jpg")
    done = run(installed / "percov2", "compress", "photo.jpg", "-o", "photo.pcv2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = run(installed / "python", "-c", WATCHED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    home, *libraries = done.stderr.split()
    assert Path(home).is_relative_to(installed.parent)
    assert set(libraries) <= CORE | HUB
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (160, 96)
