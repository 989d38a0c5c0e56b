"""Kodak-512 and native-size pictures: what is measured, before any codec. H x W pixels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from percov2_core import image_io
from percov2_core.config import MAX_SIDE_PX
from percov2_core.errors import ConfigError, ImageError
from percov2_core.evaluation import SUFFIXES

SIDE_PX = 512


def list_pictures(folder: Path) -> list[Path]:
    """Every picture file below `folder` but hidden ones, by path; ConfigError if there is none."""
    if not folder.is_dir():
        raise ConfigError(f"data folder {str(folder)!r}: there is no such folder")
    named = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    files = sorted(p for p in named if p.is_file() and not p.name.startswith("."))
    if not files:
        raise ConfigError(f"data folder {str(folder)!r} holds no picture ({', '.join(SUFFIXES)})")
    return files


def centre_square(image: Image.Image, side_px: int = SIDE_PX) -> Image.Image:
    """Short side to `side_px` by Lanczos, then the centre square."""
    image = ImageOps.cover(image.convert("RGB"), (side_px, side_px), Image.Resampling.LANCZOS)
    left, top = (image.width - side_px) // 2, (image.height - side_px) // 2
    return image.crop((left, top, left + side_px, top + side_px))


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One file of the data folder, opened only when a worker gets to it."""

    name: str  # path below the data folder, what rows call it
    path: Path
    square: bool = True  # 512 x 512 (the protocol), or native size

    def open(self) -> Image.Image:
        """What codecs get, reduced to what they take; ImageError if it is no readable picture."""
        try:
            image = image_io.load(self.path, fit=MAX_SIDE_PX)
        except OSError as error:
            raise ImageError(f"picture {self.name!r} cannot be opened: {error}") from error
        return centre_square(image) if self.square else image


def find_pictures(folder: Path, *, square: bool = True) -> list[Picture]:
    """The pictures of a folder as the protocol takes them (or `square=False`: native size)."""
    pictures = []
    for path in list_pictures(folder):
        # A name can be written into any table, whatever bytes it has.
        name = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
        pictures.append(Picture(name=name, path=path, square=square))
    return pictures


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (1, 3, H, W) float in [0, 255]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)[None].float()


def load_512(folder: Path) -> Tensor:
    """(N, 3, 512, 512) float in [-1, 1]: every picture of the folder by the protocol."""
    return torch.cat([to_tensor(p.open()) / 127.5 - 1 for p in find_pictures(folder)])
