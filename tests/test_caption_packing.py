"""Captions through the range coder: exact for every text, as short as the model says."""

import random
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from percov2_core.caption import packing
from percov2_core.caption.language import Word, load_language
from percov2_core.caption.ngram import GROUP
from percov2_core.caption.packing import FORMS, caption_bits, read_caption, write_caption
from percov2_core.entropy.coder import TOTAL, SymbolReader, SymbolWriter
from percov2_core.errors import BitstreamError, ConfigError
from percov2_core.training.caption_language import build_language

SHIPPED = (
    Path(__file__).parents[1] / "percov2_core" / "models" / "embedded" / "caption_language.npz"
)
CAPTIONS = [
    "A dog runs on the beach.",
    "A dog, two cats and a man stand on the beach.",
    "The man runs after the dog on the grass.",
]
SENTENCES = [
    "pale blue sky, green middle, dark green ground, fine texture",
    "grey top, dark grey beside red middle, brown ground, soft texture, uniform",
]


@cache
def small_language():
    return build_language(CAPTIONS * 4, SENTENCES * 4)


def shipped_language():
    if not SHIPPED.exists():
        pytest.skip(f"needs {SHIPPED.name}")
    return load_language(SHIPPED)


def packed(text, language):
    writer = SymbolWriter()
    write_caption(writer.write, text, language)
    return writer.finish()


def unpacked(data, language):
    reader = SymbolReader(data)
    text = read_caption(reader.read, language)
    reader.close()
    return text


@given(st.text(max_size=80))
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
    assert unpacked(packed(text, small_language()), small_language()) == text


words = st.sampled_from(["a", "dog", "Dog", "blue", "sky", "beside", "zebra", ",", "x.", "A", ""])


@given(st.lists(words).map(" ".join))
def test_known_words_in_any_order_and_case_survive(text):
    assert unpacked(packed(text, small_language()), small_language()) == text


@pytest.mark.parametrize("text", [*CAPTIONS, *SENTENCES, "Zürich, bei Nacht?", "日本語"])
def test_the_coder_spends_what_caption_bits_says(text):
    ideal = caption_bits(text, small_language())
    assert abs(len(packed(text, small_language())) - ideal / 8) <= 1
    noise = "".join(random.Random(3).choices("äöüßΩж漢字", k=200))  # little worse than bare bytes
    assert caption_bits(noise, small_language()) <= 8 * len(noise.encode()) + 20


def test_the_longest_caption_survives_and_a_longer_one_is_refused():
    text = "é" * (packing.MAX_BYTES // 2)
    assert unpacked(packed(text, small_language()), small_language()) == text
    with pytest.raises(ConfigError, match="at most 1000 UTF-8 bytes, got 1001"):
        packed(text + "!", small_language())


@given(st.binary(max_size=60))
def test_no_data_raises_anything_but_bitstream_error(data):
    try:
        text = unpacked(data, small_language())
    except BitstreamError:
        return
    assert packing.check_caption(text) == text  # what can be read could have been written


def forced(text, form, language):
    """A file of a text that no writer accepts: the writer as it is, but for its checks."""

    class Lenient(str):
        def encode(self, *_):
            return str.encode(self, "utf-8", "surrogatepass")

    writer = SymbolWriter()
    words = [Word(Lenient(text))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "split", lambda _: words)
        patch.setattr(
            packing, "_decoded", lambda data: Lenient(data.decode("utf-8", "surrogatepass"))
        )
        for symbol, freqs in packing._choices(Lenient(text), form, language):
            writer.write(np.array([symbol]), freqs)
    return writer.finish()


@given(st.text(st.characters(categories=["Cs", "L", "Zs", "Cc"]), max_size=20))
@example("\udcff\udcfe bad")
def test_both_sides_accept_the_same_texts(text):
    try:
        data = packed(text, small_language())
    except ConfigError:
        for form in FORMS:
            with pytest.raises(BitstreamError, match=r"^the caption in the file is not valid"):
                unpacked(forced(text, form, small_language()), small_language())
    else:
        assert unpacked(data, small_language()) == text


class Scripted:
    """A reader that says the given symbols, then the last of them for ever."""

    def __init__(self, *symbols):
        self.symbols = list(symbols)

    def read(self, freqs):
        symbol = self.symbols.pop(0) if len(self.symbols) > 1 else self.symbols[0]
        return np.array([min(symbol, freqs.shape[1] - 1)])


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
    assert len(small_language().free.vocabulary) <= GROUP
    with pytest.raises(BitstreamError, match=message):
        read_caption(Scripted(*symbols).read, small_language())


def test_shipped_tables_meet_their_target_on_held_out_captions(shared):
    from percov2_core.training.caption_language import HELD_OUT, read_captions

    language = shipped_language()
    captions = read_captions(shared / "data" / "captions.txt.gz")[-HELD_OUT:][::10]
    bits = [caption_bits(caption, language) for caption in captions]
    plain = [8 * len(zlib.compress(caption.encode(), 9, -15)) for caption in captions]
    assert np.mean(bits) < 80
    assert np.mean(plain) > 5 * np.mean(bits)


def test_the_describer_and_an_edited_word_cost_little_in_the_shipped_tables():
    language = shipped_language()
    told = "pale blue sky, dark green beside tan middle, brown ground, fine texture"
    edited = "vivid red sky, dark green middle, brown ground, fine texture"
    strange = "vivid red castle sky, dark green middle, brown ground, fine texture"
    assert max(caption_bits(text, language) for text in (told, edited)) < 60
    assert caption_bits(strange, language) < 110
    assert unpacked(packed(strange, language), language) == strange


def test_the_bytes_of_a_caption_are_frozen():
    # The tables are part of the model that files name: other bytes mean another model.
    assert packed("a red barn", shipped_language()).hex() == "a95bc150"
    assert sum(form.frequency for form in FORMS) == TOTAL
