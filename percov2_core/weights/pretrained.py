"""The codec under the names that people know from diffusers and transformers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from percov2_core import codec
from percov2_core.errors import ConfigError
from percov2_core.weights import load_codec
from percov2_core.weights.find import CHECKPOINT_FILES


@dataclass(kw_only=True, eq=False, repr=False)
class PerCoV2(codec.PerCoV2):
    """A codec that knows the folder of its checkpoint."""

    folder: Path

    @classmethod
    def around(cls, loaded: codec.PerCoV2, folder: Path) -> PerCoV2:
        """The same codec, which was loaded from `folder`."""
        return cls(**{f.name: getattr(loaded, f.name) for f in fields(loaded)}, folder=folder)

    @classmethod
    def from_pretrained(cls, name: str | Path = "embedded", **options: Any) -> PerCoV2:
        """`load_codec`: "embedded", a folder, the OWNER/NAME of a Hub repository, or
        "sd3-medium:" before one of the last two; `options` as there. From the Hub's cache; fetched
        into it with PERCOV2_ALLOW_DOWNLOAD=1. WeightsError and ConfigError as there."""
        return load_codec(name, **options)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the checkpoint's files into a folder, which is made, for `from_pretrained`; what a
        base from elsewhere holds is not among them. ConfigError if it is the checkpoint's own, or
        a file."""
        target = Path(folder).absolute()
        if target.resolve().is_relative_to(self.folder.resolve()) or target.is_file():
            raise ConfigError(f"folder: must be another one than the model's, got {str(folder)!r}")
        for file in (file for kind in CHECKPOINT_FILES for file in self.folder.rglob(kind)):
            place = target / file.relative_to(self.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        return target

    def push_to_hub(self, repository: str) -> str:
        """Send the checkpoint to a Hub repository, which is made, private, if it does not exist;
        -> its address. WeightsError if it cannot be sent; says what to set."""
        from percov2_core.weights.hub import upload  # an HTTP client: only where the Hub is asked

        return upload(self.folder, repository)
