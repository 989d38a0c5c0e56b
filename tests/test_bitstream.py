"""The file format: one spelling per stream, a clear word for all else, damaged files among it."""

import contextlib
from dataclasses import replace
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from percov2_core.bitstream import MAX_FILE_BYTES, MAX_SEED, Stream, check_value
from percov2_core.config import COARSE, FILE_MODES, FINE, SCHEDULES
from percov2_core.errors import BitstreamError, ConfigError
from tests.fuzz import passed, run

PLAIN = replace(Stream.blank((512, 512), "ultra-low", 0xAB), check=0x1234, payload=b"\xc0\xff\xee")
HYBRID = replace(PLAIN, mode="hybrid", tokens_sent=16)
FINE_ONLY = replace(PLAIN, mode="fine-only", tokens_sent=300)
WIDE = replace(PLAIN, mode="extreme", width=768, height=513, tokens_sent=48 * 33, seed=300)


@st.composite
def streams(draw):
    mode = draw(st.sampled_from(list(FILE_MODES.values())))
    width = draw(st.integers(64, 4096))
    height = draw(st.one_of(st.just(width), st.integers(64, 4096)))
    coarse, fine = (prod(level.grid(height, width)) for level in (COARSE, FINE))
    fixed = mode.tokens(coarse, fine)
    some = st.integers(0, fine + coarse * mode.coarse)
    return Stream(
        mode=mode.name,
        schedule=draw(st.sampled_from(SCHEDULES)),
        width=width,
        height=height,
        tokens_sent=draw(some) if fixed is None else fixed,
        fingerprint=draw(st.integers(0, 255)),
        check=draw(st.integers(0, 65535)),
        payload=draw(st.binary(max_size=200)),
        seed=draw(st.one_of(st.just(0), st.integers(0, MAX_SEED))),
        named=draw(st.booleans()),
    )


@given(streams())
def test_a_stream_survives_the_round_trip_as_bytes_and_as_text(stream):
    assert Stream.from_bytes(stream.to_bytes()) == stream
    assert Stream.from_text(f" {stream.to_text()}\n") == stream
    assert "=" not in stream.to_text()
    assert sum(stream.sizes) == len(stream.to_bytes())
    square, partial = stream.width == stream.height, FILE_MODES[stream.mode].partial
    assert stream.sizes.header <= (8 - square if not (stream.seed or partial) else 16)
    assert sum(stream.sent) == stream.tokens_sent and stream.has_coarse >= (stream.sent.coarse > 0)


starts = st.sampled_from([b"", b"\xb2", b"\xb2\x18", b"\xb2\x9c\x01\xff"])


@given(starts, st.binary(max_size=64), st.text(max_size=80))
def test_random_data_raises_bitstream_error_or_is_a_stream_with_one_spelling(start, data, text):
    with contextlib.suppress(BitstreamError):
        assert Stream.from_bytes(start + data).to_bytes() == start + data
    with contextlib.suppress(BitstreamError):
        assert Stream.from_text(text).to_text() == text.strip()


@given(streams(), st.data())
def test_a_corrupted_byte_is_noticed_or_gives_another_stream_and_a_cut_header_is_noticed(s, data):
    whole = bytearray(s.to_bytes())
    with pytest.raises(BitstreamError):
        Stream.from_bytes(bytes(whole[: data.draw(st.integers(0, s.sizes.header - 1))]))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(BitstreamError):
        assert Stream.from_bytes(bytes(whole)) != s


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("00" * 200_001, "file: expected at most 200000 bytes, got 200001"),
        ("89504e470d0a1a0a", "not a PerCoV2 file: starts with byte 89, not b0 to b7"),
        (
            "b11c01ff000000",
            "format version 1, this build reads 2: written by percov2 0.1, which reads it",
        ),
        ("b31c01ff000000", "format version 3, this build reads 2"),
        ("b2", "the file is cut short: it ends at byte 1, before its flags"),
        ("b22c01ff000000", "schedule: expected 0 to 4, got 5"),
        ("b21c01", "the file is cut short: it ends at byte 3, before its size"),
        ("b21c31ff000000", "size: expected four zero bits before the side, got 3"),
        ("b2181ff1ff000000", "size: 512x512 must be marked as square"),
        ("b21c003e000000", "width: expected 64 to 4096, got 63"),
        ("b2181ff03e000000", "height: expected 64 to 4096, got 63"),
        ("b21c01ff", "the file is cut short: it ends at byte 4, before its fingerprint"),
        ("b21c01ffab12", "the file is cut short: it ends at byte 6, before its check value"),
        ("b29c01ffab1234", "the file is cut short: it ends at byte 7, before its tokens sent"),
        ("b29c01ffab1234c108", "tokens sent: expected 0 to 1088, got 1089"),
        ("b2dc01ffab12348108", "tokens sent: expected 0 to 1024, got 1025"),
        ("b29c01ffab12349000", "tokens sent: expected the shortest form, got a padded one"),
        ("b21e01ffab123400", "seed: a stored seed must not be 0, got 0"),
        ("b21e01ffab1234ffffffffff01", "seed: expected at most 5 bytes, got more"),
        ("b21e01ffab1234ffffffff7f", "seed: expected 0 to 4294967295, got 34359738367"),
    ],
)
def test_the_message_names_the_field_and_the_value(text, message):
    with pytest.raises(BitstreamError) as caught:
        Stream.from_bytes(bytes.fromhex(text))
    assert str(caught.value) == message


def test_the_layout_is_frozen():
    # These bytes are in people's files. If this fails, raise VERSION instead.
    assert PLAIN.to_bytes().hex() == "b21c01ffab1234" + "c0ffee"
    assert HYBRID.to_bytes().hex() == "b29c01ffab123410" + "c0ffee"
    assert FINE_ONLY.to_bytes().hex() == "b2dc01ffab1234ac02" + "c0ffee"
    assert WIDE.to_bytes().hex() == "b25a2ff200ab1234ac02" + "c0ffee"
    assert replace(PLAIN, named=True).to_bytes().hex() == "b21d01ffab1234" + "c0ffee"
    assert check_value(PLAIN, "a red barn", tokens=b"\x01\x02", model=b"m" * 32) == 0x6882


def test_the_check_value_covers_every_other_field_and_the_contents_and_where_they_end():
    parts = [("a", b"t", b"m"), ("b", b"t", b"m"), ("at", b"", b"m"), ("a", b"tm", b"")]
    values = [check_value(PLAIN, a, tokens=t, model=m) for a, t, m in parts]
    other_size = {"width": 513, "tokens_sent": 138}
    others = ({"mode": "hybrid"}, {"schedule": "var"}, {"seed": 1}, {"fingerprint": 0})
    for c in (*others, other_size, {"named": True}):
        values.append(check_value(replace(PLAIN, **c), "a", tokens=b"t", model=b"m"))
    assert len(values) == len(set(values))
    bare = replace(PLAIN, check=0, payload=b"")
    assert check_value(bare, "a", tokens=b"t", model=b"m") == values[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "best"}, "mode: expected one of ultra-low, extreme, hybrid, fine"),
        ({"schedule": "zigzag"}, "schedule: expected one of uniform,"),
        ({"tokens_sent": 127}, "tokens sent: expected 128, got 127"),
        ({"fingerprint": 256}, "fingerprint: expected 0 to 255, got 256"),
        ({"check": -1}, "check value: expected 0 to 65535, got -1"),
        ({"payload": bytes(MAX_FILE_BYTES)}, "expected at most 200000 bytes, got 2"),
        ("sR*A", r"link: expected letters, digits, - and _, got '\*'"),
        ("sRwB_", "link: no file has 5 characters, it is cut or extended"),
        (PLAIN.to_text()[:-1] + "v", "link: expected it to end in 'g'"),
        ("A" * 300_000, "file: expected at most 200000 bytes, got 225000"),
    ],
)
def test_wrong_fields_and_damaged_links_are_named(given, message):
    with pytest.raises(BitstreamError, match=message):
        replace(PLAIN, **given) if isinstance(given, dict) else Stream.from_text(given)


def test_what_is_no_file_or_link_is_refused_by_its_kind():
    with pytest.raises(ConfigError, match="file must be bytes, got str"):
        Stream.from_bytes("sAAB")
    with pytest.raises(ConfigError, match="link must be text, got bytes"):
        Stream.from_text(b"sAAB")


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_without_a_crash_or_much_memory(count):
    tally = run(None, count, seed=1)
    assert tally["rejected"] + tally["intact"] == count
    assert tally["rejected"] > 0.9 * count and tally["missed"] == 0
    assert tally["one_byte"] > 0.12 * count and tally["one_byte_missed"] == 0
    assert passed(tally)
