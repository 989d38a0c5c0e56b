"""Pictures that other tools got wrong, through all four entrances: right, or refused in words."""

import itertools
import zlib
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from percov2_core import image_io, picture_file
from percov2_core.cli import main
from percov2_core.errors import ImageError
from percov2_core.ui import border
from percov2_core.ui.page import EndPoints
from tests.fuzz_pictures import run as fuzz
from tests.picture_files import chunk, claiming, exif, png, saved, tiff

UPRIGHT = [(200, 40, 40), (40, 160, 60), (40, 70, 190), (220, 200, 60)]  # from the top left on
ENTRANCES = ("library", "command line", "page", "api")


def quadrants(width=160, height=128):
    levels = np.array(UPRIGHT, np.uint8).reshape(2, 2, 3)
    return Image.fromarray(levels.repeat(height // 2, 0).repeat(width // 2, 1))


LEVELS = np.asarray(quadrants())


# What a camera that was held upright stores, to be turned by orientation 6.
LYING = quadrants().transpose(Image.Transpose.ROTATE_90)


def jpeg(image, **options):
    return saved(image, "JPEG", quality=95, subsampling=0, **options)


def corners(image):
    right, low = image.width - 9, image.height - 9
    return [image.getpixel(place) for place in ((8, 8), (right, 8), (8, low), (right, low))]


@pytest.fixture(params=ENTRANCES)
def read(request, tmp_path, monkeypatch, capsys):
    """What comes in when a file is given to one of the entrances; `ImageError` if it is refused."""
    codec = Mock()
    codec.encode.side_effect = NotImplementedError  # nothing is done with it
    monkeypatch.setattr("percov2_core.weights.load_codec", lambda name: codec)
    monkeypatch.setattr(border, "get_upload_folder", lambda: str(tmp_path))

    def look(data, name="photo"):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            if request.param == "library":
                return image_io.load(path, fit=2048)
            if request.param == "page":
                return border.read_picture({"path": str(path)}).full.image
            if request.param == "api":
                EndPoints.compress(SimpleNamespace(codec=codec), {"path": str(path)})
            assert main(["compress", str(path), "-o", f"{path}.pcv2", "--fit", "2048"]) == 1
        except NotImplementedError:
            return codec.encode.call_args.args[0]
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and str(tmp_path) not in said
        raise ImageError(said.strip())

    return look


GREY = Image.new("RGB", (160, 128), "gray")
MOVING = {"save_all": True, "default_image": True, "append_images": [quadrants(), GREY]}
WHOLE_JPEG, WHOLE_PNG = jpeg(quadrants()), png(LEVELS, 2, 8)
MEGABYTES = b"a\0\0" + zlib.compress(bytes(3_000_000))
WRONG_TEXT = chunk(b"tEXt", b"Title\0x")[:-1] + b"\0"


def behind(name, body):
    return png(LEVELS, 2, 8, before=chunk(name, body))


def with_exif(container, data):
    how = {"quality": 95, "subsampling": 0, "lossless": True}
    return saved(LYING, container, exif=b"Exif\0\0" + data, **how)


READ = {
    "metadata of 3 MB, packed": behind(b"zTXt", MEGABYTES),
    "a profile of 3 MB": behind(b"iCCP", MEGABYTES),
    "an end that is missing": WHOLE_JPEG[:-2],
    "an end that is missing, progressive": jpeg(quadrants(), progressive=True)[:-2],
    "half an end": WHOLE_JPEG[:-1],
    "no end of a PNG": WHOLE_PNG[:-12],
    "a wrong check value of a text": png(LEVELS, 2, 8, before=WRONG_TEXT),
    "a wrong check value around right pixels": WHOLE_PNG[:-13] + b"\0" + WHOLE_PNG[-12:],
    "an animation without its first picture": saved(GREY, "PNG", **MOVING),
    "an ordinary picture": saved(quadrants(64, 64), "PNG"),
    "an orientation": with_exif("JPEG", exif(6, ">")),
}


@pytest.mark.parametrize("kind", READ)
def test_what_a_browser_shows_is_read_alike_by_every_entrance(kind, read):
    image = read(READ[kind])
    assert image.mode == "RGB" and min(image.size) >= 64
    assert np.abs(np.subtract(corners(image), UPRIGHT)).max() <= 2


REFUSED = {
    "a signature alone": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"x" * 300, "HEIC file"),
    "claims 100 megapixels": (claiming(10_000, 10_000), "10000 x 10000"),
    "claims 3600 megapixels": (claiming(60_000, 60_000), "60000 x 60000"),
    "100 : 1": (jpeg(Image.new("L", (9000, 90))), "become 2048 x 20 .* cut it"),
    "smaller than a token": (saved(quadrants(62, 300), "PNG"), "62 x 300 pixels"),
    "the half of a JPEG": (WHOLE_JPEG[: len(WHOLE_JPEG) // 2], "damaged"),
    "a JPEG without its last scans": (jpeg(quadrants(), progressive=True)[:700], "damaged"),
    "a JPEG without its last rows": (WHOLE_JPEG[:-40], "damaged"),
    "the half of a PNG": (WHOLE_PNG[:250], "damaged"),
    "pixels that were changed": (WHOLE_PNG[:-30] + b"??" + WHOLE_PNG[-28:], "damag"),
    "PQ": (behind(b"cICP", bytes((9, 16, 0, 1))), "high dynamic range .PQ.*SDR"),
    "HLG": (behind(b"cICP", bytes((9, 18, 0, 1))), "high dynamic range .HLG.*SDR"),
    "a document": (b"%PDF-1.7\n", "is a PDF document"),
    "a drawing": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is a drawing"),
    "nothing": (b"", "is empty"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_good_picture_is_refused_in_one_sentence(kind, read):
    data, message = REFUSED[kind]
    with pytest.raises(ImageError, match=message) as caught:
        read(data)
    said = str(caught.value)
    assert said.isprintable() and len(said) < 250 and said.strip("'\"") == said
    # The page has a limit of its own.
    assert "photo " in said or "megapixels" in said
    with pytest.raises(ImageError) as caught:
        read(data, "\x1b[31m" + "x" * 200)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 250


# Entries gone wrong beside the orientation, as cameras and programs write them: resolutions, notes,
# places, previews and numbers that there are not, each with every type, count, and value or place.
TAGS = (0, 256, 270, 271, 282, 283, 296, 305, 306, 513, 33434, 34665, 34853, 37500, 40965, 65535)
FAULTS = [
    *((0, 0, 0), (0, 1, 0), (1, 1, 9), (1, 3, 0x10203), (2, 0, 0), (2, 2, 0x3249), (2, 20, 40)),
    *((2, 4, 0x322F37), (2, 4, 0x41414141), (2, 0xFFFFFFFF, 26), (3, 9000, 12), (4, 1, 5)),
    *((4, 1, 8), (4, 1, 0x7FFFFFFF), (4, 3, 8), (5, 1, 8), (5, 1, 70000), (5, 1, 0xFFFFFF0)),
    *((5, 0x7FFFFFFF, 26), (7, 60000, 60000), (10, 1, 0xFFFFFFF), (12, 1, 0x7FFFFFFF), (77, 1, 0)),
    (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_is_read_whatever_stands_beside_it(container, tag):
    for fault, order in itertools.product(FAULTS, "<>"):
        entry = (tag, *fault)
        if container == "TIFF":
            # A tag on which pixels depend cannot be wrong there.
            tags = ((274, 3, 1, 6), *([entry] if tag not in (256, 513) else []))
            data = tiff(np.asarray(LYING), 8, order=order, tags=tags)
        else:
            data = with_exif(container, exif(6, order, entry))
        image = image_io.load(data)
        assert image.size == (160, 128)
        assert np.abs(np.subtract(corners(image), UPRIGHT)).max() <= 2


@given(
    st.lists(st.tuples(*[st.integers(0, 65535)] * 2, *[st.integers(0, 2**32 - 1)] * 2)), st.binary()
)
def test_no_other_entry_hides_the_orientation(entries, tail):
    others = [entry for entry in entries if entry[0] != 274 and entry[1:3] != (3, 1)]
    assert picture_file.exif_orientation(exif(6, "<", *others, tail=tail)) == 6


@given(st.binary(max_size=300))
def test_any_bytes_have_some_orientation(data):
    for head in (b"", b"Exif\0\0MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0"):
        assert 1 <= picture_file.exif_orientation(head + data) <= 8


@given(st.integers(64, 9000), st.integers(64, 9000), st.integers(64, 4096))
def test_the_shape_stays_as_it_was_to_within_a_pixel(width, height, side):
    try:
        fitted = image_io.fitted(Image.new("1", (width, height)), side)
    except ImageError:
        assert round(min(width, height) * side / max(width, height)) < 64
        return
    scale = min(1, side / max(width, height))
    assert max(fitted.size) <= max(side, 0) or scale == 1
    assert abs(fitted.width - width * scale) <= 0.5 and abs(fitted.height - height * scale) <= 0.5


def test_a_large_picture_is_read_smaller_and_its_message_says_how():
    data = jpeg(quadrants(5000, 3000))
    with pytest.raises(ImageError, match=r"5000 x 3000 pixels.*--fit 4096"):
        image_io.load(data)
    image = image_io.load(data, fit=1000)
    assert image.size == (1000, 600)
    assert np.abs(np.subtract(corners(image), UPRIGHT)).max() <= 2
    assert image_io.probe(data) == ("JPEG", 5000, 3000)


@pytest.mark.parametrize("length", range(1, 60, 7))
def test_a_jpeg_without_an_end_is_read_only_if_its_pixels_are_there(length):
    data = jpeg(Image.effect_noise((96, 80), 90), progressive=bool(length % 2))
    with pytest.raises(ImageError, match="damaged"):
        image_io.load(data[: -2 - length])


def test_damaged_pictures_end_in_words_quickly_and_in_little_memory():
    tally, faults = fuzz(400, seed=9)
    assert not faults
    assert tally["read"] > 20 and tally["refused"] > 200
