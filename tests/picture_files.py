"""Writes pictures that Pillow cannot write: every kind of PNG, deep TIFFs, EXIF data gone wrong."""

import io
import struct
import zlib

import numpy as np

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
ADAM7 = (*ADAM7, (0, 1, 1, 2))


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(levels, colour_type, depth, *, interlaced=False, before=b"", after=b""):
    """(H, W, C) levels below 2^depth -> a PNG, with chunks before and after the pixels."""
    height, width = levels.shape[:2]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = [
        bytes(1) + _packed(row, depth)
        for x, y, step_x, step_y in passes
        for row in levels[y::step_y, x::step_x]
    ]
    header = struct.pack(">2I5B", width, height, depth, colour_type, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + before + pixels + after + chunk(b"IEND", b"")


def claiming(width, height):
    """A PNG of 9 x 9 pixels that says it is of another size."""
    data = png(np.zeros((9, 9, 3)), 2, 8)
    return data[:8] + chunk(b"IHDR", struct.pack(">2I", width, height) + data[24:29]) + data[33:]


def _packed(row, depth):
    if depth in (8, 16):
        return row.astype(f">u{depth // 8}").tobytes()
    bits = row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def tiff(levels, depth, *, order="<", white_is_zero=False, tags=()):
    """(H, W, C) levels below 2^depth -> a TIFF of one strip; more tags as type, count and value."""
    height, width, channels = levels.shape
    photometric = 2 if channels == 3 else int(not white_is_zero)
    if depth == 12:
        pixels = b"".join(_packed(row, 12) for row in levels)
    else:
        pixels = levels.astype(f"{order}u{depth // 8}").tobytes()
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 1), (262, 3, 1, photometric)),
        *((277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(pixels)), (273, 4, 1, 16)),
        (258, 3, 1, depth) if channels == 1 else (258, 3, channels, 8),
        *tags,
    ]
    start = 16 + len(pixels) + len(pixels) % 2
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", start)
    depths = struct.pack(order + "3H", *[depth] * 3)
    body = (head + depths).ljust(16, b"\0") + pixels
    return body.ljust(start, b"\0") + directory(entries, order)


def directory(entries, order):
    """A TIFF directory of (number, type, count, value or its place)."""
    body = b""
    for number, kind, count, value in sorted(entries):
        short = kind == 3 and count == 1  # values of two bytes are left-justified in their four
        held = struct.pack(order + ("HH" if short else "I"), *([value, 0] if short else [value]))
        body += struct.pack(order + "HHI", number, kind, count) + held
    return struct.pack(order + "H", len(entries)) + body + bytes(4)


def exif(orientation, order, *entries, tail=b""):
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return head + directory([(274, 3, 1, orientation), *entries], order) + tail
