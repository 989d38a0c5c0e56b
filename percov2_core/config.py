"""Numbers that the encoder and the decoder must agree on.

Letters: H x W pixels, h x w token grid, K codebook size.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from numbers import Real
from operator import index
from types import MappingProxyType
from typing import NamedTuple, SupportsIndex

from percov2_core.errors import ConfigError

LATENT_CHANNELS = 16
MIN_SIDE_PX = 64
MAX_SIDE_PX = 4096

# The position in this tuple is the schedule's number in files: append only.
SCHEDULES = ("uniform", "checkerboard", "quincunx", "qlds", "var")
DEFAULT_SCHEDULE = "qlds"
QUOTED_LENGTH = 60
PRESETS = ("faithful", "balanced", "vivid")
MAX_STEPS = 100
MAX_GUIDANCE = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateConfig:
    """One token grid of the codec."""

    name: str  # of the hyper-encoder, codebook and entropy model that belong together
    token_stride: int  # pixels per token along one side, a multiple of the 8 of a latent cell
    codebook_size: int = 256  # entries in the vector quantiser

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns for a picture of this many pixels, padding included."""
        return -(-height // self.token_stride), -(-width // self.token_stride)


_RATES = (
    RateConfig(name="ultra-low", token_stride=64),
    RateConfig(name="extreme", token_stride=16),
)
RATES = MappingProxyType({rate.name: rate for rate in _RATES})


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """What the user picks: a rate, and whether all of its tokens are sent."""

    name: str  # what the command line, the page and the API call it
    code: int  # what the file calls it: never reuse a number
    rate: str  # key into `RATES`
    partial: bool = False  # whether the file holds only the first tokens of the schedule


_MODES = (
    Mode(name="ultra-low", code=0, rate="ultra-low"),
    Mode(name="extreme", code=1, rate="extreme"),
    Mode(name="hybrid", code=2, rate="ultra-low", partial=True),
)
MODES = MappingProxyType({mode.name: mode for mode in _MODES})


class Preset(NamedTuple):
    """A named point of the trade between distortion and perception."""

    steps: int
    guidance: float


def check_choice(field: str, value: str, known: Collection[str]) -> str:
    """Return `value` if it is one of the known names.

    Raises:
        ConfigError: names the field, the value and what was expected; so do those below.
    """
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
    if not low <= (number := float(value)) <= high:
        raise ConfigError(f"{field} must be in [{low:g}, {high:g}], got {number:g}")
    return number


def quoted(value: object) -> str:
    """A value for a message: printable, and not longer than a message should be."""
    try:
        text = repr(value)
    except ValueError:  # of a number with thousands of digits
        return f"a very large {type(value).__name__}"
    return text if len(text) <= QUOTED_LENGTH else f"{text[: QUOTED_LENGTH - 3]}..."
