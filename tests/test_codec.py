"""The whole codec on random weights: what must hold for any weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.caption import packing
from percov2_core.config import MODES, SCHEDULES
from percov2_core.entropy.coder import SymbolWriter
from percov2_core.errors import BitstreamError, ConfigError, ImageError
from tests.tiny import picture, tiny_codec


def through_a_file(stream: Stream) -> Stream:
    return Stream.from_bytes(stream.to_bytes())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(64, 64), (65, 130), (331, 97)])
def test_a_picture_comes_back_in_its_own_size(mode, size):
    codec = tiny_codec()
    stream = codec.encode(picture(*size), mode)
    assert codec.decode(through_a_file(stream)).size == size


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_gives_back_the_tokens_that_were_sent(schedule):
    codec = tiny_codec()
    streams = [codec.encode(picture(), "extreme", schedule=s) for s in (schedule, "uniform")]
    first, second = (codec.read(through_a_file(s)) for s in streams)
    assert np.array_equal(first.tokens, second.tokens)
    assert first.caption == second.caption


def test_the_same_picture_gives_the_same_file_and_the_same_pixels():
    codec = tiny_codec()
    files = [codec.encode(picture(), "extreme").to_bytes() for _ in range(2)]
    assert files[0] == files[1]
    pictures = [codec.decode(Stream.from_bytes(files[0]), steps=2) for _ in range(2)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


@pytest.mark.parametrize("mode", MODES)
def test_the_bits_of_the_parts_add_up_to_the_file(mode):
    codec = tiny_codec()
    stream = codec.encode(picture(), mode)
    assert sum(codec.read(stream).bits) == 8 * len(stream.to_bytes())


@pytest.mark.parametrize("mode", ["ultra-low", "extreme"])
def test_a_file_is_at_most_two_bytes_over_its_ideal_length(mode):
    codec = tiny_codec()
    stream = codec.encode(picture(), mode)
    contents = codec.read(stream)
    ideal = codec.caption_bits(contents.caption) + contents.token_bits.sum()
    assert 8 * len(stream.payload) <= ideal + 16


def test_cutting_a_full_file_equals_encoding_with_that_many_tokens():
    codec = tiny_codec()
    full = codec.encode(picture(320, 256), "ultra-low")
    for stage, cut in enumerate(full.cuts):
        encoded = codec.encode(picture(320, 256), "hybrid", tokens=cut.tokens)
        assert full.truncate(stage) == encoded
        assert codec.truncate(through_a_file(full), stage=stage) == encoded
        assert codec.truncate(through_a_file(full), tokens=cut.tokens) == encoded


def test_hybrid_bits_grow_with_the_tokens_sent_and_sampled_tokens_are_not_sent():
    codec = tiny_codec()
    sizes = []
    for k in (0, 3, 10, 20):
        stream = through_a_file(codec.encode(picture(320, 256), "hybrid", tokens=k))
        assert codec.read(stream).sent.sum() == k
        sizes.append(len(stream.payload))
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_a_caption_of_ones_own_travels_exactly():
    codec = tiny_codec()
    caption = "Zwölf  Boxkämpfer\n🥊, jagen!"
    stream = through_a_file(codec.encode(picture(), "hybrid", caption=caption))
    assert codec.read(stream).caption == caption


def test_another_seed_paints_another_picture_from_the_same_tokens():
    codec = tiny_codec()
    stream = codec.encode(picture(), "ultra-low")
    a, b = (codec.decode(stream, seed=seed) for seed in (1, 2))
    assert a.tobytes() != b.tobytes()
    assert codec.decode(stream, seed=0).tobytes() == codec.decode(stream).tobytes()


def test_each_step_reports_itself_and_offers_a_preview():
    codec = tiny_codec()
    seen = []
    stream = codec.encode(picture(), "ultra-low")
    final = codec.decode(
        stream, steps=3, on_step=lambda s: seen.append((s.index, s.total, s.preview()))
    )
    assert [(i, n) for i, n, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2].tobytes() == final.tobytes()


def test_raising_in_a_step_cancels_the_decode():
    codec = tiny_codec()

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        codec.decode(codec.encode(picture()), steps=5, on_step=stop)


def test_a_file_of_another_model_is_named_as_such():
    codec = tiny_codec()
    stream = codec.encode(picture())
    other = dataclasses.replace(stream, fingerprint=stream.fingerprint ^ 1)
    with pytest.raises(BitstreamError, match="fingerprint: file was written by a model with"):
        codec.decode(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "tiny"}, "mode must be one of ultra-low, extreme, hybrid, got 'tiny'"),
        ({"schedule": "spiral"}, "schedule must be one of"),
        ({"tokens": 5}, "tokens: mode 'extreme' sends all 60, got 5"),
        ({"mode": "hybrid", "tokens": 7}, r"tokens must be in \[0, 6\], got 7"),
        ({"captioner": "poet"}, "poet"),
        ({"mode": None}, "mode must be one of ultra-low, extreme, hybrid, got None"),
        ({"schedule": 3}, "schedule must be one of uniform, .*, got 3"),
        ({"mode": "hybrid", "tokens": 2.0}, r"tokens must be a whole number in \[0, 6\], got 2.0"),
        ({"tokens": "60"}, "tokens: mode 'extreme' sends all 60, got '60'"),
        ({"seed": -1}, r"seed must be in \[0, 4294967295\], got -1"),
        ({"seed": 2**32}, r"seed must be in \[0, 4294967295\], got 4294967296"),
        ({"seed": "0"}, r"seed must be a whole number in \[0, 4294967295\], got '0'"),
        ({"caption": 7}, "caption must be text, got 7"),
        ({"caption": "a" * 1001}, "caption must be at most 1000 UTF-8 bytes, got 1001"),
    ],
)
def test_wrong_arguments_of_encode_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny_codec().encode(picture(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, r"steps must be in \[1, 100\], got 0"),
        ({"guidance": 0.5}, r"guidance must be in \[1, 20\], got 0.5"),
        ({"preset": "wild"}, "preset must be one of faithful, balanced, vivid, got 'wild'"),
        ({"preset": ["vivid"]}, "preset must be one of faithful, balanced, vivid, got "),
        ({"steps": 2.5}, r"steps must be a whole number in \[1, 100\], got 2.5"),
        ({"steps": True}, r"steps must be a whole number in \[1, 100\], got True"),
        ({"guidance": "2"}, r"guidance must be a number in \[1, 20\], got '2'"),
        ({"guidance": float("nan")}, r"guidance must be in \[1, 20\], got nan"),
        ({"seed": -1}, r"seed must be in \[0, 4294967295\], got -1"),
    ],
)
def test_wrong_arguments_of_decode_are_named(arguments, message):
    codec = tiny_codec()
    with pytest.raises(ConfigError, match=message):
        codec.decode(codec.encode(picture()), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "truncate: give stage or tokens, got None and None"),
        ({"stage": 0, "tokens": 0}, "truncate: give stage or tokens, got 0 and 0"),
        ({"tokens": 7}, r"tokens must be in \[0, 6\], got 7"),
        ({"tokens": 0.5}, r"tokens must be a whole number in \[0, 6\], got 0.5"),
        ({"stage": 99}, r"stage must be in \[0, \d\], got 99"),
        ({"stage": "all"}, r"stage must be a whole number in \[0, \d\], got 'all'"),
    ],
)
def test_wrong_arguments_of_truncate_are_named(arguments, message):
    codec = tiny_codec()
    with pytest.raises(ConfigError, match=message):
        codec.truncate(codec.encode(picture(), "ultra-low"), **arguments)


def test_a_file_of_the_extreme_rate_is_not_cut():
    codec = tiny_codec()
    with pytest.raises(ConfigError, match="truncate: mode must be ultra-low or hybrid, got extr"):
        codec.truncate(codec.encode(picture(), "extreme"), tokens=0)


def test_numbers_of_numpy_are_as_good_as_those_of_python():
    codec = tiny_codec()
    stream = codec.encode(picture(), "hybrid", tokens=np.int64(3), seed=np.uint8(2))
    assert stream == codec.encode(picture(), "hybrid", tokens=3, seed=2)
    made = codec.decode(stream, steps=np.int32(2), guidance=np.float32(1.5), seed=np.int64(2))
    assert made.tobytes() == codec.decode(stream, steps=2, guidance=1.5).tobytes()


def test_what_is_no_stream_and_no_picture_is_refused_by_its_kind():
    codec = tiny_codec()
    for call in (codec.decode, codec.read, lambda data: codec.truncate(data, tokens=0)):
        with pytest.raises(ConfigError, match=r"stream must be a Stream .*, got bytes"):
            call(b"\xb1")
    with pytest.raises(ImageError, match="picture must be a PIL image, got str"):
        codec.encode("photo.png")


def test_wrong_arguments_are_refused_before_the_picture_is_looked_at(monkeypatch):
    codec = tiny_codec()
    monkeypatch.setattr(codec.vae, "encode", lambda x: pytest.fail("the autoencoder was asked"))
    for wrong in ({"seed": -1}, {"schedule": "spiral"}, {"caption": "a" * 1001}, {"tokens": 1}):
        with pytest.raises(ConfigError):
            codec.encode(picture(), **wrong)


def test_a_picture_outside_the_limits_is_refused_by_its_size():
    with pytest.raises(ImageError, match="63"):
        tiny_codec().encode(Image.new("RGB", (63, 200)))


def test_single_byte_corruptions_are_reported():
    codec = tiny_codec()
    data = codec.encode(picture(), "ultra-low").to_bytes()
    reported = 0
    places = [(i, x) for i in range(len(data)) for x in (0x01, 0x80, 0x5A)]
    for i, flip in places:
        damaged = data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :]
        try:
            codec.read(Stream.from_bytes(damaged))
        except BitstreamError:
            reported += 1
    assert reported == len(places)


def test_caption_and_tokens_share_one_coder():
    codec = tiny_codec()
    stream = codec.encode(picture(), "hybrid", tokens=0)
    writer = SymbolWriter()
    packing.write_caption(writer, codec.read(stream).caption, codec.language)
    assert stream.payload == writer.finish()


def test_a_large_picture_is_painted_in_tiles():
    codec = tiny_codec()
    flow = codec.rates["ultra-low"].flow
    whole = flow.config
    flow.config = dataclasses.replace(whole, tile=16)
    try:
        made = codec.decode(codec.encode(picture(320, 192), "ultra-low"))
    finally:
        flow.config = whole
    assert made.size == (320, 192)
    assert torch.from_numpy(np.asarray(made, dtype=np.float32)).std() > 0
