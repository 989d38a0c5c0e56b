"""Pictures as people have them become 8-bit sRGB, upright, on white, and keep their size; and the
`.pcv2` plugin of Pillow."""

import io
import struct
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from percov2_core import image_io, pillow
from percov2_core.errors import ConfigError, ImageError
from tests.picture_files import exif, saved
from tests.tiny import picture


def noise(width=80, height=70):
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def colour(image, x=5, y=5):
    return image.getpixel((x, y))


@given(st.integers(64, 140), st.integers(64, 140), st.sampled_from([1, 8, 16, 64]))
def test_any_size_comes_back_exactly(width, height, multiple):
    image = noise(width, height)
    tensor = image_io.to_tensor(image, multiple)
    assert tensor.dtype == torch.float32 and tensor.abs().max() <= 1
    assert tensor.shape[2] % multiple == tensor.shape[3] % multiple == 0
    assert tensor.shape[2] - height < multiple and tensor.shape[3] - width < multiple
    assert image_io.to_image(tensor, size=(width, height)).tobytes() == image.tobytes()


def test_the_padding_repeats_the_last_row_and_column_and_values_are_clamped_and_rounded():
    tensor = image_io.to_tensor(noise(65, 66), 64)
    assert tensor.shape == (1, 3, 128, 128)
    assert torch.equal(tensor[:, :, :, 65:], tensor[:, :, :, 64:65].expand(-1, -1, -1, 63))
    assert torch.equal(tensor[:, :, 66:], tensor[:, :, 65:66].expand(-1, -1, 62, -1))
    tensor = torch.tensor([-9.0, -1.0, 0.001, 9.0]).expand(1, 3, 1, 4)
    assert np.asarray(image_io.to_image(tensor, size=(4, 1)))[0, :, 0].tolist() == [0, 0, 128, 255]


def linear_grey_profile():
    curve, d50 = b"curv" + bytes(8), struct.pack(">3i", 63190, 65536, 54061)
    white = b"XYZ " + bytes(4) + d50
    tags = struct.pack(">I", 2) + b"kTRC" + struct.pack(">2I", 156, len(curve))
    body = tags + b"wtpt" + struct.pack(">2I", 156 + len(curve), len(white)) + curve + white
    head = struct.pack(">I4sI", 128 + len(body), b"lcms", 0x02400000) + b"mntrGRAYXYZ "
    return head + bytes(12) + b"acsp" + bytes(28) + d50 + bytes(48) + body


def test_a_colour_profile_is_applied_to_greyscale(caplog):
    # The sRGB curve sends linear 55 / 255 to 1.055 * (55 / 255) ** (1 / 2.4) - 0.055 = 0.5019.
    data = saved(Image.new("L", (70, 70), 55), "PNG", icc_profile=linear_grey_profile())
    assert colour(image_io.load(data)) == pytest.approx((128,) * 3, abs=1)
    assert not caplog.text
    image = noise()
    for profile in (b"nonsense", linear_grey_profile()):  # which do not fit
        assert image_io.load(saved(image, "PNG", icc_profile=profile)).tobytes() == image.tobytes()
        assert "colour profile ignored" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_what_is_transparent_becomes_white(mode):
    alpha = Image.new("L", (70, 70), 0)
    alpha.paste(255, (0, 0, 30, 30))
    base = {"PA": "P", "LA": "L", "La": "L"}.get(mode, "RGB")
    stored = Image.new(base, (70, 70), 0)
    stored.putalpha(alpha)
    image = image_io.normalise(stored.convert(mode))
    assert colour(image) == (0, 0, 0) and colour(image, 60, 60) == (255, 255, 255)
    pink = image_io.normalise(Image.new("RGBA", (70, 70), (255, 0, 0, 51)))
    assert colour(pink) == (255, 204, 204)


def test_sixteen_bit_greyscale_is_scaled_and_not_clipped():
    for dtype in ("uint16", ">u2", "int32"):
        levels = np.full((70, 80), 0x8080, dtype=dtype)
        levels[0, 0], levels[0, 1] = 65535, 0
        image = image_io.normalise(Image.fromarray(levels))
        assert [colour(image, x, 0)[0] for x in range(3)] == [255, 0, 128]
    netpbm = b"P5 80 70 65535\n" + b"\x80\x80" * 5600
    assert colour(image_io.load(netpbm)) == (128, 128, 128)


def test_levels_from_0_to_1_are_scaled_and_those_of_unknown_meaning_refused():
    assert colour(image_io.normalise(Image.new("F", (70, 70), 0.2))) == (51, 51, 51)
    cases = ((70000, "i4", 65535), (-1, "i4", 65535), (1.5, "f4", 1), (np.nan, "f4", 1))
    for level, dtype, highest in cases:
        message = f"levels from {level} to {level}, and they must be 0 to {highest}"
        with pytest.raises(ImageError, match=message):
            image_io.normalise(Image.fromarray(np.full((70, 70), level, dtype)))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (70, 70), 1), (255, 255, 255)),
        (Image.new("L", (70, 70), 77), (77, 77, 77)),
        (Image.new("CMYK", (70, 70), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("HSV", (70, 70), (0, 0, 90)), (90, 90, 90)),
        (Image.new("YCbCr", (70, 70), (90, 128, 128)), (90, 90, 90)),
        (Image.new("LAB", (70, 70), (255, 128, 128)), (255, 255, 255)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(image, expected):
    converted = image_io.normalise(image)
    assert converted.mode == "RGB" and colour(converted) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_only_the_first_frame_of_a_moving_picture_is_read(format):
    frames = [Image.new("RGB", (70, 70), name) for name in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert colour(image_io.load(data)) == (255, 0, 0)


def test_a_side_outside_the_limits_is_refused_by_both_numbers():
    for size in ((64, 4096), (4096, 64)):
        assert image_io.normalise(Image.new("L", size)).size == size
    for size in ((63, 512), (512, 63), (4097, 64), (64, 4097)):
        with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} pixels"):
            image_io.load(saved(Image.new("L", size), "PNG"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_picture_that_is_cut_short_is_refused(format):
    data = saved(noise(), format)
    for size in (len(data) // 2, 100, 20):
        with pytest.raises(ImageError):
            image_io.load(data[:size])


@pytest.mark.parametrize(
    "data",
    [b"hello", b"\xb1\x1c\x01\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG"]
    + [saved(Image.new("RGB", (80, 70)), format) for format in ("PCX", "SGI", "TGA")],
)
def test_what_is_no_picture_or_outside_the_list_is_refused_in_words(data):
    with pytest.raises(ImageError, match="is not a picture that can be read here: save it as PNG"):
        image_io.load(data)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"quality": 50}])
def test_jpeg_xl_is_read_in_the_size_that_its_first_bytes_say(options):
    pytest.importorskip("pillow_jxl")
    for size in ((160, 128), (96, 96), (67, 1100)):
        data = saved(Image.new("RGB", size, (200, 40, 40)), "JXL", **options)
        assert image_io.probe(data) == ("JPEG XL", *size)
        assert image_io.load(data).size == size
        assert colour(image_io.load(data)) == pytest.approx((200, 40, 40), abs=3)


@pytest.mark.parametrize(
    ("data", "kind", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC", "pi_heif.HeifImagePlugin"),
        (b"\xff\x0a\x5f" + bytes(9), "JPEG XL", "pillow_jxl"),
    ],
)
def test_without_its_reader_a_photo_is_refused_with_what_to_install(
    data, kind, package, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImageError, match=rf"this file is a {kind} picture.*percov2-core\[photos\]"):
        image_io.load(data)


@pytest.mark.parametrize("turn", [1, 6])
def test_heic_is_decoded_and_turned_once(turn, monkeypatch):
    """Nobody here writes HEIC: its reader, which turns the picture by itself, is stood in for."""
    stored = noise(80, 70)
    stored.info["exif"] = b"Exif\0\0" + exif(turn, ">")
    monkeypatch.setitem(sys.modules, "pi_heif.HeifImagePlugin", object())
    monkeypatch.setitem(Image.OPEN, "HEIF", (lambda file, name: stored, None))
    image = image_io.load(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    assert image.tobytes() == stored.tobytes()


def test_a_picture_is_read_from_paths_bytes_and_files_but_no_endless_one(tmp_path, monkeypatch):
    image, path = noise(), tmp_path / "picture.png"
    path.write_bytes(data := saved(image, "PNG"))
    for source in (data, path, str(path), io.BytesIO(data)):
        assert image_io.load(source).tobytes() == image.tobytes()
    monkeypatch.setattr(image_io, "MAX_PICTURE_BYTES", 1000)
    with open("/dev/zero", "rb") as endless, pytest.raises(ImageError, match="more than 1000 b"):
        image_io.load(endless)


@pytest.fixture
def codec(monkeypatch, unsearched):
    monkeypatch.setattr(pillow, "_codec", lambda model: unsearched)
    return unsearched


@pytest.fixture
def file(tmp_path, codec):
    picture(120, 80).save(tmp_path / "x.pcv2")
    return tmp_path / "x.pcv2"


def test_a_picture_is_saved_and_opened_like_any_other(file, codec):
    stream = codec.encode(picture(120, 80))
    assert file.read_bytes() == stream.to_bytes()
    with Image.open(file) as image:
        assert (image.format, image.get_format_mimetype()) == ("PCV2", "image/x-pcv2")
        assert image.tobytes() == codec.decode(stream).tobytes()
        assert image.info["caption"] == codec.read(stream).caption


def test_size_mode_and_settings_are_known_without_painting(file, monkeypatch):
    monkeypatch.setattr(pillow, "_codec", lambda model: pytest.fail("painted"))
    with Image.open(file) as image:
        assert (image.size, image.mode) == ((120, 80), "RGB")
        assert image.info == {"mode": "extreme", "schedule": "qlds"}


def test_save_takes_the_keywords_of_encode_and_leaves_others_alone(codec):
    buffer = io.BytesIO()
    picture().save(buffer, "PCV2", size=60, caption="a boat", quality=95)
    assert len(buffer.getvalue()) <= 60
    with Image.open(buffer) as image:
        image.load()
        assert image.info["caption"] == "a boat"
    assert not buffer.closed


def test_what_is_no_such_file_is_unidentified(file):
    data = file.read_bytes()
    for damaged in (b"", data[:3], b"\xff\xd8" + data[2:], data + bytes(200_000)):
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO(damaged))


def test_what_is_damaged_inside_is_an_oserror_when_painted(file):
    data = bytearray(file.read_bytes())
    data[-9] ^= 0x55
    image = Image.open(io.BytesIO(bytes(data)))
    with pytest.raises(OSError, match="coded section"):
        image.load()


def test_a_picture_or_a_setting_that_cannot_be_leaves_no_file(tmp_path, codec):
    with pytest.raises(ImageError):
        picture(20, 20).save(tmp_path / "small.pcv2")
    with pytest.raises(ConfigError, match="mode must be one of"):
        picture().save(tmp_path / "wrong.pcv2", mode="ultra")
    assert not list(tmp_path.iterdir())
