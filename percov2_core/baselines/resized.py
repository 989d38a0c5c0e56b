"""Any codec at a reduced size, enlarged again by the decoder."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from percov2_core.baselines.base import Baseline
from percov2_core.errors import BitstreamError

MAX_FACTOR = 16


@dataclass(frozen=True, slots=True)
class Resized:
    """`codec` at 1 / `factor` of the size: Lanczos down, bicubic back.

    The file is the inner file and one byte: how many columns (low four bits) and rows the
    enlarged picture is too large.
    """

    codec: Baseline
    factor: int

    @property
    def name(self) -> str:
        return f"{self.codec.name}/{self.factor}"

    @property
    def description(self) -> str:
        return f"{self.codec.description}; at 1/{self.factor} size, Lanczos down, bicubic up"

    @property
    def qualities(self) -> tuple[int, ...]:
        return self.codec.qualities

    def encode(self, image: Image.Image, quality: int) -> bytes:
        w, h = -(-image.width // self.factor), -(-image.height // self.factor)
        extra_w, extra_h = w * self.factor - image.width, h * self.factor - image.height
        small = image.convert("RGB").resize((w, h), Image.Resampling.LANCZOS)
        return self.codec.encode(small, quality) + bytes([extra_w | extra_h << 4])

    def decode(self, data: bytes) -> Image.Image:
        if not data or max(data[-1] & 15, data[-1] >> 4) >= self.factor:
            raise BitstreamError(
                f"{self.name}: the last byte must hold two numbers below {self.factor}, "
                f"got {data[-1:].hex() or 'an empty file'}"
            )
        small = self.codec.decode(data[:-1])
        extra_w, extra_h = data[-1] & 15, data[-1] >> 4
        size = (small.width * self.factor - extra_w, small.height * self.factor - extra_h)
        # The box leaves out what the encoder added, so that nothing shifts.
        box = (0.0, 0.0, size[0] / self.factor, size[1] / self.factor)
        return small.resize(size, Image.Resampling.BICUBIC, box=box)
