"""The Spacefile, the plan, and publishing to a stand-in of the Hub with the Hub's own client."""

from functools import partial

import huggingface_hub
import pytest
import yaml
from huggingface_hub import HfApi, SpaceCard, constants
from huggingface_hub.utils import _http
from packaging.specifiers import SpecifierSet

from percov2_core.cli import main
from percov2_core.deploy import publish
from percov2_core.deploy.spacefile import MAX_TOTAL_BYTES, make_plan, read_manifest, update_readme
from percov2_core.errors import ConfigError
from tests.hub import OWNER, TOKEN, Space, stand_in
from tests.test_package import PROJECT, listed
from tests.ui_server import ROOT, free_port

SPACE = f"{OWNER}/percov2"


@pytest.fixture
def endpoint(monkeypatch):
    """The client as in a process of its own: on the network, with a token; call it to say where."""
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    monkeypatch.setattr(publish, "POLL_S", (0.01, 0.01))
    yield lambda address: monkeypatch.setattr(publish, "HfApi", partial(HfApi, endpoint=address))
    huggingface_hub.set_client_factory(_http.default_client_factory)


@pytest.fixture
def hub(endpoint):
    with stand_in() as running:
        endpoint(running.address)
        yield running


def deploy(capsys, *arguments):
    """Run the command; -> its status, and the lines that it said."""
    status = main(["deploy", *arguments])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err.splitlines()


def refusal(capsys, *arguments, status=1):
    """Run the command, which is to be refused; -> its one line."""
    got, _, (line,) = deploy(capsys, *arguments)
    assert got == status
    return line


@pytest.fixture(scope="module")
def plan():
    return make_plan(read_manifest(), ROOT)


def content():
    return yaml.safe_load((ROOT / "Spacefile").read_text(encoding="utf-8"))


def test_front_matter_spacefile_requirements_and_readme_agree():
    manifest, card = read_manifest(), SpaceCard.load(ROOT / "README.md")
    assert card.data.to_dict() == manifest.page.front_matter
    assert card.text.startswith("\n# PerCoV2\n")
    assert "python -m percov2_core deploy" in card.text and "Spacefile" in card.text

    (pin,) = listed("constraints.txt")["gradio"].specifier
    assert pin.version == manifest.page.sdk_version
    assert listed("requirements.txt")["gradio"].specifier.contains(manifest.page.sdk_version)
    assert SpecifierSet(PROJECT["requires-python"]).contains(manifest.page.python_version)
    torch = listed("requirements.txt")["torch"].specifier
    assert all(torch.contains(f"2.{minor}.0") for minor in range(8, 12))


def test_a_dry_run_lists_what_runs_and_nothing_else(capsys, plan, monkeypatch):
    paths = set(plan.files)
    assert {"app.py", "requirements.txt", "README.md", "Spacefile", "LICENSE"} <= paths
    assert {"percov2_core/ui/page.css", "percov2_core/models/embedded/model.json"} <= paths
    assert {path.split("/")[0] for path in paths if "/" in path} == {"percov2_core", "assets"}
    assert not any("__pycache__" in path or "/." in f"/{path}" for path in paths)
    assert plan.files == {path: (ROOT / path).stat().st_size for path in sorted(paths)}
    assert plan.total_bytes < MAX_TOTAL_BYTES == 100_000_000
    monkeypatch.delenv("HF_TOKEN", raising=False)
    status, lines, errors = deploy(capsys, "--dry-run", "--hardware", "t4-small")
    assert status == 0 and errors == []
    assert lines[:3] == ["space     OWNER/percov2", "hardware  t4-small", "sleeps    3600 s"]
    assert set(lines) >= {f"{size:>10,}  {path}" for path, size in plan.files.items()}


def test_a_new_space_gets_the_same_files_byte_for_byte(hub, capsys, plan):
    status, lines, _ = deploy(capsys)
    assert status == 0 and lines[-1] == f"running: {hub.address}/spaces/{SPACE}"
    space = hub.spaces[SPACE]
    there = {path: data for path, data in space.files.items() if path != ".gitattributes"}
    assert there == {path: (ROOT / path).read_bytes() for path in plan.files}
    assert hub.large, "the weights must have gone through the large-file storage"
    assert space.variables == plan.manifest.settings.variables
    assert (space.hardware, space.sleep_time) == ("cpu-basic", None)
    assert any("no secret HF_TOKEN" in line for line in lines)


def test_an_update_removes_what_is_gone_and_sets_what_differs(hub, capsys, plan):
    old = {"Spacefile": b"old", "gone.py": b"", ".gitattributes": b"kept", "README.md": b"old"}
    variables = {"OMP_NUM_THREADS": "9", "MINE": "kept"}
    hub.spaces[SPACE] = Space(files=dict(old), variables=variables, stale=3)
    status, _, errors = deploy(capsys, "--space", SPACE, "--hardware", "l4x1")
    assert status == 0, errors
    space = hub.spaces[SPACE]
    assert set(space.files) == {*plan.files, ".gitattributes"}
    assert space.files[".gitattributes"] == b"kept"
    assert space.variables == {**plan.manifest.settings.variables, "MINE": "kept"}
    assert (space.hardware, space.sleep_time) == ("l4x1", 3600)
    assert space.stages == ["RUNNING"], "it must have waited for the new files to run"
    assert sum("/commit/" in asked for asked in hub.asked) == 1, "no half of the files ever runs"
    assert not any("repos/create" in asked for asked in hub.asked)


def test_what_stands_in_the_way_is_said(hub, capsys, endpoint, monkeypatch):
    assert "expected one of cpu-basic, " in refusal(capsys, "--hardware", "toaster", status=2)
    assert "expected OWNER/NAME, got 'a/b/c'" in refusal(capsys, "--space", "a/b/c", status=2)
    assert "may not write to other/percov2" in refusal(capsys, "--space", "other/percov2")
    hub.foreign.add(SPACE)
    assert f"the name {SPACE} is taken: choose another" in refusal(capsys)
    precious = {"README.md": b"", "game.py": b"precious"}
    hub.spaces[SPACE] = Space(files=dict(precious))
    assert "has no Spacefile" in refusal(capsys) and hub.spaces[SPACE].files == precious
    stages = ["BUILDING", "BUILD_ERROR"]
    hub.spaces[SPACE] = Space({"Spacefile": b""}, stages=stages, message="no such package")
    assert "is in stage BUILD_ERROR: no such package: read the log at" in refusal(capsys)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "does not accept it: run `hf auth login`" in refusal(capsys)
    endpoint(address := f"http://127.0.0.1:{free_port()}")
    assert f"percov2: network: no answer from {address}" in refusal(capsys)
    monkeypatch.delenv("HF_TOKEN")
    assert refusal(capsys).startswith("percov2: token: none found: run `hf auth login`")


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ("repos/create", 402, "the host wants it paid for: refused with 402: see"),
        ("commit/main", 403, "may not write to"),
        ("whoami", 429, "too many questions: try again in a few minutes"),
        ("variables", 500, "answers 500: refused with 500: try again in a few minutes"),
    ],
)
def test_a_refusal_says_what_to_do(hub, capsys, part, status, words):
    hub.refuse[part] = status
    assert words in refusal(capsys)


@pytest.mark.parametrize(
    ("place", "key", "value", "words"),
    [
        ("page", "colorTo", "teal", "page.colorTo: Input should be 'red', "),
        ("page", "short_description", "x" * 61, "String should have at most 60 characters"),
        ("page", "python_version", 3.12, "page.python_version: Input should be a valid string"),
        ("page", "startup_duration_timeout", "soon", "should match pattern '^[1-9][0-9]*[mh]$'"),
        ("page", "extra", 1, "page.extra: Extra inputs are not permitted, got 1"),
        ("settings", "secrets", {"A B": "c"}, "settings.secrets.A B.[key]: String should match"),
        ("", "space", "a b", "space: String should match pattern"),
        ("", "upload", ["../other"], "upload.0: Value error, expected a path inside"),
    ],
)
def test_a_wrong_field_of_the_spacefile_is_named(tmp_path, place, key, value, words):
    changed = content()
    (changed[place] if place else changed)[key] = value
    (tmp_path / "Spacefile").write_text(yaml.safe_dump(changed), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^Spacefile: ") as caught:
        read_manifest(tmp_path)
    assert words in str(caught.value)


SMALL = ["README.md", "Spacefile", "app.py", "requirements.txt"]


def small_repository(folder, *, upload=SMALL):
    changed = {**content(), "upload": upload}
    (folder / "Spacefile").write_text(yaml.safe_dump(changed), encoding="utf-8")
    for name in ("app.py", "requirements.txt"):
        (folder / name).write_text("")
    (folder / "README.md").write_text("---\ntitle: old\n---\n\n# Title\n", encoding="utf-8")
    update_readme(read_manifest(folder), folder)
    return folder


def test_without_git_the_plan_leaves_caches_out(tmp_path):
    root = small_repository(tmp_path, upload=[*SMALL, "package/"])
    with pytest.raises(ConfigError, match="no file of 'package/' is in git"):
        make_plan(read_manifest(root), root)
    for name in ("a.py", "__pycache__/a.pyc", ".hidden"):
        (root / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "package" / name).write_text("x")
    assert list(make_plan(read_manifest(root), root).files) == sorted([*SMALL, "package/a.py"])
    (root / "requirements.txt").unlink()
    with pytest.raises(ConfigError, match=r"no file of 'requirements.txt' is in git"):
        make_plan(read_manifest(root), root)


def test_too_much_to_upload_a_stale_readme_or_no_spacefile_is_refused(tmp_path):
    root = small_repository(tmp_path)
    with (root / "app.py").open("wb") as file:
        file.truncate(MAX_TOTAL_BYTES)
    with pytest.raises(ConfigError, match="expected at most 100,000,000 bytes, got 100,0"):
        make_plan(read_manifest(root), root)
    (root / "README.md").write_text("---\ntitle: other\n---\n\n# Title\n")
    with pytest.raises(ConfigError, match=r"README.md: its front matter .* --update-readme"):
        make_plan(read_manifest(root), root)
    (root / "Spacefile").write_text("a: [")
    with pytest.raises(ConfigError, match="Spacefile: no YAML"):
        read_manifest(root)
    (root / "Spacefile").unlink()
    with pytest.raises(ConfigError, match="Spacefile: none in"):
        read_manifest(root)
