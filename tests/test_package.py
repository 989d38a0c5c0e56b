"""What the repository promises as a whole; and its package, a wheel in an empty environment and an
empty folder, without a network."""

import ast
import re
import shutil
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import percov2_core
from tests.tiny import ROOT, picture, run

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def by_name(requirements):
    return {canonicalize_name(r.name): r for r in map(Requirement, requirements)}


def listed(name):
    lines = (ROOT / name).read_text().splitlines()
    return by_name(line for line in lines if line and not line.startswith("#"))


def wanted(*extras):
    """What `pip install percov2-core[extras]` asks for; an extra may stand for others."""
    found = by_name(PROJECT["dependencies"])
    for name in extras:
        here = by_name(PROJECT["optional-dependencies"][name])
        own = here.pop(canonicalize_name(PROJECT["name"]), None)
        found |= here | (wanted(*own.extras) if own else {})
    return found


def test_the_version_is_the_projects_and_every_imported_library_is_listed():
    assert percov2_core.__version__ == PROJECT["version"]
    found, expected = listed("requirements.txt"), wanted("demo")  # the codec and the page
    assert {n: str(r) for n, r in found.items()} == {n: str(r) for n, r in expected.items()}
    names = set()
    for path in sorted((ROOT / "percov2_core").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
    owners = packages_distributions()
    users = set(PROJECT["optional-dependencies"]) - {"dev"}
    allowed = wanted(*users)
    for name in names - set(sys.stdlib_module_names) - {"percov2_core"}:
        assert {canonicalize_name(owner) for owner in owners.get(name, [name])} & set(allowed), name


def test_every_listed_library_is_pinned_to_a_version_in_its_range():
    pins, ranges = listed("constraints.txt"), wanted("dev")
    # Every extra is installed for development but the one that downloads weights.
    users = set(PROJECT["optional-dependencies"]) - {"fid"}
    assert set(pins) == set(ranges) == set(wanted(*users))
    for name, requirement in ranges.items():
        (pin,) = pins[name].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), name


def test_the_targets_of_the_makefile_are_phony_set_up_first_and_are_those_of_the_readme():
    makefile, readme = ((ROOT / name).read_text() for name in ("Makefile", "README.md"))
    names = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert sorted(phony.split()) == sorted(names)
    named = re.findall(r"(?:^|`)make (?:[A-Z]+=\S+ )*([a-z]+)", readme, re.MULTILINE)
    assert named and set(named) <= set(names)
    for name in names:
        plan = run("make", "--dry-run", "--always-make", name).stdout
        first, second, *rest = [line for line in plan.splitlines() if ".venv/bin/" in line]
        assert "-m venv .venv" in first and "pip install" in second and rest


def test_the_repository_stays_under_its_size_and_every_marker_marks_something():
    result = run("git", "ls-files", "-z")
    if result.returncode:
        pytest.skip("needs git and a checkout")
    files = [ROOT / name for name in result.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 50 * 2**20
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for marker in config["markers"]:
        assert f"pytest.mark.{marker.partition(':')[0]}" in tests


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
