"""The Spacefile: reading it, checking it, and the front matter that is made from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from percov2_core.errors import ConfigError

ROOT = Path(__file__).parents[2]
FILE_NAME = "Spacefile"

# Limits and names of the host.
MAX_SHORT_DESCRIPTION = 60
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
FREE_HARDWARE = "cpu-basic"  # its sleep time is the host's own

_KEYS = {"space", "page", "settings", "upload"}
_PAGE_TEXTS = (
    "title",
    "emoji",
    "colorFrom",
    "colorTo",
    "sdk",
    "sdk_version",
    "python_version",
    "app_file",
    "suggested_hardware",
    "startup_duration_timeout",
    "short_description",
    "license",
)
_PAGE_LISTS = ("models", "preload_from_hub", "tags")
_SETTINGS = {"hardware": str, "sleep_time": int, "variables": dict, "secrets": dict}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DURATION = re.compile(r"[1-9][0-9]*[mh]")
_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n+", re.DOTALL)


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
    def front_matter(self) -> str:
        """The YAML block at the top of README.md, with its fences."""
        shown = {key: value for key, value in self.page.items() if value != []}
        text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=200)
        return f"---\n{text}---\n"


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
    _exact_keys("top level", content, _KEYS)
    page, settings = content["page"], content["settings"]
    _exact_keys("page", page, {*_PAGE_TEXTS, *_PAGE_LISTS, "pinned"})
    _exact_keys("settings", settings, set(_SETTINGS))
    _check_page(page)
    for key, kind in _SETTINGS.items():
        if type(settings[key]) is not kind:
            raise _wrong(f"settings.{key}", settings[key], _KINDS[kind])
    for group in ("variables", "secrets"):
        for name, value in settings[group].items():
            if not _VARIABLE.fullmatch(str(name)) or not isinstance(value, str):
                raise _wrong(f"settings.{group}", {name: value}, "a name and a text in quotes")
    return Manifest(
        space=_checked_name(content["space"]),
        page=page,
        hardware=settings["hardware"],
        sleep_time_s=settings["sleep_time"],
        variables=settings["variables"],
        secrets=settings["secrets"],
        upload=_checked_upload(content["upload"]),
    )


def split_readme(text: str) -> tuple[str, str]:
    """README.md -> its front matter with the fences ("" if it has none), and the rest."""
    found = _FRONT_MATTER.match(text)
    return ("", text) if found is None else (f"---\n{found[1]}---\n", text[found.end() :])


def update_readme(manifest: Manifest, root: Path = ROOT) -> None:
    """Write the front matter into README.md in place of what stands there."""
    path = root / "README.md"
    _, rest = split_readme(path.read_text(encoding="utf-8"))
    path.write_text(f"{manifest.front_matter}\n{rest}", encoding="utf-8")


def check_readme(manifest: Manifest, root: Path = ROOT) -> None:
    """Refuse to publish a README.md that says something else than the Spacefile.

    Raises:
        ConfigError: if the two differ.
    """
    front, _ = split_readme((root / "README.md").read_text(encoding="utf-8"))
    if front != manifest.front_matter:
        raise ConfigError(
            "README.md: its front matter is not what the Spacefile says: "
            "run `python -m percov2_core deploy --update-readme`"
        )


_KINDS = {str: "a text", int: "a whole number", dict: "names and values", list: "a list of texts"}


def _wrong(field: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{FILE_NAME}: {field}: expected {expected}, got {value!r}")


def _exact_keys(field: str, value: Any, expected: set[str]) -> None:
    names = set(value) if isinstance(value, dict) else value
    if names != expected:
        raise _wrong(field, _listed(names), f"the keys {', '.join(sorted(expected))}")


def _listed(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) if isinstance(names, set) else repr(names)


def _check_page(page: Mapping[str, Any]) -> None:
    for key in _PAGE_TEXTS:
        if not isinstance(page[key], str) or not page[key]:
            raise _wrong(f"page.{key}", page[key], "a text, in quotes if it looks like a number")
    for key in _PAGE_LISTS:
        if not _is_texts(page[key]):
            raise _wrong(f"page.{key}", page[key], _KINDS[list])
    if not isinstance(page["pinned"], bool):
        raise _wrong("page.pinned", page["pinned"], "true or false")
    for key in ("colorFrom", "colorTo"):
        if page[key] not in COLOURS:
            raise _wrong(f"page.{key}", page[key], f"one of {', '.join(COLOURS)}")
    if page["sdk"] != "gradio":
        raise _wrong("page.sdk", page["sdk"], "gradio")
    if len(page["short_description"]) > MAX_SHORT_DESCRIPTION:
        limit = f"at most {MAX_SHORT_DESCRIPTION} characters"
        raise _wrong("page.short_description", page["short_description"], limit)
    if not _DURATION.fullmatch(page["startup_duration_timeout"]):
        got = page["startup_duration_timeout"]
        raise _wrong("page.startup_duration_timeout", got, "minutes or hours, such as 30m")


def _checked_name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _wrong("space", value, "letters, digits, '.', '_' and '-'")
    return value


def _checked_upload(value: Any) -> tuple[str, ...]:
    if not _is_texts(value):
        raise _wrong("upload", value, _KINDS[list])
    for path in value:
        if path.startswith("/") or ".." in path.split("/"):
            raise _wrong("upload", path, "a path inside the repository")
    return tuple(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)
