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


def listed(name):
    lines = (ROOT / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in found}


def extra(name):
    found = [Requirement(text) for text in PROJECT["optional-dependencies"][name]]
    return {canonicalize_name(r.name): r for r in found if r.name != PROJECT["name"]}


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
    allowed = listed("requirements.txt") | extra("baselines") | extra("fid")
    for name in imported_libraries():
        assert {canonicalize_name(owner) for owner in owners.get(name, [name])} & set(allowed), name


def test_every_listed_library_is_pinned_to_a_version_in_its_range():
    pins = listed("constraints.txt")
    wanted = listed("requirements.txt") | extra("baselines") | extra("dev")
    assert set(pins) == set(wanted)
    for name, requirement in wanted.items():
        (pin,) = pins[name].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), name


def test_each_target_of_the_makefile_sets_up_the_environment_by_itself():
    rules = dict(re.findall(r"^(\w+): (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert rules == {
        "demo": "$(INSTALLED)",
        "test": "lint",
        "lint": "$(INSTALLED)",
        "bench": "$(INSTALLED)",
    }


def test_the_repository_stays_under_its_size():
    result = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if result.returncode:
        pytest.skip("needs git and a checkout")
    files = [ROOT / name for name in result.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 50 * 2**20
