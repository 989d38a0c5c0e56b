"""Our codec behind the baselines' interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.config import DEFAULT_SCHEDULE, find_mode


class Codec(Protocol):
    """The part of `PerCoV2` that a comparison needs."""

    name: str
    presets: Mapping[str, Mapping[str, Any]]

    @property
    def fingerprint(self) -> int: ...

    def encode(
        self,
        image: Image.Image,
        mode: str = ...,
        *,
        caption: str | None = ...,
        schedule: str = ...,
        tokens: int | None = ...,
    ) -> Stream: ...

    def decode(
        self,
        stream: Stream,
        *,
        steps: int | None = ...,
        guidance: float | None = ...,
        preset: str = ...,
    ) -> Image.Image: ...

    def read(self, stream: Stream) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PerCo:
    """One mode of our codec.

    Attributes:
        codec: A loaded model.
        mode: Key into `config.MODES`.
        schedule: One of `config.SCHEDULES`.
        caption: Text to send; None asks the describer.
        preset, steps, guidance: How the decoder samples; a number overrides the preset.
    """

    codec: Codec
    mode: str
    schedule: str = DEFAULT_SCHEDULE
    caption: str | None = None
    preset: str = "balanced"
    steps: int | None = None
    guidance: float | None = None

    @property
    def name(self) -> str:
        return f"percov2-{self.mode}"

    @property
    def description(self) -> str:
        return f"PerCoV2 {self.codec.name}, model {self.codec.fingerprint:02x}, {self.schedule}"

    @property
    def qualities(self) -> tuple[int, ...]:
        """Hybrid: tokens sent of the 64 at 512 x 512. The other modes have one quality."""
        return tuple(range(65)) if find_mode(self.mode).partial else (0,)

    def encode(self, image: Image.Image, quality: int) -> bytes:
        """`quality` is the number of tokens sent in hybrid mode, and ignored in the others."""
        tokens = quality if find_mode(self.mode).partial else None
        stream = self.codec.encode(
            image, self.mode, caption=self.caption, schedule=self.schedule, tokens=tokens
        )
        return stream.to_bytes()

    def decode(self, data: bytes) -> Image.Image:
        return self.codec.decode(
            Stream.from_bytes(data), steps=self.steps, guidance=self.guidance, preset=self.preset
        )
