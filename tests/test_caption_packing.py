"""Captions through the range coder: exact for every text, as short as the model says."""

import contextlib
import random
import zlib
from itertools import chain, repeat

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from percov2_core.caption import packing
from percov2_core.caption.language import UNKNOWN
from percov2_core.caption.ngram import GROUP
from percov2_core.caption.packing import FORMS, caption_bits, read_caption, write_caption
from percov2_core.entropy.coder import TOTAL, SymbolReader, SymbolWriter
from percov2_core.errors import BitstreamError, ConfigError
from percov2_core.training.caption_language import HELD_OUT, build_language, read_captions

CAPTIONS = [
    "A dog runs on the beach.",
    "A dog, two cats and a man stand on the beach.",
    "The man runs after the dog on the grass.",
]
SENTENCES = [
    "pale blue sky, green middle, dark green ground, fine texture",
    "grey top, dark grey beside red middle, brown ground, soft texture, uniform",
]
SMALL = build_language(CAPTIONS * 4, SENTENCES * 4)


def packed(text, language):
    writer = SymbolWriter()
    write_caption(writer.write, text, language)
    return writer.finish()


def unpacked(data, language):
    reader = SymbolReader(data)
    text = read_caption(reader.read, language)
    reader.close()
    return text


words = st.sampled_from(["a", "dog", "Dog", "blue", "sky", "beside", "zebra", ",", "x.", "A", ""])


@given(st.text(max_size=80) | st.lists(words).map(" ".join))
@example("")
@example(" ")
@example("  Two  spaces, a tab\t and\nlines. ")
@example("...")
@example(" , . a,b ,c")
@example("A.")
@example("\u0130stanbul \u1e9e \u01c5")
@example("\U0001f436 \u202e \x1b[2J <b>")
@example("a\x00b")
def test_every_text_survives_exactly(text):
    assert unpacked(packed(text, SMALL), SMALL) == text


@pytest.mark.parametrize("text", [*CAPTIONS, *SENTENCES, "Zürich, bei Nacht?", "日本語"])
def test_the_coder_spends_what_caption_bits_says(text):
    ideal = caption_bits(text, SMALL)
    assert abs(len(packed(text, SMALL)) - ideal / 8) <= 1
    noise = "".join(random.Random(3).choices("äöüßΩж漢字", k=200))  # little worse than bare bytes
    assert caption_bits(noise, SMALL) <= 8 * len(noise.encode()) + 20


def test_the_longest_caption_survives_and_a_longer_one_is_refused():
    text = "é" * (packing.MAX_BYTES // 2)
    assert unpacked(packed(text, SMALL), SMALL) == text
    with pytest.raises(ConfigError, match="at most 1000 UTF-8 bytes, got 1001"):
        packed(text + "!", SMALL)


@given(st.binary(max_size=60))
def test_no_data_raises_anything_but_bitstream_error(data):
    with contextlib.suppress(BitstreamError):
        text = unpacked(data, SMALL)
        assert packing.check_caption(text) == text  # what can be read could have been written


def scripted(symbols):
    """A reader that says the given symbols, then the last of them for ever."""
    said = chain(symbols, repeat(symbols[-1]))
    return lambda freqs: np.array([min(next(said), freqs.shape[1] - 1)])


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ((5, 1001), "caption is 1001 bytes, at most 1000 are allowed"),
        ((5, 1, 255), "^the caption in the file is not valid Unicode text$"),
        ((1, 2), "caption goes on after 1000 bytes"),
        ((1, *[1, 0, 0] * 2000), "caption goes on after 1000 bytes"),  # words without letters
        ((1, 1, 0, 100), "caption holds a word of more than 1000 bytes"),
    ],
)
def test_impossible_captions_name_what_is_wrong(symbols, message):
    assert len(SMALL.free.vocabulary) <= GROUP
    with pytest.raises(BitstreamError, match=message):
        read_caption(scripted(symbols), SMALL)


pieces = st.text(st.characters(categories=["Cs", "L", "Zs", "Cc"]), max_size=20)


@given(pieces, pieces)
def test_a_text_with_half_a_character_is_refused_by_the_writer_and_in_every_form(start, end):
    text = f"{start}\udcff{end}"
    with pytest.raises(ConfigError, match="valid Unicode text, got half a character"):
        packed(text, SMALL)
    data = text.encode("utf-8", "surrogatepass")
    letters = [part for byte in data for part in divmod(byte + 1, GROUP)]
    for number, form in enumerate(FORMS):
        symbols = [UNKNOWN, *letters, 0, 0] if form.lexicon else [len(data), *data]
        with pytest.raises(BitstreamError, match=r"^the caption in the file is not valid Unic"):
            read_caption(scripted([number, *symbols]), SMALL)


def test_shipped_tables_meet_their_target_on_held_out_captions(shared, shipped):
    captions = read_captions(shared / "data" / "captions.txt.gz")[-HELD_OUT:][::10]
    bits = [caption_bits(caption, shipped.language) for caption in captions]
    plain = [8 * len(zlib.compress(caption.encode(), 9, -15)) for caption in captions]
    assert np.mean(bits) < 80
    assert np.mean(plain) > 5 * np.mean(bits)


def test_the_describer_and_an_edited_word_cost_little_in_the_shipped_tables(shipped):
    language = shipped.language
    told = "pale blue sky, dark green beside tan middle, brown ground, fine texture"
    edited = "vivid red sky, dark green middle, brown ground, fine texture"
    strange = "vivid red castle sky, dark green middle, brown ground, fine texture"
    assert max(caption_bits(text, language) for text in (told, edited)) < 60
    assert caption_bits(strange, language) < 110
    assert unpacked(packed(strange, language), language) == strange


def test_the_bytes_of_a_caption_are_frozen(shipped):
    # The tables are part of the model that files name: other bytes mean another model.
    assert packed("a red barn", shipped.language).hex() == "a95bc150"
    assert sum(form.frequency for form in FORMS) == TOTAL
