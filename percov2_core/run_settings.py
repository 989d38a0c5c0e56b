"""The settings of one run, encoder's and painter's, which travel as one line of JSON.

The page, the command line and the end points read and write the same: `{"size": 240, "steps": 1}`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

from percov2_core.bitstream import MAX_FILE_BYTES, MAX_SEED
from percov2_core.config import (
    CAPTIONERS,
    DEFAULT_EFFORT,
    DEFAULT_SCHEDULE,
    EFFORTS,
    MAX_GUIDANCE,
    MAX_SIDE_PX,
    MAX_STEPS,
    MAX_TOKENS,
    MIN_SIDE_PX,
    MODES,
    PRESETS,
    SCHEDULES,
    check_choice,
    check_real,
    check_whole,
    quoted,
)
from percov2_core.errors import ConfigError

MAX_LETTERS = 10_000  # of the JSON; a caption has at most 1,000 bytes

_CHOICES: Mapping[str, Collection[str]] = {
    "mode": MODES,
    "schedule": SCHEDULES,
    "effort": EFFORTS,
    "captioner": CAPTIONERS,
    "preset": PRESETS,
}
_NEEDED = ("schedule", "effort", "seed", "preset")
_WHOLE = {
    "tokens": (0, MAX_TOKENS),
    "size": (1, MAX_FILE_BYTES),
    "fit": (MIN_SIDE_PX, MAX_SIDE_PX),
    "seed": (0, MAX_SEED),
    "steps": (1, MAX_STEPS),
}
# Field -> what a new value of it replaces in settings that are there already.
_REPLACES = {
    **dict.fromkeys(("mode", "tokens", "size"), ("mode", "tokens", "size")),
    **dict.fromkeys(("caption", "captioner"), ("caption", "captioner")),
    "preset": ("steps", "guidance"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a picture is compressed and painted. None: what the model or the preset takes.
    ConfigError if a value is wrong: names the field, the value, and what was expected."""

    mode: str | None = None  # key into `config.MODES`; None: extreme, or `size`
    tokens: int | None = None  # hybrid only: how many are sent
    size: int | None = None  # in place of mode and tokens: the most bytes of the file
    fit: int | None = None  # pixels to which the longest side of a larger picture is reduced
    schedule: str = DEFAULT_SCHEDULE
    effort: str = DEFAULT_EFFORT
    caption: str | None = None  # own words, in place of a captioner's
    captioner: str | None = None  # one of `config.CAPTIONERS`
    seed: int = 0  # of the decoder's noise; other than 0 it costs bytes
    preset: str = "balanced"
    steps: int | None = None  # these two override the preset
    guidance: float | None = None

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) is not None or name in _NEEDED:
                check_choice(name, value, known)
        for name, ends in _WHOLE.items():
            if (value := getattr(self, name)) is not None or name in _NEEDED:
                check_whole(name, value, *ends)
        if self.guidance is not None:
            check_real("guidance", self.guidance, 1, MAX_GUIDANCE)
        if self.caption is not None:
            _check_text(self.caption)
        if self.size is not None and self.mode is not None:
            raise ConfigError(f"size: takes the place of mode {self.mode}, got both")
        if self.tokens is not None and not (self.mode and MODES[self.mode].partial):
            raise ConfigError(f"tokens: needs mode hybrid, got mode {self.mode or 'extreme'}")
        if self.caption is not None and self.captioner is not None:
            raise ConfigError(f"caption: takes the place of captioner {self.captioner}, got both")

    @classmethod
    def from_json(cls, text: str) -> RunSettings:
        """Read what `to_json` wrote; ConfigError if it is something else, or names unknown or
        repeated keys."""
        if not isinstance(text, str) or len(text) > MAX_LETTERS:
            raise ConfigError(f"settings: expected JSON of at most {MAX_LETTERS} letters")
        try:
            found = json.loads(text, object_pairs_hook=_unrepeated)
        except ConfigError:
            raise
        except (ValueError, RecursionError) as error:
            wanted = 'a line of JSON such as {"mode": "extreme"}'
            raise ConfigError(f"settings: expected {wanted}, got {quoted(text)}") from error
        if not isinstance(found, dict):
            raise ConfigError(f"settings: expected an object, got {quoted(found)}")
        known = [field.name for field in fields(cls)]
        for name in found:
            if name not in known:
                listed = ", ".join(known)
                raise ConfigError(f"settings: unknown key {quoted(name)}, expected {listed}")
        return cls(**found)

    def to_json(self) -> str:
        """One line: whatever is not as usual."""
        said = {
            f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default
        }
        return json.dumps(said)

    def replaced(self, given: Mapping[str, Any]) -> RunSettings:
        """The same with other values where `given` has one that is not None; what such a value
        takes the place of is dropped."""
        told = {name: value for name, value in given.items() if value is not None}
        usual = {field.name: field.default for field in fields(self)}
        dropped = {other: usual[other] for name in told for other in _REPLACES.get(name, ())}
        return replace(self, **{**dropped, **told})

    @property
    def encoding(self) -> dict[str, Any]:
        """Arguments of `PerCoV2.encode`."""
        names = ("tokens", "size", "schedule", "effort", "caption", "captioner", "seed")
        return {"mode": self.mode or "extreme"} | {name: getattr(self, name) for name in names}

    @property
    def painting(self) -> dict[str, Any]:
        """Arguments of `PerCoV2.paint` and `decode`; the seed 0 is the file's own."""
        look = {name: getattr(self, name) for name in ("preset", "steps", "guidance")}
        return look | {"seed": self.seed or None}


USUAL = RunSettings()


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    for name in found:
        if sum(name == other for other, _ in pairs) > 1:
            raise ConfigError(f"settings: key {quoted(name)} is there twice")
    return found


def _check_text(caption: object) -> None:
    with suppress(UnicodeEncodeError):  # of half a character
        if isinstance(caption, str) and caption.encode() is not None:
            return
    raise ConfigError(f"caption: must be text, got {quoted(caption)}")
