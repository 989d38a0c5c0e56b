"""The Spacefile, the plan, and publishing to a stand-in of the Hub with the Hub's own client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from percov2_core.deploy.manifest import ROOT, parse_manifest, read_manifest, split_readme
from percov2_core.deploy.plan import MAX_TOTAL_BYTES, Plan, make_plan
from percov2_core.errors import ConfigError
from tests.hub import TOKEN
from tests.space_hub import OWNER, Hub, Space, stand_in
from tests.test_house import listed

SPACE = f"{OWNER}/percov2"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with stand_in() as running:
        yield running


def deploy(
    *arguments: str, endpoint: str = "http://127.0.0.1:9", token: str | None = TOKEN
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the client reads its settings once."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": "/nonexistent",
        "PYTHONWARNINGS": "error::UserWarning",
    }
    if token is not None:
        environment["HF_TOKEN"] = token
    return subprocess.run(
        [sys.executable, "-m", "percov2_core", "deploy", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def refusal(result: subprocess.CompletedProcess[str], *, status: int = 1) -> str:
    """The one line that a refused command says."""
    assert result.returncode == status, result.stderr
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(read_manifest(), ROOT)


def content() -> dict[str, object]:
    return yaml.safe_load((ROOT / "Spacefile").read_text(encoding="utf-8"))


def test_front_matter_spacefile_requirements_and_readme_agree() -> None:
    manifest, readme = read_manifest(), (ROOT / "README.md").read_text(encoding="utf-8")
    front, rest = split_readme(readme)
    assert front == manifest.front_matter
    shown = yaml.safe_load(front.strip("-\n"))
    assert shown == {key: value for key, value in manifest.page.items() if value != []}
    assert rest.startswith("# PerCoV2\n")
    assert "python -m percov2_core deploy" in rest and "Spacefile" in rest

    (pin,) = listed("constraints.txt")["gradio"].specifier
    assert pin.version == manifest.page["sdk_version"]
    assert listed("requirements.txt")["gradio"].specifier.contains(manifest.page["sdk_version"])
    (python,) = [
        line for line in (ROOT / "pyproject.toml").read_text().splitlines() if "requires-p" in line
    ]
    least = tuple(map(int, python.split(">=")[1].strip('"').split(".")))
    assert tuple(map(int, manifest.page["python_version"].split(".")))[:2] >= least
    torch = listed("requirements.txt")["torch"].specifier
    assert all(torch.contains(f"2.{minor}.0") for minor in range(8, 12))


def test_the_plan_holds_what_runs_and_nothing_else(plan: Plan) -> None:
    paths = {file.path for file in plan.files}
    assert {"app.py", "requirements.txt", "README.md", "Spacefile", "LICENSE"} <= paths
    assert "percov2_core/ui/page.css" in paths
    assert "percov2_core/models/embedded/model.json" in paths
    folders = {path.split("/")[0] for path in paths if "/" in path}
    assert folders == {"percov2_core", "assets"}
    assert not any("__pycache__" in path or "/." in f"/{path}" for path in paths)
    assert plan.total_bytes == sum((ROOT / path).stat().st_size for path in paths)
    assert plan.total_bytes < MAX_TOTAL_BYTES == 100_000_000


def test_a_dry_run_lists_every_file_and_asks_nobody(plan: Plan) -> None:
    result = deploy("--dry-run", "--hardware", "t4-small", token=None)
    assert result.returncode == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[:3] == ["space     OWNER/percov2", "hardware  t4-small", "sleeps    3600 s"]
    assert set(lines) >= {f"{file.size_bytes:>10,}  {file.path}" for file in plan.files}
    assert f"{plan.total_bytes:,}  bytes in {len(plan.files)} files" in result.stdout


def test_a_new_space_gets_the_same_files_byte_for_byte(hub: Hub, plan: Plan) -> None:
    result = deploy(endpoint=hub.address)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"running: {hub.address}/spaces/{SPACE}"
    space = hub.spaces[SPACE]
    there = {path: data for path, data in space.files.items() if path != ".gitattributes"}
    assert there == {file.path: (ROOT / file.path).read_bytes() for file in plan.files}
    assert hub.large, "the weights must have gone through the large-file storage"
    assert space.variables == plan.variables
    assert (space.hardware, space.sleep_time) == ("cpu-basic", None)
    assert "no secret HF_TOKEN" in result.stdout


def test_an_update_removes_what_is_gone_and_sets_what_differs(hub: Hub, plan: Plan) -> None:
    old = {"Spacefile": b"old", "gone.py": b"", ".gitattributes": b"kept", "README.md": b"old"}
    variables = {"OMP_NUM_THREADS": "9", "MINE": "kept"}
    hub.spaces[SPACE] = Space(files=dict(old), variables=variables, stale=3)
    result = deploy("--space", SPACE, "--hardware", "l4x1", endpoint=hub.address)
    assert result.returncode == 0, result.stderr
    space = hub.spaces[SPACE]
    assert set(space.files) == {file.path for file in plan.files} | {".gitattributes"}
    assert space.files[".gitattributes"] == b"kept"
    assert space.variables == {**plan.variables, "MINE": "kept"}
    assert (space.hardware, space.sleep_time) == ("l4x1", 3600)
    assert space.stages == ["RUNNING"], "it must have waited for the new files to run"
    assert not any("repos/create" in asked for asked in hub.asked)


def test_a_space_that_is_something_else_is_left_alone(hub: Hub) -> None:
    hub.spaces[SPACE] = Space(files={"README.md": b"", "game.py": b"precious"})
    line = refusal(deploy(endpoint=hub.address))
    assert "has no Spacefile" in line and "--space OWNER/NAME" in line
    assert hub.spaces[SPACE].files == {"README.md": b"", "game.py": b"precious"}


def test_no_token(hub: Hub) -> None:
    line = refusal(deploy(endpoint=hub.address, token=None))
    assert line.startswith("percov2: token: none found: run `hf auth login`")
    assert hub.asked == []


def test_a_token_that_the_hub_does_not_know(hub: Hub) -> None:
    line = refusal(deploy(endpoint=hub.address, token="hf_other"))
    assert "does not accept it: run `hf auth login`" in line


def test_a_name_that_is_taken(hub: Hub) -> None:
    hub.foreign.add(SPACE)
    line = refusal(deploy(endpoint=hub.address))
    assert f"the name {SPACE} is taken: choose another" in line


def test_somebody_elses_namespace(hub: Hub) -> None:
    line = refusal(deploy("--space", "other/percov2", endpoint=hub.address))
    assert "may not write to other/percov2" in line and "settings/tokens" in line


def test_nobody_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        line = refusal(deploy(endpoint=endpoint))
    assert line.startswith(f"percov2: network: no answer from {endpoint}")
    assert "check the connection" in line


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ("repos/create", 402, "the host wants it paid for: refused with 402: see"),
        ("commit/main", 403, "may not write to"),
        ("whoami", 429, "too many questions: try again in a few minutes"),
        ("variables", 500, "answers 500: refused with 500: try again in a few minutes"),
    ],
)
def test_a_refusal_says_what_to_do(hub: Hub, part: str, status: int, words: str) -> None:
    hub.refuse[part] = status
    assert words in refusal(deploy(endpoint=hub.address))


def test_a_space_that_fails_to_build_is_reported_with_its_log(hub: Hub) -> None:
    hub.spaces[SPACE] = Space(
        files={"Spacefile": b""}, stages=["BUILDING", "BUILD_ERROR"], message="no such package"
    )
    line = refusal(deploy(endpoint=hub.address))
    assert "is in stage BUILD_ERROR: no such package: read the log at" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--hardware", "toaster"), "hardware: expected one of cpu-basic, "),
        (("--space", "a/b/c"), "--space: expected OWNER/NAME, got 'a/b/c'"),
    ],
)
def test_a_wrong_argument_is_named(arguments: tuple[str, ...], words: str) -> None:
    assert words in refusal(deploy("--dry-run", *arguments), status=2)


@pytest.mark.parametrize(
    ("place", "key", "value", "words"),
    [
        ("page", "colorTo", "teal", "page.colorTo: expected one of red, "),
        ("page", "short_description", "x" * 61, "expected at most 60 characters"),
        ("page", "python_version", 3.12, "page.python_version: expected a text, in quotes"),
        ("page", "sdk", "docker", "page.sdk: expected gradio, got 'docker'"),
        ("page", "startup_duration_timeout", "soon", "minutes or hours, such as 30m, got 'soon'"),
        ("page", "tags", "one", "page.tags: expected a list of texts, got 'one'"),
        ("page", "pinned", "no", "page.pinned: expected true or false, got 'no'"),
        ("page", "extra", 1, "page: expected the keys app_file, "),
        ("settings", "sleep_time", "1h", "settings.sleep_time: expected a whole number"),
        ("settings", "variables", {"A": 1}, "settings.variables: expected a name and a text"),
        ("settings", "secrets", {"A B": "c"}, "settings.secrets: expected a name and a text"),
        ("", "space", "a b", "space: expected letters, digits"),
        ("", "upload", ["../other"], "upload: expected a path inside the repository"),
        ("", "upload", "app.py", "upload: expected a list of texts"),
    ],
)
def test_a_wrong_field_of_the_spacefile_is_named(
    place: str, key: str, value: object, words: str
) -> None:
    changed = content()
    group = changed[place] if place else changed
    assert isinstance(group, dict)
    group[key] = value
    with pytest.raises(ConfigError, match=r"^Spacefile: ") as caught:
        parse_manifest(changed)
    assert words in str(caught.value)


def small_repository(folder: Path, **changes: object) -> Path:
    """Just enough to plan, without git."""
    changed = {**content(), "upload": ["README.md", "Spacefile", "app.py", "requirements.txt"]}
    (folder / "Spacefile").write_text(yaml.safe_dump({**changed, **changes}), encoding="utf-8")
    for name in ("app.py", "requirements.txt"):
        (folder / name).write_text("")
    front = read_manifest(folder).front_matter
    (folder / "README.md").write_text(f"{front}\n# Title\n", encoding="utf-8")
    return folder


def test_without_git_the_plan_leaves_caches_out(tmp_path: Path) -> None:
    root = small_repository(tmp_path, upload=[*small_upload(), "package/"])
    for name in ("a.py", "__pycache__/a.pyc", ".hidden"):
        (root / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "package" / name).write_text("x")
    paths = [file.path for file in make_plan(read_manifest(root), root).files]
    assert paths == sorted([*small_upload(), "package/a.py"])


def small_upload() -> list[str]:
    return ["README.md", "Spacefile", "app.py", "requirements.txt"]


@pytest.mark.parametrize(
    ("upload", "words"),
    [
        (["README.md", "Spacefile", "app.py"], "expected requirements.txt among the files"),
        ([*small_upload(), "nothing/"], "no file of 'nothing/' is in git"),
    ],
)
def test_an_upload_that_cannot_work_is_refused(
    tmp_path: Path, upload: list[str], words: str
) -> None:
    root = small_repository(tmp_path, upload=upload)
    with pytest.raises(ConfigError, match=words):
        make_plan(read_manifest(root), root)


def test_too_much_to_upload_is_refused(tmp_path: Path) -> None:
    root = small_repository(tmp_path)
    with (root / "app.py").open("wb") as file:
        file.truncate(MAX_TOTAL_BYTES)
    with pytest.raises(ConfigError, match="expected at most 100,000,000 bytes, got 100,0"):
        make_plan(read_manifest(root), root)


def test_a_stale_readme_is_refused(tmp_path: Path) -> None:
    root = small_repository(tmp_path)
    (root / "README.md").write_text("---\ntitle: other\n---\n\n# Title\n")
    with pytest.raises(ConfigError, match=r"README.md: its front matter .* --update-readme"):
        make_plan(read_manifest(root), root)


def test_a_missing_or_broken_spacefile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Spacefile: none in"):
        read_manifest(tmp_path)
    (tmp_path / "Spacefile").write_text("a: [")
    with pytest.raises(ConfigError, match="Spacefile: no YAML"):
        read_manifest(tmp_path)
