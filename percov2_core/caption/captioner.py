"""What writes the caption of a picture: rules or a network."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from percov2_core.caption.describer import describe
from percov2_core.config import CAPTIONERS, DOWNLOAD_VARIABLE, check_choice
from percov2_core.errors import UnavailableError

BLIP_MODEL = "Salesforce/blip-image-captioning-base"
MAX_NEW_TOKENS = 32
BLIP_VARIABLE = "PERCOV2_BLIP"  # folder or Hub name of BLIP or BLIP-2, in place of BLIP_MODEL

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captioner:
    """Turns an RGB picture of any size into a caption."""

    name: str  # one of `config.CAPTIONERS`
    write: Callable[[Image.Image], str]

    def __call__(self, image: Image.Image) -> str:
        return self.write(image)


@dataclass(frozen=True)
class Blip:
    """A BLIP or BLIP-2 captioning network, decoded greedily."""

    processor: Any
    model: Any

    def __call__(self, image: Image.Image) -> str:
        inputs = self.processor(images=image, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        greedy = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "num_beams": 1}
        ids = self.model.generate(**inputs, **greedy)
        text = self.processor.batch_decode(ids, skip_special_tokens=True)[0]
        return " ".join(text.split())


def get_captioner(name: str, *, blip: str | None = None, device: str = "cpu") -> Captioner:
    """Find a captioner by its name.
    `auto` is `blip` where its weights are, else `describer`. `blip` is the folder or Hub name of
    those weights, by default PERCOV2_BLIP or BLIP_MODEL. ConfigError if there is no such captioner;
    UnavailableError if the weights of `blip` cannot be had here."""
    check_choice("captioner", name, CAPTIONERS)
    if name != "describer":
        try:
            return load_blip(blip or os.environ.get(BLIP_VARIABLE) or BLIP_MODEL, device)
        except UnavailableError as error:
            if name == "blip":
                raise
            _log.info("the describer writes the caption: %s", error)
    return Captioner("describer", describe)


@lru_cache(maxsize=1)  # a second picture must not load the weights again
def load_blip(source: str, device: str) -> Captioner:
    """Load BLIP or BLIP-2 from a local folder, the local cache, or, if allowed, the Hub.
    It computes in bfloat16 on a GPU, in float32 elsewhere. UnavailableError if it is not there, or
    a library is missing."""
    local_only = os.environ.get(DOWNLOAD_VARIABLE) != "1"
    where, dtype = {"local_files_only": local_only}, "float32" if device == "cpu" else "bfloat16"
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        # The PIL backend on every machine: the other one resizes to other pixels.
        processor = AutoProcessor.from_pretrained(source, backend="pil", **where)
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, **where)
    except (ImportError, OSError, ValueError) as error:
        hint = f" (set {DOWNLOAD_VARIABLE}=1 to fetch it)" if local_only else ""
        reason = str(error).strip().split("\n")[0]
        problem = f"captioner 'blip': {source!r} is not here{hint}: {reason}"
        raise UnavailableError(problem) from error
    return Captioner("blip", Blip(processor, model.to(device).eval()))
