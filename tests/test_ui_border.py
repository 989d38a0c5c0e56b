"""What the page lets in: nothing but uploads, nothing too large, and plain words about the rest."""

import os
import unicodedata
from dataclasses import replace

import gradio as gr
import pytest
from PIL import Image

from percov2_core.errors import BitstreamError, ConfigError, ImageError
from percov2_core.ui import border
from percov2_core.ui.border import MAX_SAID, MAX_UPLOAD_BYTES, allowed_bytes, plain
from tests.tiny import picture, tiny_codec


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The upload folder."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    (tmp_path / "files").mkdir()
    picture().save(tmp_path / "private.png")
    return tmp_path / "files"


def test_only_an_uploaded_file_is_taken(folder, tmp_path):
    inside = folder / "a b.png"
    picture().save(inside)
    (folder / "link.png").symlink_to(tmp_path / "private.png")
    os.mkfifo(folder / "pipe")
    assert border.uploaded({"path": str(inside)}).path == inside
    own = f"http://page.example/x/gradio_api/file={folder}/a%20b.png"
    assert border.checked([{"path": own}])[0]["path"] == str(inside)
    for path in (
        "", None, 3, "a\0b", "x" * 5000, "/dev/zero", str(tmp_path / "private.png"), str(folder),
        str(folder / "none.png"), f"{folder}/../private.png", str(folder / "link.png"),
        str(folder / "pipe"), "http://127.0.0.1:1/x.png", f"file://{inside}",
        f"http://a/gradio_api/file={folder}/%2e%2e/private.png",
    ):  # fmt: skip
        for payload in ({"path": path}, {"path": path, "meta": {"_type": "gradio.FileData"}}):
            with pytest.raises(ImageError, match="did not arrive"):
                border.uploaded(payload)
            with pytest.raises(ImageError, match="did not arrive"):
                border.checked({"value": [payload]})
    with pytest.raises(ImageError, match="did not arrive"):
        border.checked({"url": "http://127.0.0.1/"})
    nested = 1
    for _ in range(1000):
        nested = [nested]
    with pytest.raises(ImageError, match="inside many others"):
        border.checked(nested)


def test_what_is_said_is_short_plain_text():
    said = plain("<img src=x> & \u202eevil\u200b\x1b\ud800 \u3164\nb" + "\U0001f600" * 1000)
    assert said.startswith("&lt;img src=x&gt; &amp;  evil") and said.endswith("…")
    assert len(said) <= MAX_SAID
    assert all(unicodedata.category(c)[0] in "LNPSZ" and c.isprintable() for c in said)
    assert len(plain("x" * 500, advice="Do this.")) <= MAX_SAID
    assert plain("x" * 500, advice="Do this.").endswith("… Do this.")
    with pytest.raises(gr.Error) as caught, border.shown_to_user():
        border.read_link("https://a/?q=<b>\u202e")
    assert "&lt;b&gt;" in caught.value.message and "\u202e" not in caught.value.message


def test_a_file_that_claims_too_much_is_refused_unread(folder):
    stream, file = tiny_codec().encode(picture(), "extreme"), folder / "a.pcv2"
    claimed = replace(stream, mode="hybrid", tokens_sent=0, width=2048, height=1024)
    file.write_bytes(claimed.to_bytes())
    assert border.read_file({"path": str(file)}) == claimed
    assert border.read_link(border.link_to(claimed, "http://a/")) == (claimed, None)
    large = replace(claimed, width=4096)
    file.write_bytes(large.to_bytes())
    ways = {border.read_file: {"path": str(file)}, border.read_link: large.to_text()}
    for read, given in ways.items():
        with pytest.raises(BitstreamError, match=r"at most 2.6 megapixels, got 4096x1024"):
            read(given)


def test_numbers_and_texts_of_a_wrong_kind_get_a_sentence():
    assert border.whole("n", 2.0, 0, 5) == 2
    for value in (None, "3", [1], {}, True, 2.5, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="n must be a whole number in"):
            border.whole("n", value, 0, 5)
    for value in (-1, 6.0, 10**400):
        with pytest.raises(ConfigError, match="n must be in"):
            border.whole("n", value, 0, 5)
    for given in (None, 3, ["a"], "x" * 11):
        with pytest.raises(ConfigError, match="caption must"):
            border.words("caption", given, 10)
    border.check_work(512, 512, 100)
    with pytest.raises(ConfigError, match="steps: this page takes at most 11 for a picture"):
        border.check_work(2048, 2048, 100)


def test_requests_are_bounded_and_the_page_needs_few():
    for path in ("/", "/assets/index.js", "/gradio_api/queue/data", "/gradio_api/mcp/schema"):
        assert allowed_bytes("GET", path) == border.MAX_BODY_BYTES or "mcp" in path
    assert allowed_bytes("POST", "/gradio_api/upload") > border.MAX_UPLOADS_BYTES
    assert allowed_bytes("POST", "/gradio_api/mcp/") < border.MAX_UPLOADS_BYTES
    assert allowed_bytes("POST", "/gradio_api/queue/join") == border.MAX_BODY_BYTES
    for path in ("file=http://127.0.0.1/", "proxy=http://127.0.0.1/", "deep_link", "runs"):
        assert allowed_bytes("GET", f"/gradio_api/{path}") < 0
    for path in ("component_server", "process_recording"):
        assert allowed_bytes("POST", f"/gradio_api/{path}") < 0
    for method, path in (("GET", "/monitoring"), ("POST", "/login"), ("PUT", "/")):
        assert allowed_bytes(method, path) < 0


def test_a_picture_of_a_wrong_size_is_refused_in_words(folder):
    def said(name):
        with pytest.raises(ImageError) as caught:
            border.read_picture({"path": str(folder / name)})
        return str(caught.value)

    Image.new("1", (5200, 5000)).save(folder / "odd.png")
    assert "26.0 megapixels" in said("odd.png")
    Image.new("1", (40, 900)).save(folder / "odd.png")
    assert "40 x 900 pixels, and each side must have 64" in said("odd.png")
    with (folder / "big.png").open("wb") as file:
        file.truncate(MAX_UPLOAD_BYTES + 1)
    assert "20.0 MB; the page takes at most 20 MB" in said("big.png")


def test_a_large_picture_is_offered_smaller_if_the_format_holds_it(folder):
    picture(3000, 1500).save(folder / "wide.jpg")
    chosen = border.read_picture({"path": str(folder / "wide.jpg"), "orig_name": "../a/sea.jpg"})
    assert chosen.large and chosen.kind == "JPEG" and chosen.name == "sea"
    assert chosen.at(1024).image.size == (1024, 512)
    assert chosen.at(2048).image.size == (2048, 1024)
    picture(2400, 2400).save(folder / "square.jpg")
    square = border.read_picture({"path": str(folder / "square.jpg")}).at(2048).image
    assert square.size == (1612, 1612)  # what the page itself makes, it opens as well
    assert square.width * square.height <= border.MAX_WORKING_PIXELS
    with pytest.raises(ConfigError, match=r"takes best up to 0\.6 megapixels, got 1612x1612"):
        border.check_effort("best", square)
    assert border.check_effort("normal", square) == "normal"
    picture(2048, 70).save(folder / "strip.png")
    strip = border.read_picture({"path": str(folder / "strip.png")})
    assert not strip.large and strip.at(1024).image.size == (2048, 70)
