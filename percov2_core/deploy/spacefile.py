"""The Spacefile: read and checked, the front matter made from it, and the plan that it asks for."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import yaml
from huggingface_hub import SpaceCard, SpaceCardData

from percov2_core.errors import ConfigError

ROOT = Path(__file__).parents[2]
FILE_NAME = "Spacefile"
README = "README.md"
MAX_TOTAL_BYTES = 100 * 10**6

# Limits and names of the host.
MAX_SHORT_DESCRIPTION = 60
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
FREE_HARDWARE = "cpu-basic"  # its sleep time is the host's own

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"

# What a field must be, and the same in words.
_Check: TypeAlias = tuple[Callable[[Any], bool], str]


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _are_inside(value: Any) -> bool:
    return _is_texts(value) and not any(
        path.startswith("/") or ".." in path.split("/") for path in value
    )


def _are_variables(value: Any) -> bool:
    return isinstance(value, dict) and all(
        re.fullmatch(_VARIABLE, str(name)) and isinstance(text, str) for name, text in value.items()
    )


_TEXT = (_matches("(?s).+"), "a text, in quotes if it looks like a number")
_TEXTS = (_is_texts, "a list of texts")
_COLOUR = (_matches("|".join(COLOURS)), f"one of {', '.join(COLOURS)}")
_VARIABLES = (_are_variables, "names, each with a text in quotes")
_PAGE: Mapping[str, _Check] = {
    **dict.fromkeys(("title", "emoji", "license", "app_file", "suggested_hardware"), _TEXT),
    **dict.fromkeys(("sdk_version", "python_version"), _TEXT),
    **dict.fromkeys(("models", "preload_from_hub", "tags"), _TEXTS),
    **dict.fromkeys(("colorFrom", "colorTo"), _COLOUR),
    "sdk": (_matches("gradio"), "gradio"),
    "pinned": (lambda value: isinstance(value, bool), "true or false"),
    "startup_duration_timeout": (_matches("[1-9][0-9]*[mh]"), "minutes or hours, such as 30m"),
    "short_description": (
        _matches(f"(?s).{{1,{MAX_SHORT_DESCRIPTION}}}"),
        f"a text of at most {MAX_SHORT_DESCRIPTION} characters",
    ),
}
_SETTINGS: Mapping[str, _Check] = {
    "hardware": _TEXT,
    "sleep_time": (lambda value: type(value) is int, "a whole number"),
    "variables": _VARIABLES,
    "secrets": _VARIABLES,
}
_IS_GROUP = (lambda value: isinstance(value, dict), "names and values")
_TOP: Mapping[str, _Check] = {
    "space": (_matches(_PART), "letters, digits, '.', '_' and '-'"),
    "page": _IS_GROUP,
    "settings": _IS_GROUP,
    "upload": (_are_inside, "a list of paths inside the repository"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A Spacefile, checked.

    Attributes:
        space: Name of the Space, without its owner.
        page: Key of the front matter -> text, truth value or list of texts, in order.
        hardware: What the Space runs on.
        sleep_time_s: Seconds without a visitor until it sleeps.
        variables: Public environment variables.
        secrets: Name -> what it is for.
        upload: Files, and folders that end in "/", relative to the repository.
    """

    space: str
    page: Mapping[str, Any]
    hardware: str
    sleep_time_s: int
    variables: Mapping[str, str]
    secrets: Mapping[str, str]
    upload: tuple[str, ...]

    @property
    def startup_s(self) -> int:
        """How long the host lets the Space start, in seconds."""
        duration = str(self.page["startup_duration_timeout"])
        return int(duration[:-1]) * {"m": 60, "h": 3600}[duration[-1]]

    @property
    def front_matter(self) -> Mapping[str, Any]:
        """What stands at the top of README.md: the page without its empty lists."""
        return {key: value for key, value in self.page.items() if value != []}


def read_manifest(root: Path = ROOT) -> Manifest:
    """Read and check the Spacefile in `root`.

    Raises:
        ConfigError: if it is missing, no YAML, or a field is wrong.
    """
    path = root / FILE_NAME
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{FILE_NAME}: none in {str(root)!r}: deploy from a checkout") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{FILE_NAME}: no YAML: {error}") from error
    return parse_manifest(content)


def parse_manifest(content: Any) -> Manifest:
    """Check what YAML made of a Spacefile.

    Raises:
        ConfigError: names the field, what it holds and what was expected.
    """
    _check("", content, _TOP)
    page, settings = content["page"], content["settings"]
    _check("page", page, _PAGE)
    _check("settings", settings, _SETTINGS)
    return Manifest(
        space=content["space"],
        page=MappingProxyType(page),
        hardware=settings["hardware"],
        sleep_time_s=settings["sleep_time"],
        variables=settings["variables"],
        secrets=settings["secrets"],
        upload=tuple(content["upload"]),
    )


def _check(group: str, values: Any, checks: Mapping[str, _Check]) -> None:
    """Exactly these keys, each as it must be."""
    got = sorted(map(str, values)) if isinstance(values, dict) else values
    if got != sorted(checks):
        expected = f"the keys {', '.join(sorted(checks))}"
        raise ConfigError(f"{FILE_NAME}: {group or 'top level'}: expected {expected}, got {got!r}")
    for key, (is_right, words) in checks.items():
        if not is_right(values[key]):
            field = f"{group}.{key}" if group else key
            raise ConfigError(f"{FILE_NAME}: {field}: expected {words}, got {values[key]!r}")


def update_readme(manifest: Manifest, root: Path = ROOT) -> None:
    """Write the front matter into README.md in place of what stands there."""
    front = SpaceCardData(**manifest.front_matter).to_yaml(original_order=[*manifest.front_matter])
    text = SpaceCard.load(root / README).text
    (root / README).write_text(f"---\n{front}\n---\n{text}", encoding="utf-8")


def check_readme(manifest: Manifest, root: Path = ROOT) -> None:
    """Refuse to publish a README.md that says something else than the Spacefile.

    Raises:
        ConfigError: if the two differ.
    """
    if SpaceCard.load(root / README).data.to_dict() != manifest.front_matter:
        raise ConfigError(
            "README.md: its front matter is not what the Spacefile says: "
            "run `python -m percov2_core deploy --update-readme`"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that publishing does; making one sends nothing.

    Attributes:
        root: The repository.
        space: "OWNER/NAME", or "NAME" where the owner of the token is to be the owner.
        hardware: What the Space is to run on.
        files: Path relative to the repository -> bytes, sorted.
        untracked: Files in the uploaded folders that git does not track: they stay behind.
    """

    root: Path
    manifest: Manifest
    space: str
    hardware: str
    files: Mapping[str, int]
    untracked: tuple[str, ...]

    @property
    def sleep_time_s(self) -> int | None:
        """None where the host alone decides."""
        return None if self.hardware == FREE_HARDWARE else self.manifest.sleep_time_s

    @property
    def total_bytes(self) -> int:
        return sum(self.files.values())

    def lines(self) -> Iterator[str]:
        """The plan in words, one line each."""
        yield f"space     {self.space if '/' in self.space else f'OWNER/{self.space}'}"
        yield f"hardware  {self.hardware}"
        asleep = "as the host decides" if self.sleep_time_s is None else f"{self.sleep_time_s} s"
        yield f"sleeps    {asleep}"
        yield from (f"variable  {name}={value}" for name, value in self.manifest.variables.items())
        yield from (f"secret    {name}: {what}" for name, what in self.manifest.secrets.items())
        yield from (f"{size:>10,}  {path}" for path, size in self.files.items())
        count = f"{len(self.files)} files"
        yield f"{self.total_bytes:>10,}  bytes in {count}; at most {MAX_TOTAL_BYTES:,}"
        yield from (f"left out: {path}: git does not track it" for path in self.untracked)

    def copy_to(self, folder: Path) -> None:
        """Put exactly the files of the Space into an empty folder."""
        for path in self.files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / path, folder / path)


def make_plan(
    manifest: Manifest, root: Path, *, space: str | None = None, hardware: str | None = None
) -> Plan:
    """List what publishing would do, from the files as they are on disk.

    Args:
        space: Takes the place of the Spacefile's name.
        hardware: Takes the place of the Spacefile's hardware.

    Raises:
        ConfigError: if the name is none, a listed file is missing, README.md is stale, or the
            files are too large.
    """
    if space is not None and not re.fullmatch(rf"({_PART}/)?{_PART}", space):
        raise ConfigError(f"--space: expected OWNER/NAME, got {space!r}")
    check_readme(manifest, root)
    tracked = _git_files(root, manifest.upload)
    found = _plain_files(root, manifest.upload) if tracked is None else tracked
    for entry in manifest.upload:
        if not any(path == entry or path.startswith(f"{entry.rstrip('/')}/") for path in found):
            raise ConfigError(f"{FILE_NAME}: upload: no file of {entry!r} is in git")
    for wanted in (FILE_NAME, README, "requirements.txt", manifest.page["app_file"]):
        if wanted not in found:
            raise ConfigError(f"{FILE_NAME}: upload: expected {wanted} among the files, got none")
    files = {path: _size_bytes(root, path) for path in sorted(found)}
    if (total := sum(files.values())) > MAX_TOTAL_BYTES:
        raise ConfigError(
            f"{FILE_NAME}: upload: expected at most {MAX_TOTAL_BYTES:,} bytes, got {total:,}"
        )
    others = _git_files(root, manifest.upload, "--others", "--exclude-standard")
    return Plan(
        root=root,
        manifest=manifest,
        space=space or manifest.space,
        hardware=hardware or manifest.hardware,
        files=files,
        untracked=tuple(sorted(others or ())),
    )


def _git_files(root: Path, upload: Iterable[str], *options: str) -> set[str] | None:
    """What git lists of files and folders; None where there is no git or no checkout."""
    command = ["git", "-C", str(root), "ls-files", "-z", *options, "--", *upload]
    try:
        result = subprocess.run(command, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return {name for name in result.stdout.decode("utf-8").split("\0") if name}


def _plain_files(root: Path, upload: Iterable[str]) -> set[str]:
    """The files of a copy without git: all but caches and hidden ones."""
    files = (file for entry in upload for file in (root / entry, *(root / entry).rglob("*")))
    names = (file.relative_to(root) for file in files if file.is_file())
    return {
        name.as_posix()
        for name in names
        if not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
    }


def _size_bytes(root: Path, path: str) -> int:
    file = root / path
    if not file.is_file() or file.is_symlink():
        raise ConfigError(f"{FILE_NAME}: upload: expected {path} to be a plain file, got none")
    return file.stat().st_size
