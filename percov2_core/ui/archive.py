"""Pictures that arrive together: files, and ZIPs as an attacker would fill them.

Nothing of a ZIP is unpacked to the disk, one entry at a time is in memory, and what an entry holds
is counted while it is read: no size, name or path in a ZIP is believed.
"""

from __future__ import annotations

import stat
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from percov2_core.errors import ImageError
from percov2_core.ui import border
from percov2_core.ui.border import MAX_UPLOAD_BYTES, Chosen, Payload

MAX_PICTURES = 50
MAX_ENTRIES = 1000  # of a ZIP, folders and what systems hide in there included
_STARTS = (b"PK\3\4", b"PK\5\6")
_ENTRY = b"PK\1\2"  # begins each line of a ZIP's list
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others may make 100 MB of 4 kB at once
_MAX_NAME = 60
_KEPT = " ._-+()"  # of names, beside letters and digits


class Item(NamedTuple):
    """One picture of those that arrived together."""

    name: str  # safe as a file's name; without its ending, no other one of the batch has it
    path: Path  # of the upload
    entry: int | None = None  # its place in the list of a ZIP


def list_pictures(payloads: Any) -> list[Item]:
    """What a visitor uploaded together. ImageError if it is nothing, too many pictures, a damaged
    ZIP, or no upload."""
    given: Sequence[Payload | None] = payloads if isinstance(payloads, list) else [payloads]
    if not given or len(given) > MAX_PICTURES:
        raise ImageError(_too_many(len(given)) if given else border.CHOOSE_FIRST)
    found: list[Item] = []
    for path, name in map(border.uploaded, given):
        with path.open("rb") as file:
            zipped = file.read(4) in _STARTS
        found += _entries(path) if zipped else [Item(name, path)]
    if not found:
        raise ImageError("There is no picture in this ZIP.")
    if len(found) > MAX_PICTURES:
        raise ImageError(_too_many(len(found)))
    used: set[str] = set()
    return [item._replace(name=_distinct(item.name, used)) for item in found]


def read_item(item: Item) -> Chosen:
    """Check and read one of the pictures; ImageError in words for a visitor."""
    if item.entry is None:
        return border.read_picture({"path": str(item.path), "orig_name": item.name})
    with _opened(item.path) as archive:
        entry = archive.infolist()[item.entry]
        if entry.flag_bits & 1:
            raise ImageError("is encrypted: pack it without a password")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ImageError("is a link to another file, not a picture")
        if entry.compress_type not in _METHODS:
            raise ImageError("is packed in a way that is not read here: use an ordinary ZIP")
        with archive.open(entry) as file:
            data = file.read(MAX_UPLOAD_BYTES + 1)
    return border.read_data(data, item.path, item.name)


def _entries(path: Path) -> Iterator[Item]:
    # Before anything makes an object of every line.
    if path.read_bytes().count(_ENTRY) > MAX_ENTRIES:
        raise ImageError(f"This ZIP has more than {MAX_ENTRIES:,} entries: leave out what is none.")
    with _opened(path) as archive:
        for number, entry in enumerate(archive.infolist()):
            parts = entry.filename.replace("\\", "/").split("/")
            hidden = parts[-1].startswith(".") or "__MACOSX" in parts
            if parts[-1] and not hidden:
                yield Item(parts[-1], path, number)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Whatever the reader raises on a ZIP made to harm, in one sentence."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (ImageError, GeneratorExit):
        raise
    except Exception as error:
        raise ImageError("cannot be unpacked: the ZIP is damaged or cut short") from error


def _distinct(name: str, used: set[str]) -> str:
    """A name that is safe in any folder, and whose stem is not among those used."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2])
    kept = "".join(c if c.isalnum() or c in _KEPT else "_" for c in name).strip(" .")
    ending = Path(kept).suffix[:_MAX_NAME]
    stem = kept.removesuffix(ending)[:_MAX_NAME].strip(" .") or "picture"
    number, first = 1, stem
    while stem.casefold() in used:
        number += 1
        stem = f"{first}-{number}"
    used.add(stem.casefold())
    return stem + ending


def _too_many(count: int) -> str:
    return f"These are {count} pictures; the page takes at most {MAX_PICTURES} at once."
