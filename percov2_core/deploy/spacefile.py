"""The Spacefile: read and checked, the front matter made from it, and the plan that it asks for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from huggingface_hub import SpaceCard, SpaceCardData, SpaceHardware
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from percov2_core.errors import ConfigError

ROOT = Path(__file__).parents[2]
FILE_NAME = "Spacefile"
README = "README.md"
MAX_TOTAL_BYTES = 100 * 10**6
FREE_HARDWARE = "cpu-basic"  # its sleep time is the host's own

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def _inside(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError("expected a path inside the repository")
    return path


_Text: TypeAlias = Annotated[str, Field(min_length=1)]
_Colour: TypeAlias = Literal["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]
_Variable: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _Checked(BaseModel):
    """Exactly these fields, each of its type: a number is no text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Page(_Checked):
    """The front matter of README.md, with the host's limits."""

    title: _Text
    emoji: _Text
    colorFrom: _Colour
    colorTo: _Colour
    sdk: Literal["gradio"]
    sdk_version: _Text
    python_version: _Text
    app_file: _Text
    suggested_hardware: _Text
    startup_duration_timeout: Annotated[str, Field(pattern="^[1-9][0-9]*[mh]$")]
    short_description: Annotated[str, Field(min_length=1, max_length=60)]
    license: _Text
    pinned: bool
    models: list[_Text]
    preload_from_hub: list[_Text]
    tags: list[_Text]

    @property
    def startup_s(self) -> int:
        """How long the host lets the Space start, in seconds."""
        duration = self.startup_duration_timeout
        return int(duration[:-1]) * {"m": 60, "h": 3600}[duration[-1]]

    @property
    def front_matter(self) -> Mapping[str, Any]:
        """All fields but empty lists."""
        return {key: value for key, value in self.model_dump().items() if value != []}


class Settings(_Checked):
    """What only the host's API can set; of a secret, what it is for."""

    hardware: _Text
    sleep_time: int
    variables: dict[_Variable, str]
    secrets: dict[_Variable, str]


class Manifest(_Checked):
    """A Spacefile. Folders to upload end in "/"."""

    space: Annotated[str, Field(pattern=f"^{_PART}$")]
    page: Page
    settings: Settings
    upload: list[Annotated[_Text, AfterValidator(_inside)]]


def read_manifest(root: Path = ROOT) -> Manifest:
    """Read and check the Spacefile in `root`; ConfigError names the field that is wrong."""
    path = root / FILE_NAME
    try:
        return Manifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{FILE_NAME}: none in {str(root)!r}: deploy from a checkout") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{FILE_NAME}: no YAML: {error}") from error
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(map(str, wrong["loc"])) or "top level"
        got = "" if wrong["type"] == "missing" else f", got {wrong['input']!r}"
        raise ConfigError(f"{FILE_NAME}: {field}: {wrong['msg']}{got}") from error


def update_readme(manifest: Manifest, root: Path = ROOT) -> None:
    """Write the front matter into README.md in place of what stands there."""
    matter = manifest.page.front_matter
    front = SpaceCardData(**matter).to_yaml(original_order=[*matter])
    text = SpaceCard.load(root / README).text
    (root / README).write_text(f"---\n{front}\n---\n{text}", encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that publishing does; making one sends nothing."""

    root: Path  # the repository
    manifest: Manifest
    space: str  # "OWNER/NAME", or "NAME" where the owner of the token is to be the owner
    hardware: str  # what the Space is to run on
    files: Mapping[str, int]  # path relative to the repository -> bytes, sorted
    untracked: tuple[str, ...]  # files that git does not track: they stay behind

    @property
    def sleep_time_s(self) -> int | None:
        """None where the host alone decides."""
        return None if self.hardware == FREE_HARDWARE else self.manifest.settings.sleep_time

    @property
    def total_bytes(self) -> int:
        return sum(self.files.values())

    def lines(self) -> Iterator[str]:
        """The plan in words, one line each."""
        yield f"space     {self.space if '/' in self.space else f'OWNER/{self.space}'}"
        yield f"hardware  {self.hardware}"
        asleep = "as the host decides" if self.sleep_time_s is None else f"{self.sleep_time_s} s"
        yield f"sleeps    {asleep}"
        settings = self.manifest.settings
        yield from (f"variable  {name}={value}" for name, value in settings.variables.items())
        yield from (f"secret    {name}: {what}" for name, what in settings.secrets.items())
        yield from (f"{size:>10,}  {path}" for path, size in self.files.items())
        limit = f"at most {MAX_TOTAL_BYTES:,}"
        yield f"{self.total_bytes:>10,}  bytes in {len(self.files)} files; {limit}"
        yield from (f"left out: {path}: git does not track it" for path in self.untracked)


def make_plan(
    manifest: Manifest, root: Path, *, space: str | None = None, hardware: str | None = None
) -> Plan:
    """List what publishing would do, from the files on disk; two options go before the Spacefile.
    ConfigError if the name or the hardware is none, a listed file is missing, README.md is stale,
    or the files are too large."""
    if space is not None and not re.fullmatch(rf"({_PART}/)?{_PART}", space):
        raise ConfigError(f"--space: expected OWNER/NAME, got {space!r}")
    hardware, upload = hardware or manifest.settings.hardware, manifest.upload
    if hardware not in (known := [each.value for each in SpaceHardware]):
        raise ConfigError(f"hardware: expected one of {', '.join(known)}, got {hardware!r}")
    if SpaceCard.load(root / README).data.to_dict() != manifest.page.front_matter:
        raise ConfigError(
            "README.md: its front matter is not what the Spacefile says: "
            "run `python -m percov2_core deploy --update-readme`"
        )
    tracked = _git_files(root, upload)
    found = _plain_files(root, upload) if tracked is None else tracked
    for entry in upload:
        if not any(path == entry or path.startswith(f"{entry.rstrip('/')}/") for path in found):
            raise ConfigError(f"{FILE_NAME}: upload: no file of {entry!r} is in git")
    for path in {FILE_NAME, README, "requirements.txt", manifest.page.app_file} | found:
        if path not in found or not (root / path).is_file() or (root / path).is_symlink():
            raise ConfigError(f"{FILE_NAME}: upload: expected a plain file {path}, got none")
    files = {path: (root / path).stat().st_size for path in sorted(found)}
    if (total := sum(files.values())) > MAX_TOTAL_BYTES:
        raise ConfigError(
            f"{FILE_NAME}: upload: expected at most {MAX_TOTAL_BYTES:,} bytes, got {total:,}"
        )
    others = tuple(sorted(_git_files(root, upload, "--others", "--exclude-standard") or ()))
    space = space or manifest.space
    return Plan(
        root=root, manifest=manifest, space=space, hardware=hardware, files=files, untracked=others
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
    names = (file.relative_to(root).as_posix() for file in files if file.is_file())
    return {name for name in names if not re.search(r"(^|/)(\.|__pycache__/)", name)}
