"""The whole codec on random weights: what must hold for any weights."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ImageCms import ImageCmsProfile, createProfile

from percov2_core import image_io, latent
from percov2_core.bitstream import Stream
from percov2_core.config import FILE_MODES, MODES, SCHEDULES
from percov2_core.contents import Tokens
from percov2_core.entropy import prior
from percov2_core.entropy.coder import SymbolReader
from percov2_core.entropy.session import Session
from percov2_core.errors import BitstreamError, ConfigError, ImageError
from percov2_core.flow.transformer import FlowModel, guidance_features
from percov2_core.hyper.networks import HyperDecoder
from percov2_core.latent import LatentAutoencoder, deblocked
from percov2_core.painting import _nothing_coarse
from percov2_core.weights import load_codec
from tests.tiny import counted, picture, tiny_codec, tiny_folder

CAPTION = "Zwölf  Boxkämpfer\n🥊, jagen!"


def through_a_file(stream):
    return Stream.from_bytes(stream.to_bytes())


def test_a_caption_that_names_things_says_so_in_the_header_and_comes_back():
    codec = tiny_codec()
    for caption, named in (("lighthouse and dog: a red sky", True), ("unicorn: a red sky", False)):
        stream = codec.encode(picture(), "hybrid", caption=caption, tokens=3)
        back = codec.read(Stream.from_bytes(stream.to_bytes()))
        assert (back.caption, stream.named) == (caption, named)
        assert codec.truncate(stream, tokens=1).named == named


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(64, 64), (65, 130), (331, 97)])
def test_a_picture_comes_back_in_its_own_size_and_all_bits_are_told(mode, size):
    codec = tiny_codec()
    stream = through_a_file(codec.encode(picture(*size), mode))
    assert codec.decode(stream).size == size
    assert sum(codec.read(stream).bits) == 8 * len(stream.to_bytes())


def test_the_same_picture_gives_the_same_file_and_the_same_seed_the_same_pixels():
    codec = tiny_codec()
    stream, again = (through_a_file(codec.encode(picture(), "extreme")) for _ in range(2))
    assert stream == again
    seeds = ({}, {}, {"seed": 0}, {"seed": 1})
    *same, other = (codec.decode(stream, **seed).tobytes() for seed in seeds)
    assert len(set(same)) == 1 and other not in same


def test_each_step_reports_itself_and_offers_a_preview():
    codec = tiny_codec()
    stream = codec.encode(picture(), "ultra-low")
    steps = list(codec.paint(codec.read(stream), steps=3))
    assert [(s.index, s.total) for s in steps] == [(1, 3), (2, 3), (3, 3)]
    assert [s.picture is None for s in steps] == [True, True, False]
    assert steps[0].preview().size == steps[2].picture.size
    assert steps[0].preview().tobytes() != steps[2].picture.tobytes()
    assert steps[2].picture.tobytes() == codec.decode(stream, steps=3).tobytes()


def test_closing_a_painting_in_its_middle_runs_no_further_step(monkeypatch):
    codec = tiny_codec()
    contents = codec.read(codec.encode(picture()))
    asked = counted(monkeypatch, FlowModel, "forward")
    painting = codec.paint(contents, steps=50, guidance=1.0)
    assert [next(painting).index for _ in range(20)][-1] == len(asked) == 20
    painting.close()
    assert list(painting) == [] and len(asked) == 20


def test_eight_threads_that_paint_at_once_get_what_one_gets():
    codec = load_codec(tiny_folder(), device="cpu")  # not used before: nothing is warm
    contents = codec.read(codec.encode(picture(), "ultra-low"))
    steps = [1, 2, 3, 5, 8, 1, 4, 6]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda n: [*codec.paint(contents, steps=n)][-1].picture, steps))
    for n, made in zip(steps, at_once, strict=True):
        assert made.tobytes() == codec.decode(contents.stream, steps=n).tobytes()


def test_the_entropy_model_runs_once_to_write_once_to_read_and_never_to_paint(monkeypatch):
    codec, sessions = tiny_codec(), counted(monkeypatch, prior, "Session")
    for mode, written, read in (("ultra-low", 2, 2), ("extreme", 1, 1), ("hybrid", 1, 2)):  # levels
        stream = codec.encode(picture(), mode, tokens=3 if mode == "hybrid" else None)
        assert len(sessions) == written
        contents = codec.read(stream)
        assert len(sessions) == written + read
        list(codec.paint(contents, steps=2))
        assert len(sessions) == written + read
        codec.decode(stream)
        assert len(sessions) == written + 2 * read
        sessions.clear()


def test_a_picture_is_looked_at_once_for_files_of_every_size(monkeypatch):
    codec, asked = tiny_codec(), counted(monkeypatch, type(tiny_codec().vae), "encode")
    found = codec.look(picture())
    asked.clear()
    for how in ({"mode": "ultra-low"}, {"mode": "hybrid", "count": 9}, {"size": 50}):
        written = codec.write(found, **how)
        assert not asked
        how = {"tokens" if name == "count" else name: value for name, value in how.items()}
        assert codec.encode(picture(), **how) == written
        asked.clear()


WRONG = {
    "encode": [
        ({"mode": "fine-only"}, "mode must be one of ultra-low, extreme, hybrid, got 'fine-only'"),
        ({"schedule": "spiral"}, "schedule must be one of"),
        ({"tokens": 5}, "tokens: mode 'extreme' sends 60, got 5"),
        ({"mode": "hybrid", "tokens": 67}, r"tokens must be in \[0, 66\], got 67"),
        ({"size": 0}, r"size must be in \[1, 200000\], got 0"),
        ({"size": 99.5}, r"size must be a whole number in \[1, 200000\], got 99.5"),
        ({"captioner": "poet"}, "poet"),
        ({"mode": "hybrid", "tokens": 2.0}, r"tokens must be a whole number in \[0, 66\], got 2"),
        ({"tokens": "60"}, "tokens: mode 'extreme' sends 60, got '60'"),
        ({"seed": -1}, r"seed must be in \[0, 4294967295\], got -1"),
        ({"caption": 7}, "caption must be text, got int"),
        ({"caption": "a" * 1001}, "caption must be at most 1000 UTF-8 bytes, got 1001"),
        ({"caption": "a \udcff"}, "valid Unicode text, got half a character at place 3"),
        ({"mode": "x" * 10_000}, r"mode must be one of .*, got 'x{56}\.\.\.$"),
        ({"seed": 10**5000}, r"seed must be in \[0, 4294967295\], got a very large int"),
    ],
    "decode": [
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
    "truncate": [
        ({}, "truncate: give one of stage, tokens and size, got none"),
        ({"stage": 0, "size": 9}, "truncate: give one of stage, tokens and size, got stage, size"),
        ({"tokens": 11}, r"tokens must be in \[0, 10\], got 11"),
        ({"tokens": 0.5}, r"tokens must be a whole number in \[0, 10\], got 0.5"),
        ({"stage": 99}, r"stage must be in \[0, 10\], got 99"),
        ({"stage": "all"}, r"stage must be a whole number in \[0, 10\], got 'all'"),
        ({"size": True}, r"size must be a whole number in \[1, 200000\], got True"),
    ],
}


@pytest.mark.parametrize(
    ("verb", "arguments", "message"), [(v, *r) for v in WRONG for r in WRONG[v]]
)
def test_wrong_arguments_are_named_before_anything_is_looked_at(
    verb, arguments, message, monkeypatch
):
    codec = tiny_codec()
    # The file to decode is of another model: that would be found out when it is read.
    other = Stream.blank((160, 96), "extreme", codec.fingerprint ^ 1)
    given = {"encode": picture(), "decode": other}
    given["truncate"] = verb == "truncate" and codec.encode(picture(), "ultra-low")
    monkeypatch.setattr(codec.vae, "encode", lambda x: pytest.fail("the autoencoder was asked"))
    with pytest.raises(ConfigError, match=message):
        getattr(codec, verb)(given[verb], **arguments)


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
    with pytest.raises(ImageError, match="63"):
        codec.encode(Image.new("RGB", (63, 200)))


def test_a_picture_is_normalised_once_however_often_it_is_given(monkeypatch):
    codec, file = tiny_codec(), io.BytesIO()
    picture().save(file, "PNG", icc_profile=ImageCmsProfile(createProfile("sRGB")).tobytes())
    image = image_io.load(file.getvalue())
    finished = counted(monkeypatch, image_io, "_finished")
    stream = codec.encode(image, caption=codec.describe(image))
    codec.encode(image, "ultra-low")
    assert not finished
    assert codec.encode(Image.open(file), caption=codec.read(stream).caption) == stream
    assert len(finished) == 1


def test_a_large_picture_is_painted_in_tiles(monkeypatch):
    codec = tiny_codec()
    flow = codec.painter.flow
    monkeypatch.setattr(flow, "config", replace(flow.config, tile=16))
    monkeypatch.setattr(codec.vae, "tile", 16)
    contents = codec.read(codec.encode(picture(320, 192), "ultra-low"))
    decoded = counted(monkeypatch, LatentAutoencoder, "_decode")
    steps = list(codec.paint(contents, steps=2))
    shares, indices = ([getattr(s, name) for s in steps] for name in ("share", "index"))
    assert len(decoded) == codec.vae.count_tiles(24, 40) == 6  # each tile once
    assert shares == sorted(set(shares)) and shares[-1] == 1.0
    assert indices == sorted(indices) and (indices[0], indices[-1]) == (0, 2)
    *unfinished, made = (step.picture for step in steps)
    assert unfinished == [None] * len(unfinished)
    assert made.size == (320, 192) and np.asarray(made).std() > 0
    painting = codec.paint(contents, steps=1)
    assert [next(painting).picture for _ in range(3)] == [None] * 3
    painting.close()
    assert len(decoded) == 6


@pytest.mark.parametrize(("period", "passes"), [(8, 2), (16, 2), (16, 3), (32, 3)])
def test_what_repeats_from_token_to_token_is_taken_out_and_edges_stay(period, passes):
    rng = np.random.default_rng(5)
    cell = torch.from_numpy(0.03 * rng.standard_normal((1, 3, period, period))).float()
    mesh = (cell - cell.mean(dim=(2, 3), keepdim=True)).tile(1, 1, 320 // period, 320 // period)
    slope = torch.linspace(-0.5, 0.5, 320).expand(1, 3, 320, 320)
    within = (..., slice(64, -64), slice(64, -64))
    assert (deblocked(slope + mesh, passes) - slope)[within].std() < 0.1 * mesh.std()
    step = torch.where(torch.arange(320) < 158, -0.5, 0.5).expand(1, 3, 320, 320)
    assert (deblocked(step, passes) - step).abs().max() < (8 if passes == 3 else 4) / 127.5
    most = (18.001 + 12 * (passes == 3)) / 127.5
    assert (deblocked(slope + 9 * mesh, passes) - slope - 9 * mesh).abs().max() < most
    odd = (slope + mesh)[..., :-5, :-11]
    assert deblocked(odd, passes).shape == odd.shape


def test_a_painting_is_deblocked_where_tokens_were_guessed_and_nowhere_else(monkeypatch):
    codec, passes = tiny_codec(), []
    monkeypatch.setattr(latent, "deblocked", lambda x, count: passes.append(count) or x)
    for tokens in (1088, 64 + 512, 64 + 511, 64 + 32, 64 + 31, 0):
        found = Tokens((512, 512), "", *(np.zeros((n, n), dtype=np.int64) for n in (8, 32)))
        codec.decode(codec.write(found, count=tokens))
    assert passes == [1, 1, 3, 3]


def test_a_coarse_level_that_is_left_out_is_worked_out_once(shipped, monkeypatch):
    contents = shipped.read(shipped.encode(picture(), caption="", effort="fast"))
    raised = counted(monkeypatch, HyperDecoder, "raise_coarse")
    given = shipped._given(contents, 1.75)
    assert not given.coarse.any() and len(raised) == 1
    told = guidance_features(torch.tensor([1.75]), shipped.painter.decoder.guidance_width)
    with torch.no_grad():
        start = shipped.painter.decoder(given, told).start
        assert len(raised) == 1
        afresh = shipped.painter.decoder(given._replace(raised=None), told).start
    assert torch.equal(start, afresh) and start.std() > 0.1
    shipped._given(contents, 1.75)
    assert len(raised) == 2


def test_what_a_painting_has_worked_out_serves_the_search_as_well(shipped):
    contents = shipped.read(shipped.encode(picture(), caption="", effort="fast"))
    _nothing_coarse.cache_clear()
    shipped.decode(contents.stream, preset="faithful")  # without gradients
    tokens = torch.from_numpy(contents.fine.tokens)[None]
    codes = shipped.levels["fine"].quantizer.lookup(tokens).requires_grad_()
    shipped.search.decode_codes(codes).square().sum().backward()
    assert codes.grad.abs().sum() > 0 and _nothing_coarse.cache_info().hits > 0


def test_a_large_picture_is_looked_at_in_tiles_that_can_be_cancelled(shipped, monkeypatch):
    image = picture(320, 192)
    whole = shipped.look(image, caption="", effort="fast")
    monkeypatch.setattr(shipped.vae, "tile", 16)
    encoded = counted(monkeypatch, LatentAutoencoder, "_encode")
    shares = []
    stream = shipped.encode(image, caption="", progress=shares.append, effort="fast")
    assert len(encoded) == 6 and len(shares) == 7  # each tile once, and the end
    assert shares == sorted(set(shares)) and shares[-1] == 1.0
    assert (shipped.read(stream).fine.tokens == whole.fine).mean() > 0.95
    looking = shipped.looking(image, caption="")
    assert next(looking).tokens is None
    looking.close()
    assert len(encoded) == 7
    tiled, whole = (np.asarray(shipped.decode(stream)), monkeypatch.undo())
    whole = np.asarray(shipped.decode(stream))
    assert np.abs(tiled.astype(int) - whole).max() <= 2


def test_the_search_asks_the_decoder_once_per_tile_where_a_surrogate_stands_in(
    shipped, monkeypatch
):
    decoded = counted(monkeypatch, LatentAutoencoder, "_decode")
    shipped.look(picture(), caption="", coarse=False)
    assert len(decoded) == 1
    shipped.look(picture(64, 64), caption="", coarse=False, effort="best")
    assert len(decoded) > 10


def tokens(seed=1, size=(256, 192)):
    """Tokens of both levels."""
    rng, (columns, rows) = np.random.default_rng(seed), (side // 64 for side in size)
    coarse, fine = (rng.integers(0, 256, (k * rows, k * columns)) for k in (1, 4))
    return Tokens(size, CAPTION, coarse, fine)


@pytest.mark.parametrize("mode", FILE_MODES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_caption_and_sent_tokens_come_back_and_the_others_are_the_likeliest(mode, schedule):
    codec, how = tiny_codec(), {"schedule": schedule, "seed": 9}
    for count in (0, 5, 12, 100) if FILE_MODES[mode].partial else (None,):
        written = codec.write(tokens(), mode, count=count, **how)
        blank = Stream.blank((256, 192), mode, codec.fingerprint, tokens=count, **how)
        assert replace(written, payload=b"", check=0) == blank
        found = codec.read(through_a_file(written))
        assert found.caption == CAPTION and (found.coarse is not None) == written.has_coarse
        for name, sent in zip(("coarse", "fine"), written.sent, strict=True):
            level, true = getattr(found, name), getattr(tokens(), name)
            if level is not None:
                assert level.sent.sum() == sent and not level.bits[~level.sent].any()
                assert np.array_equal(level.tokens[level.sent], true[level.sent])
        guessed = found.fine.tokens[~found.fine.sent]
        assert (found.guesses is None) == (not len(guessed))
        if len(guessed):
            assert (found.guesses.sum(1, dtype=int) == 2**16).all()
            assert np.array_equal(found.guesses.argmax(1), guessed)


def test_fine_tokens_take_what_they_do_under_the_coarse_ones_that_seed_and_file_say():
    codec, bits = tiny_codec(), set()
    other = tokens()._replace(coarse=tokens(2).coarse)
    for found, mode in ((tokens(), "hybrid"), (other, "hybrid"), (tokens(), "fine-only")):
        bits.add(codec.read(codec.write(found, mode, count=150)).fine.bits.sum())
    assert len(bits) == 3
    drawn = [codec.read(codec.write(tokens(), count=5, seed=seed)) for seed in (0, 1)]
    assert not np.array_equal(drawn[0].coarse.tokens, drawn[1].coarse.tokens)
    assert not np.array_equal(drawn[0].guesses, drawn[1].guesses)


@pytest.mark.parametrize(
    "wrong", [np.full((3, 4), 256), np.full((3, 4), -1), np.zeros((4, 3), int)]
)
def test_what_are_no_tokens_of_the_file_is_not_written(wrong):
    for name, grid in (("coarse", "3 x 4"), ("fine", "12 x 16")):
        message = rf"{name} tokens must be {grid} numbers in \[0, 256\)"
        with pytest.raises(ConfigError, match=message):
            tiny_codec().write(tokens()._replace(**{name: wrong}), count=20)


@pytest.mark.parametrize(
    "field", ["seed", "fingerprint", "schedule", "check", "tokens_sent", "mode"]
)
def test_a_header_that_was_changed_and_a_file_of_another_model_are_noticed(field):
    written = tiny_codec().write(tokens(), count=5, seed=9)
    values = {"seed": 8, "schedule": "var", "tokens_sent": 4, "mode": "fine-only"}
    values |= {name: getattr(written, name) ^ 1 for name in ("check", "fingerprint")}
    said = {"fingerprint": "fingerprint: file was written by a model with"}
    said["seed"] = "check value: contents give .* file says"  # of which nothing else knows
    with pytest.raises(BitstreamError, match=said.get(field)):
        tiny_codec().decode(replace(written, **{field: values[field]}))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cut_is_the_file_of_fewer_tokens_and_can_be_painted(mode, schedule):
    codec = tiny_codec()
    full = codec.write(tokens(), mode, count=204 if mode == "hybrid" else None, schedule=schedule)
    partial, ends = "hybrid" if full.has_coarse else "fine-only", codec.stage_ends(full)
    assert ends[0] == 0 and ends[-1] == full.tokens_sent and (12 in ends) >= full.has_coarse
    for stage, count in enumerate(ends[:-1]):
        shorter = codec.write(tokens(), partial, count=count, schedule=schedule)
        how = {"stage": stage} if stage % 3 else {"tokens": count}
        assert codec.truncate(through_a_file(full), **how) == shorter
    assert codec.decode(codec.truncate(full, tokens=1)).size == (256, 192)
    whole = {"stage": len(ends) - 1}, {"tokens": ends[-1]}, {"size": len(full.to_bytes())}
    assert [codec.truncate(full, **how) for how in whole] == [full] * 3


@pytest.mark.parametrize(("schedule", "seed"), [("qlds", 0), ("uniform", 300)])
def test_a_file_of_at_most_n_bytes_could_not_hold_one_token_more(schedule, seed):
    codec, found, how = tiny_codec(), tokens(size=(192, 64)), {"schedule": schedule, "seed": seed}
    sizes = [len(codec.write(found, count=n, **how).to_bytes()) for n in range(52)]
    extreme = codec.write(found, "extreme", **how)
    least, whole = sizes[0], len(extreme.to_bytes())
    for size in [*range(least, least + 20), *range(least + 20, whole, 7), whole - 1]:
        made = codec.write(found, size=size, **how)
        assert made.mode == "hybrid" and len(made.to_bytes()) == sizes[made.tokens_sent] <= size
        assert min(sizes[made.tokens_sent + 1 :], default=size + 1) > size
        shorter = codec.truncate(extreme, size=size)
        assert len(shorter.to_bytes()) <= size < whole and shorter.mode == "fine-only"
    assert codec.write(found, size=whole, **how) == extreme
    assert codec.write(found, size=10 * whole, **how) == extreme
    message = f"size: the caption alone takes {least} bytes, got {least - 1}; a shorter caption"
    for call in (codec.write, lambda _, **how: codec.truncate(extreme, size=how["size"])):
        with pytest.raises(ConfigError, match=message):
            call(found, size=least - 1, **how)


def test_a_file_of_few_fine_tokens_sends_the_nearest_and_not_the_searched():
    codec, searched, nearest = tiny_codec(), tokens(), tokens(seed=2).fine
    both, few = searched._replace(nearest=nearest), searched._replace(fine=nearest)
    for count, expected in ((12 + 127, few), (12 + 128, searched)):  # of 192 fine ones
        written = codec.write(both, count=count)
        assert written == codec.write(expected, count=count)
        assert codec.write(both, size=len(written.to_bytes())) == written
    assert codec.write(both, "ultra-low") == codec.write(few, "ultra-low")
    assert codec.write(both, "extreme") == codec.write(searched, "extreme")
    alone = searched._replace(fine=None)
    assert codec.write(both, size=45) == codec.write(alone, size=45)


def test_frequencies_that_drift_between_writer_and_reader_are_caught_by_the_check_value(
    monkeypatch,
):
    """What another processor makes of a float model's sums, which the twin is there to prevent."""
    codec, exact, noise = tiny_codec(), Session.frequencies, np.random.default_rng(0)

    def drifted(session, positions):
        freqs = exact(session, positions).astype(np.int64)
        freqs += noise.random(freqs.shape) < 0.01  # a step up for one in a hundred
        freqs[np.arange(len(freqs)), freqs.argmax(1)] += 2**16 - freqs.sum(1)
        return freqs.astype(np.uint32)

    written = [codec.write(tokens(seed), count=12) for seed in range(6)]
    monkeypatch.setattr(Session, "frequencies", drifted)
    # The coder notices most of it by itself, but not all. Here it is not asked.
    monkeypatch.setattr(SymbolReader, "close", lambda self: None)
    caught = 0
    for seed, stream in enumerate(written):
        try:
            assert np.array_equal(codec.read(stream).coarse.tokens, tokens(seed).coarse)
        except BitstreamError as error:
            caught += "check value: contents give" in str(error)
    assert caught >= 4
