"""The settings of a run: the controls, and how a picture is encoded and painted as they say."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from percov2_core.bitstream import MAX_FILE_BYTES, MAX_SEED, Stream
from percov2_core.config import (
    DEFAULT_EFFORT,
    DEFAULT_SCHEDULE,
    LEVELS,
    MAX_GUIDANCE,
    MAX_STEPS,
    OWN_PAINTER,
    PRESETS,
    Preset,
    check_choice,
    check_real,
)
from percov2_core.errors import ConfigError
from percov2_core.run_settings import RunSettings
from percov2_core.ui import border, text
from percov2_core.ui.border import Chosen, Painters
from percov2_core.ui.device import Look
from percov2_core.ui.text import control, piece, plain_html

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2
    from percov2_core.contents import Tokens

LEAST_BYTES = 13
# Of a usual file of 512 x 512 pixels, which have 1088 tokens, sent or not.
USUAL_BYTES = {"ultra-low": 110, "extreme": 722}
Given = Mapping[Any, Any]  # control -> what it says


def size_slider(label: str, **options: Any) -> gr.Slider:
    """How many bytes a file may have."""
    least, (first, most) = LEAST_BYTES, USUAL_BYTES.values()
    options |= {"step": 1, "precision": 0, "buttons": [], "elem_classes": "pc-size"}
    return gr.Slider(minimum=least, maximum=most, value=first, **options, **control(label))


def painter_choice(painters: Painters, *, elem_id: str) -> gr.Radio:
    """Who paints; not to be seen where there is no choice."""
    known = [(text.OWN_PAINTER, OWN_PAINTER)]
    if painters.second:
        known.append((text.PAINTERS.get(painters.second, painters.second), painters.second))
    options: dict[str, Any] = {"visible": True if painters.second else "hidden"}
    return gr.Radio(known, value=OWN_PAINTER, elem_id=elem_id, **options, **control("Painter"))


def named_preset(codec: PerCoV2, mode: str, preset: str, painter: str) -> Preset:
    """Steps and guidance of a painter's preset."""
    check_choice("preset", preset, PRESETS)
    if painter == OWN_PAINTER:
        return codec.presets[mode][preset]
    from percov2_core.repaint import REPAINT_PRESETS  # loads torch

    return REPAINT_PRESETS[preset]


def look_of(codec: PerCoV2, stream: Stream, settings: RunSettings, painter: str) -> Look:
    """How settings paint a file; ConfigError if that takes minutes."""
    usual = named_preset(codec, stream.mode, settings.preset, painter)
    steps, guidance = settings.steps or usual.steps, settings.guidance or usual.guidance
    border.check_work(stream.width, stream.height, steps)
    return Look(steps, guidance, settings.seed or None, painter, settings.preset)


class Settings:
    """The controls of a run; `advanced` makes those that most visitors never open."""

    def __init__(self) -> None:
        sizes, quick = list(text.SIZES.items()), border.COMFORTABLE_SIDE_PX
        self.side = gr.Radio(sizes, value=quick, label=text.SIZE_INFO, visible="hidden")
        modes = list(text.MODES.items())
        self.mode = gr.Radio(modes, value="ultra-low", elem_id="pc-mode", **control("Mode"))
        self.size = size_slider("Size: at most so many bytes", elem_id="pc-size")
        label, said = text.CAPTION_LABEL, text.CAPTION_PLACEHOLDER
        box: dict[str, Any] = {"lines": 4, "max_lines": 4, "elem_id": "pc-caption-box"}
        self.caption = gr.Textbox(label=label, placeholder=said, **box)

    def advanced(self, codec: PerCoV2, painters: Painters) -> None:
        default = codec.presets["ultra-low"]["balanced"]
        self.painter = painter_choice(painters, elem_id="pc-painter")
        if not painters.second:
            problem = border.plain(painters.problem)
            plain_html(piece("no_painter", problem=problem), elem_id="pc-no-painter")
        captioners = list(text.CAPTIONERS.items())
        self.captioner = gr.Radio(captioners, value="auto", **control("Caption by"))
        presets, orders = list(text.PRESETS.items()), list(text.SCHEDULES.items())
        self.preset = gr.Radio(presets, value="balanced", **control("Preset"))
        self.steps = gr.Slider(1, MAX_STEPS, default.steps, step=1, **control("Steps"))
        strength = default.guidance
        self.guidance = gr.Slider(1, MAX_GUIDANCE, strength, step=0.1, **control("Guidance"))
        self.seed = gr.Number(0, precision=0, minimum=0, **control("Seed"))
        self.schedule = gr.Dropdown(orders, value=DEFAULT_SCHEDULE, **control("Schedule"))
        efforts = list(text.EFFORTS.items())
        self.effort = gr.Radio(efforts, value=DEFAULT_EFFORT, **control("Encoder's effort"))
        paste: dict[str, Any] = {"placeholder": text.SETTINGS_EXAMPLE, "submit_btn": "Use"}
        self.pasted = gr.Textbox(elem_id="pc-paste", **paste, **control("Settings of a run"))

    @property
    def filled(self) -> list[Any]:
        """The controls that settings fill in."""
        return [part for part in vars(self).values() if part is not self.pasted]

    def look(self, given: Given, image: Image.Image, painters: Painters) -> Look:
        """How to paint `image`, if that takes no minutes."""
        steps = border.whole("steps", given[self.steps], 1, MAX_STEPS)
        border.check_work(*image.size, steps)
        guidance = check_real("guidance", given[self.guidance], 1, MAX_GUIDANCE)
        painter = painters.checked(given[self.painter])
        preset = check_choice("preset", given[self.preset], PRESETS)
        return Look(steps, guidance, painter=painter, preset=preset)

    def said(self, given: Given, codec: PerCoV2, image: Image.Image) -> str:
        """The caption to send."""
        caption = border.words("caption", given[self.caption]).strip()
        if caption or given[self.captioner] == "fixed":
            return caption
        return codec.describe(image, captioner=given[self.captioner])

    def told(self, given: Given, codec: PerCoV2, chosen: Chosen, said: str) -> RunSettings:
        """The controls as settings: pasted again, they give the same file of the same picture."""
        kind, quick = dict[str, Any](caption=said), "describer"
        # Where it is quick to see that nobody has changed the words, they need not travel.
        if given[self.captioner] != "fixed" and said == codec.describe(
            chosen.image, captioner=quick
        ):
            kind = {"captioner": quick}
        if given[self.mode] == "hybrid":
            kind["size"] = border.whole("size", given[self.size], LEAST_BYTES, MAX_FILE_BYTES)
        else:
            kind["mode"] = given[self.mode]
        if chosen.large:
            kind["fit"] = border.count(given[self.side])
        # They are the own painter's; steps and guidance of another would be wrong for it.
        repainted = given[self.painter] != OWN_PAINTER
        return RunSettings(
            **kind,
            schedule=given[self.schedule],
            effort=given[self.effort],
            seed=border.whole("seed", given[self.seed] or 0, 0, MAX_SEED),
            preset=given[self.preset] if repainted else "balanced",
            steps=None if repainted else border.whole("steps", given[self.steps], 1, MAX_STEPS),
            guidance=None if repainted else given[self.guidance],
        )

    def put(self, settings: RunSettings, codec: PerCoV2, chosen: Chosen | None) -> dict[Any, Any]:
        """Control -> value, so that the next run is as `settings` say; ConfigError if this page
        has no control for something that they say."""
        mode = "hybrid" if settings.size else settings.mode or "extreme"
        if settings.tokens is not None:
            raise ConfigError("tokens: this page takes size in their place: use the command line")
        captioner = settings.captioner or codec.captioner
        offered = [str(value) for _, value in self.captioner.choices]
        check_choice("captioner", captioner, offered)
        side = settings.fit or border.COMFORTABLE_SIDE_PX
        check_choice("fit", str(side), [str(value) for value in text.SIZES.values()])
        caption, size = settings.caption, settings.size or LEAST_BYTES
        if caption is not None:
            captioner = "fixed"
        elif chosen:
            caption = codec.describe(chosen.image, captioner=captioner)
        look = codec.presets[mode][settings.preset]
        sides = chosen.at(side).image.size if chosen else (512, 512)
        return {
            self.mode: mode,
            self.size: self.sized(mode, size, sides, size if mode == "hybrid" else 0),
            self.side: side,
            self.caption: caption or "",
            self.captioner: captioner,
            self.preset: settings.preset,
            self.steps: settings.steps or look.steps,
            self.guidance: settings.guidance or look.guidance,
            self.seed: settings.seed,
            self.schedule: settings.schedule,
            self.effort: settings.effort,
        }

    def write(self, given: Given, codec: PerCoV2, tokens: Tokens) -> Stream:
        """The file that the controls ask for; the smallest there is if none is that small."""
        seed = border.whole("seed", given[self.seed] or 0, 0, MAX_SEED)
        options = {"schedule": given[self.schedule], "seed": seed}
        if given[self.mode] != "hybrid":
            return codec.write(tokens, given[self.mode], **options)
        least = codec.write(tokens, count=0, **options)
        size = border.whole("size", given[self.size], LEAST_BYTES, MAX_FILE_BYTES)
        return codec.write(tokens, size=size, **options) if size > sum(least.sizes) else least

    def sized(self, mode: str, size: float, sides: tuple[int, int], found: int = 0) -> Any:
        """Where the size control ends, and stands: at what the mode took, or usually takes."""
        tokens = sum(prod(level.grid(*sides[::-1])) for level in LEVELS.values())
        least = LEAST_BYTES
        usual = {k: least + (n - least) * tokens // 1088 for k, n in USUAL_BYTES.items()}
        most = max(found, usual["extreme"])
        named = usual.get(border.words("mode", mode))
        value = found or named if named else min(border.count(size), most)
        return gr.Slider(maximum=most, value=value)
