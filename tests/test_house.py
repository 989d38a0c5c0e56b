"""What the repository promises as a whole: light imports, declared and pinned libraries."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "percov2_core").rglob("*.py"))
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


def imported_libraries():
    names = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names) - {"percov2_core"}


@pytest.mark.parametrize("module", ["bitstream", "config", "errors", "cli"])
def test_light_modules_load_no_heavy_library(module):
    code = f"import sys, percov2_core.{module}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {"torch", "numpy", "PIL", "diffusers"} & set(result.stdout.split()) == set()


def test_every_library_that_the_package_imports_is_listed():
    owners = packages_distributions()
    users = set(PROJECT["optional-dependencies"]) - {"dev"}
    allowed = wanted(*users)
    for name in imported_libraries():
        assert {canonicalize_name(owner) for owner in owners.get(name, [name])} & set(allowed), name


def test_requirements_are_the_codec_and_the_page():
    assert {n: str(r) for n, r in listed("requirements.txt").items()} == {
        n: str(r) for n, r in wanted("demo").items()
    }


def test_every_listed_library_is_pinned_to_a_version_in_its_range():
    pins, ranges = listed("constraints.txt"), wanted("dev")
    assert set(pins) == set(ranges)
    for name, requirement in ranges.items():
        (pin,) = pins[name].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), name


def test_every_extra_but_the_one_that_downloads_weights_is_installed_for_development():
    users = set(PROJECT["optional-dependencies"]) - {"fid"}
    assert set(wanted(*users)) == set(wanted("dev"))


def targets():
    text = (ROOT / "Makefile").read_text()
    return text, re.findall(r"^([\w-]+):", text, re.MULTILINE)


def test_no_target_of_the_makefile_is_mistaken_for_a_file():
    text, names = targets()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert sorted(phony.split()) == sorted(names)


def test_each_target_of_the_makefile_sets_up_the_environment_first():
    _, names = targets()
    for name in names:
        plan = subprocess.run(
            ["make", "--dry-run", "--always-make", name],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        first, *rest = [line for line in plan.splitlines() if ".venv/bin/" in line]
        assert "-m venv .venv" in first
        assert "pip install" in rest[0]
        assert len(rest) > 1


def test_the_readme_names_targets_that_there_are():
    _, names = targets()
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"(?:^|`)make (?:[A-Z]+=\S+ )*([a-z]+)", text, re.MULTILINE)
    assert named
    assert set(named) <= set(names)


def test_every_marker_marks_something():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for marker in config["markers"]:
        assert f"pytest.mark.{marker.partition(':')[0]}" in tests


def test_the_repository_stays_under_its_size():
    result = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if result.returncode:
        pytest.skip("needs git and a checkout")
    files = [ROOT / name for name in result.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 50 * 2**20
