"""What a picture's file says around its pixels, and the same file without what is optional.

Everything here is tolerant: no tag, chunk or segment that the pixels do not depend on is a reason
to refuse a picture, and none is shown to the decoder behind, which might stumble over it. Where a
file contradicts itself it is read as browsers do: cICP, then the profile, then sRGB, then gAMA.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from percov2_core.errors import ImageError

MAX_PROFILE_BYTES = 8 * 2**20

_ADVICE = "save it as PNG, JPEG, WebP, AVIF, GIF, TIFF, BMP, PPM or JPEG 2000"
_HEIF = rb"....ftyp(?:....)*?"
_SIGNATURES = {
    rb"\x89PNG\r\n\x1a\n": "PNG",
    rb"\xff\xd8\xff": "JPEG",
    rb"RIFF....WEBP": "WebP",
    rb"GIF8[79]a": "GIF",
    rb"BM": "BMP",
    rb"II[*+]\0|MM\0[*+]": "TIFF",
    rb"P[1-6][\s#]|P[fF]\s": "PPM",
    rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    _HEIF + rb"avi[fs]": "AVIF",
    _HEIF + rb"(?:hei[cxms]|hev[cxms]|mif1|msf1)": "HEIC",
}
_FOREIGN = {
    rb"$": "is empty",
    rb"....ftyp": "is a video, not a picture",
    rb"%PDF": "is a PDF document, not a picture",
    rb"\s*(<\?xml|<svg)": "is a drawing (SVG), not a picture of pixels",
    rb"\s*(<!doctype|<html)": "is a web page, not a picture",
}

# x and y of white, red, green and blue, by the numbers of ITU-T H.273.
SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_PRIMARIES = {
    1: SRGB_PRIMARIES,
    5: (0.3127, 0.3290, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.3290, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
_VIDEO = (1, 6, 14, 15)
_CURVES: dict[int, float | str] = {**dict.fromkeys(_VIDEO, 2.4), 4: 2.2, 5: 2.8, 8: 1, 13: "srgb"}
_HDR = {16: "PQ", 18: "HLG"}

# Tags of a TIFF that pixels depend on: of one value, and of several.
_SINGLE_TAGS = {256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323, 512, 513, 514}
_SERIAL_TAGS = {258, 273, 279, 320, 324, 325, 338, 339, 347, 519, 520, 521, 529, 530, 531, 532}
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 16: 8}  # bytes of a value, by the type of a tag
_BITS, _PHOTOMETRIC, _ORIENTATION, _PROFILE = 258, 262, 274, 34675

_MARKER = re.compile(rb"\xff([^\0\1\xd0-\xd9\xff])")  # of those that begin a JPEG's segment


class Colour(NamedTuple):
    """What levels mean, where a file says so by numbers and not by a profile."""

    primaries: tuple[float, ...]  # x and y of white, red, green and blue
    transfer: float | str  # exponent from levels to light, or "srgb"


@dataclass(frozen=True)
class Stored:
    """A picture's file, taken apart."""

    kind: str  # name of the format
    data: bytes = b""  # a file with the same pixels, for the decoder of that format
    orientation: int = 0  # 1 to 8, as EXIF counts; 0 for what the decoder reports
    profile: bytes | None = None  # ICC profile, if the decoder does not report it
    colour: Colour | None = None  # meaning of the levels; None for that of the profile, or sRGB
    key: tuple[int, ...] = ()  # levels of the one colour that is transparent, in `bits` bits
    bits: int = 8  # depth in the file, of PNG and TIFF
    pairs: bool = False  # the two bytes of a level are decoded as two channels
    negative: bool = False  # the highest level is black and the decoder does not know
    ended: bool = True  # False if the mark at the end of a JPEG is missing
    size: tuple[int, int] | None = None  # where the decoder's header has others or comes too late
    place: tuple[int, int] | None = None  # left and top of a frame smaller than the picture


def take_apart(data: bytes) -> Stored:
    """Recognise a picture and read what its file says; ImageError if it is none or broken."""
    start = data[:64]
    kind = next((k for seen, k in _SIGNATURES.items() if re.match(seen, start, re.S)), None)
    if kind is None:
        known = (word for seen, word in _FOREIGN.items() if re.match(seen, start, re.S | re.I))
        raise ImageError(f"{next(known, 'is not a picture that can be read here')}: {_ADVICE}")
    with translated(kind):
        return _READERS[kind](data) if kind in _READERS else Stored(kind, data)


@contextmanager
def translated(kind: str) -> Iterator[None]:
    """Whatever a reader raises on damaged data, which is nearly anything, in one sentence."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"is a {kind} file that is damaged, cut short or of a kind that is not read here: "
            "save it again as PNG or JPEG"
        ) from error


def exif_orientation(exif: object) -> int:
    """Orientation in EXIF data, 1 to 8, whatever else is in there; 1 if there is none."""
    tags = _tags(exif.removeprefix(b"Exif\0\0")) if isinstance(exif, bytes) else ()
    value = next((tag.value for tag in tags if tag.number == _ORIENTATION), 1)
    return value if 1 <= value <= 8 else 1


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Name and body of a PNG's chunks, and if the check value is right; the last may be cut."""
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body, check = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        yield name, body, len(check) < 4 or zlib.crc32(name + body) == int.from_bytes(check)
        at += 12 + length


def _png(data: bytes) -> Stored:
    """Header, palette and pixels alone; of an animation, its first frame."""
    first: dict[bytes, bytes] = {}  # chunk of each name
    frames: list[tuple[bytes, list[bytes]]] = [(b"", [])]  # controls, and pixels
    sound = True
    for name, body, intact in _chunks(data):
        if name == b"fcTL":
            frames.append((body, []))
        elif name in (b"IDAT", b"fdAT"):
            frames[-1][1].append(body if name == b"IDAT" else body[4:])
            sound &= intact
        elif intact:
            first.setdefault(name, body)
    header = bytearray(first[b"IHDR"])
    size = place = None
    pixels = frames[0][1]
    if len(frames) > 1 and b"acTL" in first:
        control, pixels = frames[1]
        if frames[0][1]:  # a picture for those who cannot animate comes before
            size = struct.unpack_from(">2I", header)
            place = struct.unpack_from(">2I", control, 12)
            header[:8] = control[4:12]
    stream = b"".join(pixels)
    if not stream or not (sound or _inflates(stream)):
        raise ValueError("the pixels are not all there")
    bits, colour_type = header[8:10]
    pairs = (bits, colour_type) == (16, 4)  # grey and alpha, which Pillow would cut to 8 bits
    if pairs:
        header[8:10] = 8, 6
    palette = [(n, first[n]) for n in (b"PLTE", b"tRNS") if n in first and colour_type == 3]
    kept = [(b"IHDR", bytes(header)), *palette, (b"IDAT", stream), (b"IEND", b"")]
    packed = (struct.pack(f">I4s{len(b)}sI", len(b), n, b, zlib.crc32(n + b)) for n, b in kept)
    clear = first.get(b"tRNS", b"")
    keyed = colour_type in (0, 2) and len(clear) >= 2 + 2 * colour_type
    key = struct.unpack_from(f">{1 + colour_type}H", clear) if keyed else ()
    turn = exif_orientation(first.get(b"eXIf"))
    profile, colour = _png_colour(first)
    file = data[:8] + b"".join(packed)
    return Stored("PNG", file, turn, profile, colour, key, bits, pairs, size=size, place=place)


def _inflates(stream: bytes) -> bool:
    """True if the pixels' own check value is right, whatever that of the chunk says."""
    inflater = zlib.decompressobj()
    with suppress(zlib.error):
        while stream and inflater.decompress(stream, 2**20):
            stream = inflater.unconsumed_tail
    return inflater.eof


def _png_colour(first: dict[bytes, bytes]) -> tuple[bytes | None, Colour | None]:
    """The profile, or what says the colours in its place."""
    cicp = first.get(b"cICP", b"")
    if len(cicp) == 4 and cicp[3] == 1 and {cicp[0], cicp[1]} != {2}:
        return None, _by_code(cicp[0], cicp[1])
    if b"iCCP" in first:
        packed = first[b"iCCP"].partition(b"\0")[2][1:]
        with suppress(zlib.error):
            return zlib.decompressobj().decompress(packed, MAX_PROFILE_BYTES), None
        return None, None
    gamma = int.from_bytes(first.get(b"gAMA", b"")) / 100_000
    if b"sRGB" in first or not 0 < gamma < 100:
        return None, None
    if len(first.get(b"cHRM", b"")) == 32:
        places = tuple(place / 100_000 for place in struct.unpack(">8I", first[b"cHRM"]))
        return None, Colour(places, 1 / gamma)
    # Whoever writes about the curve of sRGB means that of sRGB.
    return None, Colour(SRGB_PRIMARIES, 1 / gamma) if abs(gamma * 2.2 - 1) > 0.05 else None


def _by_code(primaries: int, transfer: int) -> Colour | None:
    """None if the numbers of H.273 say sRGB, or nothing that is known here."""
    if transfer in _HDR:
        raise ImageError(
            f"is of high dynamic range ({_HDR[transfer]}), which is not read here: "
            "save it as an ordinary picture (SDR, sRGB)"
        )
    known = primaries in _PRIMARIES and transfer in _CURVES and (primaries, transfer) != (1, 13)
    return Colour(_PRIMARIES[primaries], _CURVES[transfer]) if known else None


def _jpeg(data: bytes) -> Stored:
    """Tables, frame and scans; of what is for applications, only Adobe's and JFIF's colours."""
    kept, parts = [data[:2]], []  # the latter of the profile
    orientation, frame, at = 1, b"", 2
    while (found := _MARKER.search(data, at)) and found[1] != b"\xda":
        marker, at = found[1][0], found.end()
        at += int(struct.unpack_from(">H", data, at)[0])
        body = data[found.end() + 2 : at]
        if marker == 0xE1 and body[:6] == b"Exif\0\0" and orientation == 1:
            orientation = exif_orientation(body)
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0":
            parts.append(body[12:])
        elif marker == 0xE0 and body[:5] == b"JFIF\0":
            kept.append(b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0")
        elif marker < 0xE0 or (marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12):
            kept.append(data[found.start() : at])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = body
    if not found:
        raise ValueError("no pixels")
    end = data.find(b"\xff\xd9", found.start())
    scans = data[found.start() : end + 2] if end >= 0 else data[found.start() :].rstrip(b"\xff")
    if end < 0 and not _scanned(frame, scans):
        raise ValueError("the pixels are not all there")
    profile = b"".join(part[2:] for part in sorted(parts, key=lambda part: part[:1])) or None
    return Stored("JPEG", b"".join(kept) + scans, orientation, profile, ended=end >= 0)


def _scanned(frame: bytes, scans: bytes) -> bool:
    """True if the scans of a JPEG say that they bring every coefficient to its last bit."""
    missing = {(component, k) for component in frame[6::3] for k in range(64)}
    for scan in re.finditer(rb"\xff\xda\0.([\1-\4])", scans, re.DOTALL):
        end = scan.end() + 2 * scan[1][0]
        first, last, bits = scans[end : end + 3]
        if bits & 15 == 0:
            missing -= {(c, k) for c in scans[scan.end() : end : 2] for k in range(first, last + 1)}
    return not missing


class _Tag(NamedTuple):
    """An entry in a TIFF's directory."""

    number: int
    kind: int
    value: int  # the first, as a whole number
    content: bytes  # all values as they stand


def _tags(data: bytes) -> Iterator[_Tag]:
    """The first directory of a TIFF, or of EXIF data, as far as it goes and is whole."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    word, head = (8, 8) if number(2, 2) == 43 else (4, 2)  # of a BigTIFF, or any other
    start, step = number(word, word), 4 + 2 * word
    end = start + head + step * min(number(start, head), 65535)
    for at in range(start + head, min(end, len(data) - step + 1), step):
        kind = number(at + 2, 2)
        width = _WIDTHS.get(kind, 2**32)
        size = width * number(at + 4, word)
        place = at + 4 + word if size <= word else number(at + 4 + word, word)
        if place + size <= len(data):
            content = data[place : place + min(size, MAX_PROFILE_BYTES)]
            yield _Tag(number(at, 2), kind, number(place, width), content)


def _tiff(data: bytes) -> Stored:
    """The same pixels before a directory of what they need; a BigTIFF becomes an ordinary one."""
    tags = {tag.number: tag for tag in reversed([*_tags(data)])}  # the first of a number counts
    facts = {number: tag.value for number, tag in tags.items()}
    bits = facts.get(_BITS, 1)
    negative = bits in (12, 16) and facts.get(_PHOTOMETRIC) == 0
    if negative:  # Pillow inverts up to 8 bits, and refuses or forgets the others
        facts[_PHOTOMETRIC] = 1
    order = "<" if data[:2] == b"II" else ">"
    kept = sorted(tags.keys() & (_SINGLE_TAGS | _SERIAL_TAGS))
    start = len(data) + len(data) % 2
    entries, values = b"", bytes(4)
    for n in kept:
        kind, content = tags[n].kind, tags[n].content
        if n in _SINGLE_TAGS:
            kind, content = 4, struct.pack(order + "I", facts[n])
        elif kind == 16:
            kind, content = 4, np.frombuffer(content, order + "u8").astype(order + "u4").tobytes()
        entries += struct.pack(order + "HHI", n, kind, len(content) // _WIDTHS[kind])
        if len(content) > 4:
            place = start + 2 + 12 * len(kept) + len(values)
            values += content + bytes(len(content) % 2)
            content = struct.pack(order + "I", place)
        entries += content.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    directory = struct.pack(order + "H", len(kept)) + entries + values
    file = (head + data[8:]).ljust(start, b"\0") + directory
    profile = tags[_PROFILE].content if _PROFILE in tags else None
    return Stored("TIFF", file, exif_orientation(data), profile, bits=bits, negative=negative)


def _heif(kind: str, data: bytes) -> Stored:
    """Boxes turn the picture, so that EXIF data must not: it becomes an item that none reads."""
    codes = re.search(rb"colrnclx\0(.)\0(.)", data[: 2**16], re.DOTALL)
    colour = None
    if codes and not re.search(rb"colr(prof|rICC)", data[: 2**16]):
        # Here browsers take the curves of video for that of sRGB, and not in PNG.
        colour = _by_code(codes[1][0], 13 if codes[2][0] in _VIDEO else codes[2][0])
    hidden = re.sub(rb"(infe[\2\3].{7}(?:..)?)Exif", rb"\1none", data, flags=re.DOTALL)
    return Stored(kind, hidden, orientation=kind == "HEIC", colour=colour)


def _jpeg_xl(data: bytes) -> Stored:
    """Its decoder tells the size only when it has decoded everything."""
    codestream = re.sub(rb"^\0\0\0\x0cJXL .*?jxl(c|p....)", b"", data[:4096], flags=re.DOTALL)
    left = int.from_bytes(codestream[2:16], "little")

    def take(bits: int) -> int:
        nonlocal left
        value, left = left & ((1 << bits) - 1), left >> bits
        return value

    def side() -> int:
        return 8 + 8 * take(5) if small else 1 + take((9, 13, 18, 30)[take(2)])

    small = take(1) == 1
    height = side()
    ratios = ((1, 0), (1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height
    over, under = ratios[take(3)]
    return Stored("JPEG XL", data, 1, size=(height * over // under if under else side(), height))


_READERS: dict[str, Callable[[bytes], Stored]] = {k: partial(_heif, k) for k in ("AVIF", "HEIC")}
_READERS |= {"PNG": _png, "JPEG": _jpeg, "TIFF": _tiff, "JPEG XL": _jpeg_xl}
