"""What the repository promises as a whole: its version, libraries, targets, markers and size."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import percov2_core
from tests.tiny import ROOT, run

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
