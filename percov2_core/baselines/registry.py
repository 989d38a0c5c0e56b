"""Classic codecs by name: `avif`, or `avif/4` for a quarter of the width and height."""

from __future__ import annotations

from percov2_core.baselines.base import Baseline
from percov2_core.baselines.pillow import pillow_codecs
from percov2_core.baselines.resized import MAX_FACTOR, Resized
from percov2_core.baselines.vvc import Vvc
from percov2_core.errors import ConfigError

# Sizes that the search for the best tries. Below a sixth or a quarter these two only repeat what
# they need for an empty picture: 300 bytes of boxes in AVIF, 190 of parameter sets in VVC.
FACTORS = (1, 2, 3, 4, 6, 8, 12, 16)
_LARGEST_FACTOR = {"avif": 6, "vvc": 4}
CLASSIC = ("jpeg", "jpeg2000", "j2k", "webp", "avif", "jxl", "vvc")

# The lowest rates of each codec and its neighbours: what `evaluate` runs if not told.
LADDERS: dict[str, tuple[int, ...]] = {
    "jpeg": (1, 10),
    "jpeg2000": (800, 400, 200),
    "j2k": (800, 400, 200),
    "webp": (0, 10),
    "avif": (0, 10),
    "jxl": (0, 10),
    "vvc": (63, 60, 56, 52, 48),
}


def find_baseline(name: str) -> Baseline:
    """`codec` or `codec/factor` -> the codec.

    Raises:
        ConfigError: if the codec is unknown or the factor is not 1 to 16.
    """
    family, _, factor = name.partition("/")
    codecs: dict[str, Baseline] = {**pillow_codecs(), "vvc": Vvc()}
    if family not in codecs:
        raise ConfigError(f"codec must be one of {', '.join(CLASSIC)}, got {family!r}")
    if not factor:
        return codecs[family]
    if not factor.isdecimal() or not 1 <= int(factor) <= MAX_FACTOR:
        raise ConfigError(f"codec {name!r}: factor must be 1 to {MAX_FACTOR}, got {factor!r}")
    return Resized(codecs[family], int(factor)) if int(factor) > 1 else codecs[family]


def family_at_all_sizes(family: str) -> list[Baseline]:
    """The codec at full size and at every reduced size of `FACTORS` that can help it."""
    largest = _LARGEST_FACTOR.get(family, FACTORS[-1])
    return [find_baseline(f"{family}/{factor}") for factor in FACTORS if factor <= largest]
