"""Where a model rests and in which precision: one setting each, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from configparser import ConfigParser
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from percov2_core.config import check_choice
from percov2_core.errors import ConfigError

if TYPE_CHECKING:
    import torch

OFFLOADS = ("none", "t5", "text")
DTYPES = ("auto", "bfloat16", "float32")
_SWITCHES = ConfigParser.BOOLEAN_STATES  # 1, yes, true, on; 0, no, false, off


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """How a large model lives on a machine: each field is a variable, PERCOV2_DEVICE and so on."""

    device: str = ""  # a torch device; empty takes a GPU if there is one
    dtype: str = "auto"  # of the large networks; "auto" is bfloat16 on a GPU, float32 elsewhere
    t5: bool = True  # load the third text encoder where the checkpoint uses it
    offload: str = "none"  # in the CPU's memory, on visits to the GPU: "t5", or "text" (all three)
    compile: bool = False  # run the transformer through `torch.compile`
    # The page paints one picture per rate before any visitor's; None does so on a GPU of one's
    # own, where the first run is the slow one.
    warm_up: bool | None = None

    def __post_init__(self) -> None:
        import torch  # only now: that a model is here can be told without

        check_choice("PERCOV2_DTYPE", self.dtype, DTYPES)
        check_choice("PERCOV2_OFFLOAD", self.offload, OFFLOADS)
        try:
            torch.device(self.device or "cpu")
        except RuntimeError as error:
            raise ConfigError(f"device must be cpu, cuda or cuda:N, got {self.device!r}") from error

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] | None = None, *, device: str | None = None
    ) -> Residency:
        """Read the variables; `device` goes before PERCOV2_DEVICE.
        ConfigError if a variable holds something else than its field can."""
        values = os.environ if environment is None else environment
        found = cls(
            device=values.get("PERCOV2_DEVICE", ""),
            dtype=values.get("PERCOV2_DTYPE", "auto"),
            t5=_switch(values, "PERCOV2_T5") is not False,
            offload=values.get("PERCOV2_OFFLOAD", "none"),
            compile=_switch(values, "PERCOV2_COMPILE") is True,
            warm_up=_switch(values, "PERCOV2_WARM_UP"),
        )
        return replace(found, device=device) if device else found

    @property
    def target(self) -> torch.device:
        import torch

        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def precision(self) -> torch.dtype:
        """What the large networks compute in."""
        import torch

        if self.dtype == "auto":
            return torch.float32 if self.target.type == "cpu" else torch.bfloat16
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @property
    def compile_allowed(self) -> bool:
        """Whether to compile: asked for, and not on a hosted shared GPU, which cannot."""
        return self.compile and not on_shared_gpu()

    @property
    def warms_up(self) -> bool:
        """Whether the page paints before any visitor does."""
        if self.warm_up is None:
            return self.target.type != "cpu" and not on_shared_gpu()
        return self.warm_up

    def rest(self, part: str) -> torch.device:
        """Where a text encoder ("clip" or "t5") rests."""
        import torch

        offloaded = self.offload == "text" or self.offload == part
        return torch.device("cpu") if offloaded else self.target


def on_shared_gpu() -> bool:
    """Whether this is a hosted machine that lends its GPU call by call."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def _switch(values: Mapping[str, str], name: str) -> bool | None:
    text = values.get(name, "").strip().lower()
    if text and text not in _SWITCHES:
        raise ConfigError(f"{name} must be 1 or 0, got {values[name]!r}")
    return _SWITCHES.get(text)
