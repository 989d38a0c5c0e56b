"""What one visitor did: settings, runs and the sentence above the picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.codec import PerCoV2
from percov2_core.config import MODES, RATES
from percov2_core.evaluation.judge import Scores
from percov2_core.metrics.rate import bits_per_pixel
from percov2_core.ui import text
from percov2_core.ui.budget import encode_within
from percov2_core.ui.html import bytes_in_words, one_in
from percov2_core.ui.intake import Chosen
from percov2_core.ui.painting import Look, Painted


@dataclass(frozen=True)
class Settings:
    """The controls of the page, in the order in which they are wired."""

    mode: str
    caption: str
    captioner: str
    schedule: str
    tokens: float
    target_bytes: float | None
    side_px: int
    steps: float
    guidance: float
    seed: float

    @property
    def look(self) -> Look:
        return Look(int(self.steps), float(self.guidance))


@dataclass(frozen=True)
class Run:
    """One file and the picture that came out of it.

    `number` is the visitor's press of Compress that began it, 0 for an opened file.
    """

    name: str
    caption: str
    stream: Stream
    look: Look
    headline: str
    painted: Painted
    original: Image.Image | None = None
    number: int = 0

    @property
    def decoded(self) -> Image.Image:
        return self.painted.picture

    @property
    def size_bytes(self) -> int:
        return sum(self.stream.sizes)

    @property
    def bpp(self) -> float:
        return bits_per_pixel(self.size_bytes, self.stream.width, self.stream.height)


@dataclass(frozen=True)
class Measured:
    """A run and its row of the visitor's table."""

    run: Run
    scores: Scores

    @property
    def values(self) -> dict[str, Any]:
        """Column -> value, None for a metric that could not be had."""
        run = self.run
        return {
            "picture": run.name,
            "mode": run.stream.mode,
            "schedule": run.stream.schedule,
            "tokens": run.stream.tokens_sent,
            "steps": run.look.steps,
            "guidance": run.look.guidance,
            "bytes": run.size_bytes,
            "bpp": run.bpp,
            **asdict(self.scores),
            "caption": run.caption,
        }


def wanted_caption(codec: PerCoV2, image: Image.Image, settings: Settings) -> str:
    """What the box says, or what the captioner says where the box is empty."""
    if settings.captioner == "fixed" or settings.caption.strip():
        return settings.caption.strip()
    return codec.describe(image, captioner=settings.captioner)


def tokens_of(image: Image.Image) -> int:
    """How many tokens the hybrid mode can send of a picture."""
    rows, columns = RATES[MODES["hybrid"].rate].grid(image.height, image.width)
    return rows * columns


def encode(codec: PerCoV2, image: Image.Image, caption: str, settings: Settings) -> Stream:
    """Encode as the controls say."""
    seed = int(settings.seed or 0)
    if settings.target_bytes:
        return encode_within(
            codec,
            image,
            size_bytes=int(settings.target_bytes),
            caption=caption,
            schedule=settings.schedule,
            seed=seed,
        )
    tokens = min(int(settings.tokens), tokens_of(image)) if settings.mode == "hybrid" else None
    return codec.encode(
        image, settings.mode, caption=caption, schedule=settings.schedule, tokens=tokens, seed=seed
    )


def headline(stream: Stream, chosen: Chosen, png_bytes: int) -> str:
    """'68 bytes: 1/6,900 of the PNG, 1/310 of the JPEG you uploaded'."""
    size_bytes = sum(stream.sizes)
    parts = [f"<b>{one_in(png_bytes, size_bytes)}</b> of the picture as PNG"]
    if chosen.kind != "PNG":
        share = one_in(chosen.size_bytes, size_bytes)
        parts.append(f"<b>{share}</b> of the {escape(chosen.kind)} you chose")
    bpp = bits_per_pixel(size_bytes, stream.width, stream.height)
    return (
        f'<div class="pc-headline"><strong id="pc-bytes" data-bytes="{size_bytes}">'
        f"{bytes_in_words(size_bytes)}</strong><span>{', '.join(parts)} "
        f"<small>{bpp:.4f} bits per pixel, mode {stream.mode}</small></span></div>"
    )


def plain_headline(big: str, note: str) -> str:
    return (
        f'<div class="pc-headline pc-quiet"><strong>{escape(big)}</strong>'
        f"<span>{escape(note)}</span></div>"
    )


def empty_headline() -> str:
    return plain_headline(text.EMPTY_HEADLINE, text.EMPTY_HEADLINE_NOTE)


def file_headline(stream: Stream) -> str:
    size_bytes = sum(stream.sizes)
    return (
        f'<div class="pc-headline"><strong>{bytes_in_words(size_bytes)}</strong>'
        f"<span>A picture of <b>{stream.width} x {stream.height}</b> pixels, without its original"
        f"<small>mode {stream.mode}, schedule {stream.schedule}</small></span></div>"
    )
