"""What is run on each picture, and how a command line spells it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from percov2_core import config
from percov2_core.baselines import CLASSIC
from percov2_core.baselines.classic import LADDERS, find_baseline
from percov2_core.errors import ConfigError

OURS = "percov2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One codec at one operating point. Fields that do not apply are None."""

    codec: str  # `percov2`, a classic one (`avif/4`), or its family if there is a budget
    quality: int | None = None  # on the classic codec's own scale
    budget_bytes: int | None = None  # the best that codec or family can do in so many, at any size
    mode: str | None = None  # this and what follows: of our codec
    schedule: str | None = None
    preset: str | None = None
    steps: int | None = None  # these two override the preset
    guidance: float | None = None
    tokens: int | None = None  # hybrid only: how many are sent
    effort: str | None = None  # of the search for tokens; None: normal
    caption: str | None = None  # who wrote it
    stand_in: str | None = None  # for fine tokens that were not sent; None: the model's own

    @property
    def key(self) -> str:
        """The same text for the same setting: `percov2 mode=extreme schedule=qlds ...`."""
        named = [(f.name, getattr(self, f.name)) for f in fields(self)[1:]]
        return " ".join([self.codec, *(f"{k}={v}" for k, v in named if v is not None)])

    @property
    def encoding(self) -> Setting:
        """What decides the file: settings that share it are encoded once."""
        return replace(self, preset=None, steps=None, guidance=None, stand_in=None)

    @property
    def unit(self) -> Setting:
        """What one worker does in one go: all decodings of a file, all budgets of a family."""
        return replace(self.encoding, budget_bytes=None)

    @property
    def label(self) -> str:
        """What tables and legends call the codec at this setting, without the operating point."""
        return f"{OURS} {self.mode}" if self.codec == OURS else self.codec


def classic_settings(specs: Iterable[str]) -> list[Setting]:
    """`avif`, `avif/4`, `vvc@56+60` (those qualities) -> settings; `all` is every codec.
    ConfigError if a codec or a quality does not exist."""
    settings = []
    for spec in specs:
        if spec == "all":
            settings += classic_settings([f"{n}{size}" for n in CLASSIC for size in ("", "/2")])
            continue
        name, _, listed = spec.partition("@")
        codec, family = find_baseline(name), name.partition("/")[0]
        try:
            qualities = [int(part) for part in listed.split("+")] if listed else LADDERS[family]
        except ValueError as error:
            raise ConfigError(f"codec {spec!r}: qualities must be whole numbers and +") from error
        for quality in qualities:
            if quality not in codec.qualities:
                low, high = min(codec.qualities), max(codec.qualities)
                raise ConfigError(f"codec {spec!r}: no quality {quality}; it has {low} to {high}")
            settings.append(Setting(codec=name, quality=quality))
    return settings


def budget_settings(families: Sequence[str], budgets: Sequence[int]) -> list[Setting]:
    """The best of each family in each number of bytes."""
    for family in families:
        config.check_choice("codec", family, CLASSIC)
    return [Setting(codec=family, budget_bytes=size) for family, size in product(families, budgets)]


def our_settings(
    modes: Sequence[str],
    *,
    presets: Sequence[str] = (),
    steps: Sequence[int] = (),
    guidance: Sequence[float] = (),
    schedules: Sequence[str] = (config.DEFAULT_SCHEDULE,),
    tokens: Sequence[int] = (),
    efforts: Sequence[str | None] = (None,),
    budgets: Sequence[int | None] = (None,),
    stand_ins: Sequence[str | None] = (None,),
) -> list[Setting]:
    """Every combination. With `steps` or `guidance` the grid of both; else the presets. `tokens`
    are for the hybrid mode, `budgets` in their place. ConfigError if a number is out of range."""
    for number in steps:
        config.check_whole("steps", number, 1, config.MAX_STEPS)
    for scale in guidance:
        config.check_real("guidance", scale, 1, config.MAX_GUIDANCE)
    points: list[dict[str, Any]] = [{"preset": preset} for preset in presets or ("balanced",)]
    if steps or guidance:
        grid = product(steps or (None,), guidance or (None,))
        points = [{"steps": s, "guidance": g} for s, g in grid]
    settings = []
    for mode, schedule, effort, most in product(modes, schedules, efforts, budgets):
        file = Setting(codec=OURS, mode=mode, schedule=schedule, caption="describer", effort=effort)
        # By default the caption alone.
        counts = (tokens or (0,)) if config.MODES[mode].partial and most is None else (None,)
        for count, point, stand_in in product(counts, points, stand_ins):
            painted = {**point, "stand_in": stand_in}
            settings.append(replace(file, tokens=count, budget_bytes=most, **painted))
    return settings
