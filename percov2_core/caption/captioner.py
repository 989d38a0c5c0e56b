"""What writes the caption of a picture: rules, or a network."""

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
from percov2_core.errors import UnavailableError, WeightsError

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
    `auto` is `blip` where its weights are, else `objects` where its are, else `describer`. `blip`
    is the folder or Hub name of those weights, by default PERCOV2_BLIP or BLIP_MODEL. ConfigError
    if there is no such captioner; UnavailableError if its weights cannot be had here."""
    check_choice("captioner", name, CAPTIONERS)
    if name == "describer":
        return Captioner(name, describe)
    found: Captioner | UnavailableError
    if name == "objects":
        found = load_objects()
    else:
        local_only = os.environ.get(DOWNLOAD_VARIABLE) != "1"
        found = load_blip(blip or os.environ.get(BLIP_VARIABLE) or BLIP_MODEL, device, local_only)
    if isinstance(found, Captioner):
        return found
    if name != "auto":
        raise found.with_traceback(None)
    found = load_objects()
    return found if isinstance(found, Captioner) else Captioner("describer", describe)


# What is not there is remembered as well: a second picture must neither load weights again, nor
# look for them again.
@lru_cache(maxsize=1)
def load_objects() -> Captioner | UnavailableError:
    """Load the network that names things; an error if its package is not installed."""
    # Loads torch and 19 MB of weights: only who asks for things waits for them.
    from percov2_core.caption import objects
    from percov2_core.metrics.meaning import load_network

    try:
        load_network()
    except WeightsError as error:
        return _missing(f"captioner 'objects': {error}")
    return Captioner("objects", objects.tell)


@lru_cache(maxsize=1)
def load_blip(source: str, device: str, local_only: bool) -> Captioner | UnavailableError:
    """Load BLIP or BLIP-2 from a local folder, the local cache, or, if it may, the Hub.
    It computes in bfloat16 on a GPU, in float32 elsewhere. An error if it is not there, or a
    library is missing."""
    where, dtype = {"local_files_only": local_only}, "float32" if device == "cpu" else "bfloat16"
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        # The PIL backend on every machine: the other one resizes to other pixels.
        processor = AutoProcessor.from_pretrained(source, backend="pil", **where)
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, **where)
    except (ImportError, OSError, ValueError) as error:
        hint = f" (set {DOWNLOAD_VARIABLE}=1 to fetch it)" if local_only else ""
        reason = str(error).strip().split("\n")[0]
        return _missing(f"captioner 'blip': {source!r} is not here{hint}: {reason}")
    return Captioner("blip", Blip(processor, model.to(device).eval()))


def _missing(problem: str) -> UnavailableError:
    _log.info("%s", problem)
    return UnavailableError(problem)
