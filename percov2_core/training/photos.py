"""Where photos come from: a folder, WebDataset shards, or what the library `datasets` saved.

Each photo is a slice of a file. So a set of any size is a list of places, and a photo is read when
it is wanted, and not kept.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from percov2_core import image_io
from percov2_core.config import MAX_SIDE_PX
from percov2_core.errors import ConfigError
from percov2_core.evaluation import SUFFIXES
from percov2_core.evaluation.protocol import list_pictures


@dataclass(frozen=True, slots=True)
class Photo:
    """An encoded picture in a file: all of it, or `size` bytes from `start`."""

    path: Path
    start: int = 0
    size: int = -1

    def read(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8; ImageError if it is none, or damaged."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = BytesIO(file.read(self.size))
        name = self.path.name if self.size < 0 else f"{self.path.name} at byte {self.start}"
        return np.asarray(image_io.load(data, fit=MAX_SIDE_PX, name=name))


def find_photos(place: Path) -> list[Photo]:
    """Every photo of a folder, or of the shards (.tar) and tables (.arrow) in it if it has any; of
    one shard or table, if that is `place`. ConfigError if there is none, or one is damaged."""
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    readers = {".tar": _in_shard, ".arrow": _in_table}
    held = [path for path in files if path.is_file() and path.suffix in readers]
    if not held:
        return [Photo(path) for path in list_pictures(place)]
    if not (found := [photo for path in held for photo in readers[path.suffix](path)]):
        raise ConfigError(f"data {str(place)!r}: there is no picture in its shards")
    return found


def _in_shard(path: Path) -> Iterator[Photo]:
    """The pictures of a WebDataset shard; only the headers between them are read."""
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if member.isfile() and member.name.lower().endswith(SUFFIXES):
                    yield Photo(path, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ConfigError(f"shard {str(path)!r} cannot be read: {error}") from error


def _in_table(path: Path) -> Iterator[Photo]:
    """The pictures of a table of `datasets`: a column of structures with the field `bytes`."""
    import pyarrow as pa  # only such a table needs it

    try:
        with pa.memory_map(str(path)) as file:
            whole = file.read_buffer()
            table = pa.ipc.open_stream(whole).read_all()  # in the file itself: nothing is copied
            for chunk in (c for column in table.columns for c in column.chunks):
                if pa.types.is_struct(chunk.type) and chunk.type.get_field_index("bytes") >= 0:
                    data = chunk.field("bytes")
                    ends = np.frombuffer(data.buffers()[1], np.int32)[data.offset :]
                    start = data.buffers()[2].address - whole.address
                    for a, b in pairwise(ends[: len(data) + 1].tolist()):
                        if a < b:  # else the table has its path alone
                            yield Photo(path, start + a, b - a)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"table {str(path)!r} cannot be read: {error}") from error
