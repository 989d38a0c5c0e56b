"""PerCoV2: an image codec for 0.002-0.03 bits per pixel on the Stable Diffusion 3 family."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from percov2_core.bitstream import Stream
    from percov2_core.config import LEVELS, MODES
    from percov2_core.errors import PerCoError
    from percov2_core.run_settings import RunSettings
    from percov2_core.weights import load_codec
    from percov2_core.weights.pretrained import PerCoV2

__version__ = "0.2.0"
__all__ = ["LEVELS", "MODES", "PerCoError", "PerCoV2", "RunSettings", "Stream", "load_codec"]

_HOMES = {
    "LEVELS": "config",
    "MODES": "config",
    "PerCoError": "errors",
    "PerCoV2": "weights.pretrained",
    "RunSettings": "run_settings",
    "Stream": "bitstream",
    "load_codec": "weights",
}


def __getattr__(name: str) -> Any:
    # On first use: importing the package, or `percov2_core.bitstream`, must not load torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
