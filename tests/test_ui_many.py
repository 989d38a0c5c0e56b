"""Many pictures on the page: ZIPs that mean harm, turns in between, what a visitor takes away."""

import gc
import io
import struct
import zipfile
from types import SimpleNamespace
from unittest.mock import Mock

import gradio as gr
import pytest

from percov2_core.bitstream import Stream
from percov2_core.codec import PerCoV2
from percov2_core.errors import ConfigError, ImageError
from percov2_core.ui import archive, border, text
from percov2_core.ui.device import Turns
from percov2_core.ui.many import ManyTab
from tests.picture_files import saved
from tests.tiny import counted, picture, tiny_codec

VISITOR = SimpleNamespace(session_hash="a", headers={"host": "page"})
PNG = saved(picture(64, 64), "PNG")


@pytest.fixture
def upload(tmp_path, monkeypatch):
    """`upload(name, data)` -> what gradio tells of it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))

    def kept(name, data):
        path = tmp_path / f"{len([*tmp_path.iterdir()])}.upload"
        path.write_bytes(data)
        return {"path": str(path), "orig_name": name}

    return kept


def zipped(entries, method=zipfile.ZIP_DEFLATED):
    """`entries`: name or ZipInfo -> content; always the same bytes, as they name tests."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as packed:
        for name, data in entries.items():
            plain = isinstance(name, str)  # no time of day in it
            packed.writestr(entry(name, compress_type=method) if plain else name, data)
    return buffer.getvalue()


def entry(name, **fields):
    info = zipfile.ZipInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_names_in_a_zip_become_safe_and_stay_distinct(upload):
    names = ["../../etc/cron.d/sea.png", "/sea.jpg", "a\\b\\SEA.png", "deep/er/\u202egnp.exe.png",
             "<b>.png", "é" * 300 + ".png", "...png", "CON:.png"]  # fmt: skip
    hidden = {"folder/": b"", "__MACOSX/sea.png": b"x", "a/.DS_Store": b"x"}
    data = zipped({**dict.fromkeys(names, PNG), **hidden})
    listed = archive.list_pictures([upload("z.zip", data), upload("sea.webp", PNG)])
    found = [item.name for item in listed]
    assert found[:3] == ["sea.png", "sea-2.jpg", "SEA-3.png"] and found[-1] == "sea-4.webp"
    assert found[3:5] == ["_gnp.exe.png", "_b_.png"] and "é" * 60 + ".png" in found
    assert len({name.rpartition(".")[0].casefold() for name in found}) == len(found) == 8
    assert not [c for name in found for c in name if c in '/\\<>:"\u202e']
    assert archive.read_item(listed[0]).image.size == (64, 64)


def test_names_that_are_not_utf8_are_read_or_refused_in_words(upload):
    old = zipped({"a\u00e9.png": PNG})
    spoilt = old.replace("\u00e9".encode(), b"\xe9\xff")
    with pytest.raises(ImageError, match="cannot be unpacked: the ZIP is damaged"):
        archive.list_pictures([upload("z.zip", spoilt)])
    flag = struct.pack("<H", 0x800)
    plain = spoilt.replace(b"\x14\0" + flag, b"\x14\0\0\0")
    (item,) = archive.list_pictures([upload("z.zip", plain)])
    assert archive.read_item(item).image.size == (64, 64)


BOMB = bytes(border.MAX_UPLOAD_BYTES + 10**6)
LINK = {"external_attr": 0o120777 << 16, "create_system": 3}


def locked(data):
    """The mark of an encrypted entry, in both of its places."""
    return data.replace(b"PK\3\4\x14\0\0\0", b"PK\3\4\x14\0\1\0").replace(
        b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped({"bomb.png": BOMB}), "20.0 MB; the page takes at most 20 MB"),
        (zipped({"bomb.png": BOMB}).replace(struct.pack("<L", len(BOMB)), struct.pack("<L", 9)),
         "cannot be unpacked"),
        (locked(zipped({"secret.png": PNG})), "is encrypted"),
        (zipped({entry("passwd.png", **LINK): "/etc/passwd"}), "is a link"),
        (zipped({"a.png": PNG}, zipfile.ZIP_LZMA), "packed in a way that is not read here"),
        (zipped({"a.png": zipped({"a.png": PNG})}), "a.png is not a picture"),
        (zipped({"a.png": PNG}, zipfile.ZIP_STORED).replace(PNG[-30:], bytes(30)), "be unpacked"),
        (zipped({"a.txt": "hello"}), "a.txt is not a picture"),
    ],
)  # fmt: skip
def test_an_entry_that_means_harm_is_refused_alone(data, message, upload):
    """Sizes are counted while they are read, and never more than a picture may have."""
    (item,) = archive.list_pictures([upload("z.zip", data)])
    with pytest.raises(ImageError, match=message):
        archive.read_item(item)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped({f"{i}.png": b"" for i in range(51)}), "51 pictures; the page takes at most 50"),
        (zipped({f"{i}/": b"" for i in range(10_000)}), "more than 1,000 entries"),
        (zipped({".hidden": b""}), "no picture in this ZIP"),
        (zipped({"a.png": PNG})[:-30], "cannot be unpacked"),
        (zipped({"a.png": PNG})[:60], "cannot be unpacked"),
    ],
)
def test_a_zip_that_means_harm_is_refused_in_words(data, message, upload):
    with pytest.raises(ImageError, match=message):
        archive.list_pictures([upload("z.zip", data)])


@pytest.fixture
def tab():
    with gr.Blocks() as blocks:
        tab = ManyTab(tiny_codec(), Turns())
        yield tab
    del blocks, tab
    gc.collect()


def begin(tab, files, mode="hybrid", size=40, before=None):
    return tab.start(files, mode, size, "fast", before, 0, VISITOR)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # gradio leaves an event loop
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_picture_is_an_event_of_its_own_and_cancel_keeps_what_is_done(
    tab, upload, monkeypatch
):
    looks = counted(monkeypatch, PerCoV2, "looking")
    files = [upload("a.png", PNG), upload("b.png", b"no picture"), *[upload("c.png", PNG)] * 2]
    answer = begin(tab, files)
    batch, number = answer[tab.batch], answer[tab.next]
    assert [item.name for item in batch.items] == ["a.png", "b.png", "c.png", "c-2.png"]
    for done in (1, 2):
        *_, last = tab.step(batch, number, VISITOR)
        assert (len(batch.rows), last[tab.next]) == (done, number + 1)
        number = last[tab.next]
    assert len(batch.rows[0].data) <= 40 and batch.rows[1].problem.startswith("b.png is not a")
    assert "b.png is not a picture" in last[tab.table] and "1 of them" in last[tab.said]
    running = tab.step(batch, number, VISITOR)
    next(running), next(running)
    assert "what is done is kept" in tab.cancel(batch)[tab.said]
    *_, last = running
    assert tab.next not in last and len(batch.rows) == 2 and last[tab.button].interactive
    assert list(tab.step(batch, number, VISITOR)) == [{tab.said: gr.skip()}]
    assert len(looks) == 2 and "Save 1 .pcv2" in last[tab.save]
    event = Mock(_data={"key": "a"})
    assert "pc-range" in tab.show(event, batch)
    batch.pictures.unlink()
    with pytest.raises(gr.Error, match="not kept any more"):
        tab.show(event, batch)
    assert begin(tab, files, before=batch)[tab.batch].waits


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_no_batch_can_be_made_of_is_refused(tab, upload, monkeypatch):
    for files in (None, []):
        with pytest.raises(ImageError, match="Choose a picture first"):
            begin(tab, files)
    with pytest.raises(ImageError, match="51 pictures"):
        begin(tab, [upload("a.png", PNG)] * 51)
    with pytest.raises(ConfigError, match="size must be"):
        begin(tab, [upload("a.png", PNG)], size=float("nan"))
    with pytest.raises(ConfigError, match="mode must be"):
        begin(tab, [upload("a.png", PNG)], mode="fine-only")
    monkeypatch.setattr("percov2_core.ui.many.MAX_WAITING", 0)
    with pytest.raises(gr.Error, match="The demo is full"):
        begin(tab, [upload("a.png", PNG)])


@pytest.mark.ui
@pytest.mark.timeout(600)
def test_a_visitor_takes_away_two_zips_whose_files_hold_the_same_tokens(visit, tmp_path):
    from tests.ui_browser import expect, open_tab, pixels

    page, files = visit(), []
    pictures = {f"photo {seed}": picture(64, 64, seed=seed) for seed in range(11)}
    for name, image in pictures.items():
        image.save(tmp_path / f"{name}.png")
        files.append(tmp_path / f"{name}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture" * 9)
    open_tab(page, "Many pictures")
    expect(page.locator("#pc-many-table")).to_contain_text(text.EMPTY_MANY)
    page.locator("#pc-many-files input[type=file]").set_input_files(
        [tmp_path / "broken.jpg", *files]
    )
    expect(page.locator("#pc-many-files")).to_contain_text("photo 10")
    page.get_by_role("tabpanel").get_by_label("Hybrid (any size)", exact=True).check()
    box = page.locator("#pc-many-size input[type=number]")
    box.fill("60")
    box.press("Enter")
    page.locator("#pc-many-start").click()
    expect(page.locator("#pc-many-said")).to_contain_text("12 of 12 done, 1 of them")
    expect(page.locator("#pc-many-table .pc-wrong")).to_contain_text("is not a picture")

    def saved_zip(kind):
        with page.expect_download() as waiting:
            page.locator(f"#pc-many-{kind}-zip").click()
        with zipfile.ZipFile(waiting.value.path()) as packed:
            return {name: packed.read(name) for name in packed.namelist()}

    packed, painted = saved_zip("files"), saved_zip("pictures")
    assert [*packed] == [f"{name}.pcv2" for name in pictures]
    assert [*painted] == [f"{name}.png" for name in pictures]
    codec = tiny_codec()
    for name, image in pictures.items():
        stream = Stream.from_bytes(packed[f"{name}.pcv2"])
        assert stream == codec.encode(image, size=60, effort="fast")
        assert codec.read(stream).caption == codec.describe(image)
    page.locator("#pc-many-table button").nth(3).click()
    shown = pixels(page.locator("#pc-many-stage .pc-original"))
    assert shown == pictures["photo 3"].tobytes()
