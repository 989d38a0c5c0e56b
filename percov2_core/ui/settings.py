"""The settings of a run: the controls, and how a picture is encoded and painted as they say."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import gradio as gr
from PIL import Image

from percov2_core.bitstream import MAX_FILE_BYTES, MAX_SEED, Stream
from percov2_core.codec import PerCoV2
from percov2_core.config import COARSE, DEFAULT_SCHEDULE, FINE, MAX_GUIDANCE, MAX_STEPS, check_real
from percov2_core.ui import border, text
from percov2_core.ui.device import Look
from percov2_core.ui.text import control

Given = Mapping[Any, Any]  # control -> what it says


class Settings:
    """The controls of a run; `advanced` makes those that most visitors never open."""

    def __init__(self) -> None:
        sizes = list(text.SIZES.items())
        quick = border.COMFORTABLE_SIDE_PX
        self.side = gr.Radio(sizes, value=quick, label=text.SIZE_INFO, visible="hidden")
        modes = list(text.MODES.items())
        self.mode = gr.Radio(modes, value="extreme", elem_id="pc-mode", **control("Mode"))
        label, said = text.CAPTION_LABEL, text.CAPTION_PLACEHOLDER
        box: dict[str, Any] = {"lines": 4, "max_lines": 4, "elem_id": "pc-caption-box"}
        self.caption = gr.Textbox(label=label, placeholder=said, **box)

    def advanced(self, codec: PerCoV2) -> None:
        default = codec.presets["extreme"]["balanced"]
        # The model's own captioner first, and none twice.
        own, others = codec.captioner, text.OTHER_CAPTIONERS.items()
        captioners = [(text.OWN_CAPTIONER, own), *(one for one in others if one[1] != own)]
        self.captioner = gr.Radio(captioners, value=own, **control("Caption by"))
        presets, orders = list(text.PRESETS.items()), list(text.SCHEDULES.items())
        self.preset = gr.Radio(presets, value="balanced", **control("Preset"))
        self.steps = gr.Slider(1, MAX_STEPS, default.steps, step=1, **control("Steps"))
        strength = default.guidance
        self.guidance = gr.Slider(1, MAX_GUIDANCE, strength, step=0.1, **control("Guidance"))
        self.seed = gr.Number(0, precision=0, minimum=0, **control("Seed"))
        self.schedule = gr.Dropdown(orders, value=DEFAULT_SCHEDULE, **control("Schedule"))
        self.tokens = gr.Slider(0, 1088, 0, step=1, **control("Tokens sent"))
        said = control("Target size in bytes")
        self.target = gr.Number(None, precision=0, minimum=0, elem_id="pc-target", **said)

    def look(self, given: Given, image: Image.Image) -> Look:
        """How to paint `image`, if that takes no minutes."""
        steps = border.whole("steps", given[self.steps], 1, MAX_STEPS)
        border.check_work(*image.size, steps)
        return Look(steps, check_real("guidance", given[self.guidance], 1, MAX_GUIDANCE))

    def encode(self, given: Given, codec: PerCoV2, image: Image.Image) -> Stream:
        """The stream that the controls ask for."""
        mode, caption = given[self.mode], border.words("caption", given[self.caption]).strip()
        if given[self.captioner] != "fixed" and not caption:
            caption = codec.describe(image, captioner=given[self.captioner])
        seed = border.whole("seed", given[self.seed] or 0, 0, MAX_SEED)
        options = {"caption": caption, "schedule": given[self.schedule], "seed": seed}
        if target := given[self.target]:
            most = border.whole("target size", target, 1, MAX_FILE_BYTES)
            return codec.encode(image, size=most, **options)
        if mode == "hybrid":
            wanted = border.whole("tokens", given[self.tokens], 0, MAX_FILE_BYTES)
            options["tokens"] = min(wanted, tokens_of(image))
        return codec.encode(image, mode, **options)


def tokens_of(image: Image.Image) -> int:
    """How many tokens the hybrid mode can send of a picture."""
    return sum(prod(level.grid(image.height, image.width)) for level in (COARSE, FINE))
