"""The `.pcv2` plugin of Pillow."""

import io

import pytest
from PIL import Image, UnidentifiedImageError

from percov2_core import pillow
from percov2_core.errors import ConfigError, ImageError
from tests.tiny import picture


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
