"""Numbers that the encoder and the decoder must agree on.

Letters: H x W pixels, h x w token grid, K codebook size.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import prod
from numbers import Real
from operator import index
from types import EllipsisType, MappingProxyType
from typing import NamedTuple, SupportsIndex, TypeAlias

from percov2_core.errors import ConfigError

Box: TypeAlias = tuple[EllipsisType, slice, slice]  # index into (..., height, width): one tile

LATENT_CHANNELS, LATENT_STRIDE = 16, 8  # pixels along one side of a latent cell
MIN_SIDE_PX = 64
MAX_SIDE_PX = 4096

# The position in this tuple is the schedule's number in files: append only.
SCHEDULES = ("uniform", "checkerboard", "quincunx", "qlds", "var")
DEFAULT_SCHEDULE = "qlds"
QUOTED_LENGTH = 60
PRESETS = ("faithful", "balanced", "vivid")
DOWNLOAD_VARIABLE = "PERCOV2_ALLOW_DOWNLOAD"  # 1: any command may fetch what it lacks
CAPTIONERS = ("auto", "describer", "objects", "blip")
OWN_PAINTER = "own"  # the model's; others are named as in `weights.base.load_repainter`
EFFORTS, DEFAULT_EFFORT = ("fast", "normal", "best"), "normal"  # of the encoder's search
MAX_STEPS = 100
MAX_GUIDANCE = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One token grid of the codec, with a hyper-encoder, codebook and entropy model of its own."""

    name: str
    token_stride: int  # pixels per token along one side, a multiple of the 8 of a latent cell
    codebook_size: int = 256  # entries in the vector quantiser

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns for a picture of this many pixels, padding included."""
        return -(-height // self.token_stride), -(-width // self.token_stride)


COARSE, FINE = Level(name="coarse", token_stride=64), Level(name="fine", token_stride=16)
LEVELS = MappingProxyType({level.name: level for level in (COARSE, FINE)})
# Of the largest picture, both levels together.
MAX_TOKENS = sum(prod(level.grid(MAX_SIDE_PX, MAX_SIDE_PX)) for level in LEVELS.values())
PARENT_RATIO = COARSE.token_stride // FINE.token_stride  # fine tokens below a coarse one, a side


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """What the user picks: which tokens of the two levels a file holds. All modes are parts of one
    sequence: the caption, the coarse tokens, the fine tokens."""

    name: str  # what the command line, the page and the API call it
    code: int  # what the file calls it: never reuse a number
    coarse: bool = True  # whether the coarse level is in the sequence
    fine_share: tuple[int, int] | None = None  # of the fine tokens, rounded up; None: any number

    @property
    def partial(self) -> bool:
        """Whether a file says itself how many tokens it holds."""
        return self.fine_share is None

    def tokens(self, coarse: int, fine: int) -> int | None:
        """How many tokens of grids of so many are sent, or None if a file says it itself."""
        if self.fine_share is None:
            return None
        part, whole = self.fine_share
        return (coarse if self.coarse else 0) - (-fine * part // whole)


# The share of `ultra-low` brings its files to about 110 bytes on training photos of 512 x 512.
_MODES = (
    Mode(name="ultra-low", code=0, fine_share=(1, 16)),
    Mode(name="extreme", code=1, coarse=False, fine_share=(1, 1)),
    Mode(name="hybrid", code=2),
    Mode(name="fine-only", code=3, coarse=False),
)
FILE_MODES = MappingProxyType({mode.name: mode for mode in _MODES})
# What a user can pick; the other is what `extreme` is cut to.
MODES = MappingProxyType({mode.name: mode for mode in _MODES[:3]})


class Preset(NamedTuple):
    """A named point of the trade between distortion and perception."""

    steps: int
    guidance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """How hard the encoder looks. Squared errors are summed over channels and pixels."""

    rounds: int = 0  # of one gradient each; 0 keeps the nearest codes
    best_rounds: int = 0  # the same where time does not count
    curvature: float = 60.0  # squared error that a move of unit length costs beyond its gradient
    structure: float = 0.0  # weight of `metrics.structure` beside the mean squared error
    rate: float = 0.0  # squared error that one bit is worth: lambda
    by_surrogate: bool = True  # where the model has one, and "best" is not asked for

    def at(self, effort: str) -> SearchConfig:
        """The same with what one of `EFFORTS` takes."""
        rounds = {"fast": 0, "normal": self.rounds, "best": self.best_rounds}[effort]
        return replace(self, rounds=rounds, by_surrogate=effort != "best")


def check_choice(field: str, value: str, known: Collection[str]) -> str:
    """Return `value` if it is one of the known names. The ConfigError names the field, the value
    and what was expected, as do those below."""
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{field} must be one of {', '.join(known)}, got {quoted(value)}")
    return value


def check_whole(field: str, value: SupportsIndex, low: int, high: int) -> int:
    """Return an integer of any kind as an `int` if it is in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ConfigError(f"{field} must be a whole number in [{low}, {high}], got {quoted(value)}")
    if not low <= (number := index(value)) <= high:
        raise ConfigError(f"{field} must be in [{low}, {high}], got {quoted(number)}")
    return number


def check_real(field: str, value: float, low: float, high: float) -> float:
    """Return a number of any kind as a `float` if it is in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{field} must be a number in [{low:g}, {high:g}], got {quoted(value)}")
    if not low <= value <= high:  # before it becomes a float, which not every number can
        raise ConfigError(f"{field} must be in [{low:g}, {high:g}], got {quoted(value)}")
    return float(value)


def quoted(value: object) -> str:
    """A value for a message: printable, and not longer than a message should be."""
    try:
        text = repr(value)
    except ValueError:  # of a number with thousands of digits
        return f"a very large {type(value).__name__}"
    return text if len(text) <= QUOTED_LENGTH else f"{text[: QUOTED_LENGTH - 3]}..."
