"""The settings of a run: the advanced controls, and how a picture is encoded as they say."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from percov2_core.bitstream import MAX_FILE_BYTES, MAX_SEED, Stream
from percov2_core.codec import PerCoV2
from percov2_core.config import (
    DEFAULT_SCHEDULE,
    MAX_GUIDANCE,
    MAX_STEPS,
    MODES,
    RATES,
    check_real,
)
from percov2_core.errors import ConfigError
from percov2_core.ui import border, text
from percov2_core.ui.device import Look


class Advanced:
    """The controls that most visitors never open; made inside their accordion."""

    def __init__(self, codec: PerCoV2) -> None:
        default = codec.presets["extreme"]["balanced"]
        # The model's own captioner first, and none twice.
        others = [pair for pair in text.OTHER_CAPTIONERS.items() if pair[1] != codec.captioner]
        self.captioner = gr.Radio(
            [(text.OWN_CAPTIONER, codec.captioner), *others],
            value=codec.captioner,
            label="Caption by",
            info=text.CAPTIONER_INFO,
        )
        self.preset = gr.Radio(
            list(text.PRESETS.items()), value="balanced", label="Preset", info=text.PRESET_INFO
        )
        self.steps = gr.Slider(
            1, MAX_STEPS, default.steps, step=1, label="Steps", info=text.STEPS_INFO
        )
        self.guidance = gr.Slider(
            1, MAX_GUIDANCE, default.guidance, step=0.1, label="Guidance", info=text.GUIDANCE_INFO
        )
        self.seed = gr.Number(0, precision=0, minimum=0, label="Seed", info=text.SEED_INFO)
        self.schedule = gr.Dropdown(
            list(text.SCHEDULES.items()),
            value=DEFAULT_SCHEDULE,
            label="Schedule",
            info=text.SCHEDULE_INFO,
        )
        self.tokens = gr.Slider(0, 64, 0, step=1, label="Tokens sent", info=text.TOKENS_INFO)
        self.target = gr.Number(
            None,
            precision=0,
            minimum=0,
            label="Target size in bytes",
            info=text.TARGET_INFO,
            elem_id="pc-target",
        )


class Settings(NamedTuple):
    """The controls of the page, in the order in which they are wired."""

    mode: str
    caption: str
    captioner: str
    schedule: str
    tokens: float
    target_bytes: float | None
    side_px: float
    steps: float
    guidance: float
    seed: float | None

    def look(self, image: Image.Image) -> Look:
        """How to paint `image`, if that takes no minutes."""
        steps = border.whole("steps", self.steps, 1, MAX_STEPS)
        border.check_work(*image.size, steps)
        return Look(steps, check_real("guidance", self.guidance, 1, MAX_GUIDANCE))

    def encode(self, codec: PerCoV2, image: Image.Image) -> Stream:
        """The stream that the controls ask for."""
        caption = border.words("caption", self.caption).strip()
        if self.captioner != "fixed" and not caption:
            caption = codec.describe(image, captioner=self.captioner)
        seed = border.whole("seed", self.seed or 0, 0, MAX_SEED)
        options: dict[str, Any] = {"caption": caption, "schedule": self.schedule, "seed": seed}
        if self.target_bytes:
            most = border.whole("target size", self.target_bytes, 1, MAX_FILE_BYTES)
            return encode_within(codec, image, most, **options)
        if self.mode == "hybrid":
            wanted = border.whole("tokens", self.tokens, 0, MAX_FILE_BYTES)
            options["tokens"] = min(wanted, tokens_of(image))
        return codec.encode(image, self.mode, **options)


def tokens_of(image: Image.Image) -> int:
    """How many tokens the hybrid mode can send of a picture."""
    rows, columns = RATES[MODES["hybrid"].rate].grid(image.height, image.width)
    return rows * columns


def encode_within(codec: PerCoV2, image: Image.Image, size_bytes: int, **options: Any) -> Stream:
    """The richest stream of at most `size_bytes`: extreme, else ultra-low, else hybrid.

    Raises:
        ConfigError: if not even the caption fits.
    """
    for mode in ("extreme", "ultra-low"):
        stream = codec.encode(image, mode, **options)
        if len(stream.to_bytes()) <= size_bytes:
            return stream
    # `stream` is an ultra-low one, fresh from the encoder: it knows its size at every stage.
    sizes = [len(stream.truncate(stage).to_bytes()) for stage in range(len(stream.cuts))]
    fitting = [stage for stage, size in enumerate(sizes) if size <= size_bytes]
    if not fitting:
        raise ConfigError(
            f"target size: this caption alone makes {min(sizes)} bytes, got {size_bytes}: "
            "shorten the caption or allow more"
        )
    best = stream.truncate(fitting[-1])
    end = stream.cuts[min(fitting[-1] + 1, len(stream.cuts) - 1)].tokens
    for tokens in range(best.tokens_sent + 1, end + 1):
        longer = codec.truncate(stream, tokens=tokens)
        if len(longer.to_bytes()) > size_bytes:
            break
        best = longer
    return best
