"""Kinds of pictures, each read as an independent reader reads it.

Colour type x depth x transparency x interlace x colour x orientation x container. The reader is
Chromium, which decodes all of them in one page; TIFF, which it does not know, is by tifffile.
"""

import base64
import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from percov2_core import image_io
from tests.picture_files import CHANNELS, chunk, exif, png, saved, tiff
from tests.tiny import picture

WIDTH, HEIGHT = 75, 66
KINDS = [
    *((0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8)),
    *((4, 8), (4, 16), (6, 8), (6, 16)),
]
P3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
# sRGB's profile with the primaries of Display P3, under the white of D50.
P3_PROFILE_XYZ = {
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}


def p3_profile():
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for at in range(132, 132 + 12 * int.from_bytes(profile[128:132]), 12):
        if values := P3_PROFILE_XYZ.get(bytes(profile[at : at + 4])):
            place = int.from_bytes(profile[at + 4 : at + 8]) + 8
            profile[place : place + 12] = struct.pack(">3i", *(round(v * 65536) for v in values))
    return bytes(profile)


def gamma(value):
    return chunk(b"gAMA", struct.pack(">I", value))


PROFILE = chunk(b"iCCP", b"p3\0\0" + zlib.compress(p3_profile()))
COLOURS = {
    "linear": gamma(100_000),
    "gamma 2": gamma(50_000),
    "about sRGB": gamma(45_455),
    "gamma zero": gamma(0),
    "P3 and gamma": chunk(b"cHRM", P3) + gamma(45_455),
    "P3 without gamma": chunk(b"cHRM", P3),
    "sRGB before gamma": chunk(b"sRGB", b"\0") + gamma(100_000),
    "coded P3": chunk(b"cICP", bytes((12, 13, 0, 1))),
    "coded wide": chunk(b"cICP", bytes((9, 1, 0, 1))),
    "coded linear": chunk(b"cICP", bytes((1, 8, 0, 1))),
    "coded with 16 to 235": chunk(b"cICP", bytes((12, 13, 0, 0))),
    "profile": PROFILE,
    "code before profile": chunk(b"cICP", bytes((1, 13, 0, 1))) + PROFILE,
}


def levels(colour_type, depth):
    shape = (HEIGHT, WIDTH, CHANNELS[colour_type])
    return np.random.default_rng(depth).integers(0, 2**depth, shape, np.uint16)


def around(colour_type, depth, *, transparent):
    """Palette and transparency; the transparent colour occurs in the picture."""
    if colour_type == 3:
        palette = np.random.default_rng(3).integers(0, 256, 3 * 2**depth, np.uint8)
        key = chunk(b"tRNS", bytes((0, 100))) if transparent else b""
        return chunk(b"PLTE", palette.tobytes()) + key
    colour = levels(colour_type, depth)[7, 9].astype(">u2")
    return chunk(b"tRNS", colour.tobytes()) if transparent else b""


def turned(orientation):
    return b"Exif\0\0" + exif(orientation, ">")


def cases():
    turns = itertools.cycle(range(1, 9))
    for (kind, depth), interlaced, transparent in itertools.product(KINDS, (0, 1), (0, 1)):
        if transparent and kind > 3:
            continue
        turn = next(turns)
        before = around(kind, depth, transparent=bool(transparent))
        before += chunk(b"eXIf", exif(turn, "<"))
        data = png(levels(kind, depth), kind, depth, interlaced=bool(interlaced), before=before)
        name = f"png type {kind} depth {depth} interlaced {interlaced} key {transparent}"
        yield f"{name} turn {turn}", data
    kinds = ((0, 8), (2, 8), (2, 16), (3, 4), (6, 8))
    for (name, before), (kind, depth) in itertools.product(COLOURS.items(), kinds):
        before += around(kind, depth, transparent=False)
        # Browsers may cut levels to 8 bits before they convert them: levels that lose nothing.
        stored = levels(kind, depth) if depth <= 8 else levels(kind, 8) * 257
        yield (f"png {name} type {kind} depth {depth}", png(stored, kind, depth, before=before))
    plain, fine = picture(WIDTH, HEIGHT), picture(160, 128)
    for mode, progressive, sampling in itertools.product(["L", "RGB", "CMYK"], (0, 1), (0, 1, 2)):
        turn = next(turns)
        options = {"quality": 95, "progressive": bool(progressive), "subsampling": sampling}
        data = saved(fine.convert(mode), "JPEG", exif=turned(turn), **options)
        yield f"jpeg {mode} progressive {progressive} sampling {sampling} turn {turn}", data
    yield "jpeg with a profile", saved(fine, "JPEG", icc_profile=p3_profile(), quality=95)
    faded = plain.convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(plain.size))
    for mode, image in (("RGB", plain), ("RGBA", faded)):
        yield f"webp {mode} lossless", saved(image, "WEBP", lossless=True)
        yield f"webp {mode} lossy", saved(image, "WEBP", quality=95)
        if mode == "RGBA":
            # Chromium stretches the alpha of AVIF from 16 to 235, which libavif and ffmpeg do not.
            image.putalpha(image.getchannel("A").point(lambda level: 255 * (level > 127)))
        yield f"avif {mode}", saved(image, "AVIF", quality=100, subsampling="4:4:4")
        yield f"gif {mode}", saved(image.convert("P"), "GIF")
    yield "webp with a profile", saved(plain, "WEBP", lossless=True, icc_profile=p3_profile())
    for turn in (3, 6, 7):
        yield f"avif turn {turn}", saved(plain, "AVIF", quality=95, exif=turned(turn))
    for code in ((1, 1), (2, 2), (6, 6), (9, 1), (1, 8), (12, 13)):
        data = saved(plain, "AVIF", quality=100, subsampling="4:4:4")
        at = data.index(b"nclx") + 4
        yield f"avif coded {code}", data[:at] + struct.pack(">2H", *code) + data[at + 4 :]
    yield "gif key", saved(plain.quantize(16), "GIF", transparency=3)
    for mode in ("1", "L", "P", "RGB"):
        yield f"bmp {mode}", saved(plain.convert(mode), "BMP")


CASES = dict(cases())

_DECODE = """async (data) => {
    const image = new Image();
    image.src = URL.createObjectURL(await (await fetch('data:;base64,' + data)).blob());
    await image.decode();
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext('2d', {colorSpace: 'srgb', willReadFrequently: true});
    context.fillStyle = 'white';
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0);
    const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data;
    let text = '';
    for (let at = 0; at < bytes.length; at += 8192)
        text += String.fromCharCode(...bytes.subarray(at, at + 8192));
    return [canvas.width, canvas.height, btoa(text)];
}"""


@pytest.fixture(scope="module")
def shown(browser):
    """(H, W, 3) as Chromium shows it."""
    page = browser.new_page()

    def look(data):
        width, height, text = page.evaluate(_DECODE, base64.b64encode(data).decode())
        flat = np.frombuffer(base64.b64decode(text), np.uint8)
        return flat.reshape(height, width, 4)[..., :3]

    return look


@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_read_as_a_browser_shows_it(name, shown):
    expected = shown(CASES[name]).astype(int)
    got = np.asarray(image_io.load(CASES[name])).astype(int)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= (6 if name.startswith(("avif", "webp", "jpeg")) else 2)


TIFFS = itertools.product((8, 12, 16), "<>", range(3), (1, 5, 6, 8), (False, True))
TIFFS = [t for t in TIFFS if t[0] != 12 or ((t[1], t[4]) == ("<", False) and t[2] < 2)]


@pytest.mark.parametrize(("depth", "order", "kind", "turn", "big"), TIFFS)
def test_a_tiff_is_read_as_another_library_writes_it(depth, order, kind, turn, big):
    stored, file = levels(2 if kind == 2 else 0, depth), io.BytesIO()
    if depth == 12:  # for which tifffile needs one more library
        file.write(tiff(stored, 12, white_is_zero=kind == 0, tags=((274, 3, 1, turn),)))
    else:
        how = {"photometric": kind, "byteorder": order, "extratags": [(274, 3, 1, turn, True)]}
        pixels = stored.astype(f"u{depth // 8}").squeeze()
        tifffile.imwrite(file, pixels, bigtiff=big, compression="zlib" if big else None, **how)
    top, right = 2**depth - 1, stored.astype(int)
    right = top - right if kind == 0 else right
    right = {1: right, 5: right.swapaxes(0, 1), 6: np.rot90(right, -1), 8: np.rot90(right)}[turn]
    got = np.asarray(image_io.load(file.getvalue())).astype(int)
    assert got.shape[:2] == right.shape[:2]
    assert np.abs(got - right * 255 / top).max() <= 1
