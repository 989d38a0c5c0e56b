"""Captions through the n-gram model and the range coder: exact for every text."""

import contextlib
import hashlib
import random
import zlib
from itertools import chain, repeat

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from percov2_core.caption import ngram, packing, things
from percov2_core.caption.language import (
    PUNCTUATION,
    UNKNOWN,
    Lexicon,
    Vocabulary,
    Word,
    join,
    load_language,
    save_language,
    split,
)
from percov2_core.caption.ngram import GROUP
from percov2_core.caption.packing import FORMS, caption_bits, read_caption, write_caption
from percov2_core.entropy.coder import TOTAL, SymbolReader, SymbolWriter
from percov2_core.errors import BitstreamError, ConfigError, WeightsError
from percov2_core.training.caption_language import (
    HELD_OUT,
    build_language,
    fit_ngrams,
    read_captions,
)

sequences = st.lists(st.lists(st.integers(1, 6), max_size=8), min_size=1, max_size=12)
weights = st.lists(st.integers(0, 2**ngram.SCALE), min_size=2, max_size=400)


@given(st.text())
def test_words_join_to_the_text_they_were_split_from(text):
    assert join(split(text)) == text
    mark = Word(",", attached=True)  # closing punctuation stands alone
    assert split("a dog, 3.5 m") == [Word("a"), Word("dog"), mark, Word("3.5"), Word("m")]


@given(weights.map(np.array))
def test_every_row_is_positive_and_sums_to_the_total(values):
    freqs = ngram.frequencies(values)
    assert freqs.min() >= 1 and freqs.sum(dtype=np.int64) == ngram.TOTAL
    table = ngram.MASSES  # masses halve every eight levels exactly
    assert len(table) == ngram.LEVELS and np.array_equal(table[8:], table[:-8] >> 1)
    assert table[0] == round(2 ** (ngram.SCALE - 1 / 16))


@given(sequences, st.integers(1, 4))
def test_weights_of_a_fitted_model_stay_close_to_one(texts, order):
    model = fit_ngrams(texts, 7, order=order, least_gain=0.0)
    for text in texts:
        total = int(model.weights([ngram.BOUNDARY, *text]).sum()) / 2**ngram.SCALE
        assert 0.9 < total < 1.3


def test_a_longer_context_decides_over_a_shorter_one_and_pruning_leaves_what_pays():
    texts = [[1, 2, 3], [4, 2, 5]] * 50
    model, *pruned = (fit_ngrams(texts, 7, order=3, least_gain=g) for g in (0.0, 10, 1e6))
    assert model.weights([ngram.BOUNDARY, 1, 2]).argmax() == 3
    assert model.weights([ngram.BOUNDARY, 4, 2]).argmax() == 5
    kept = [len(each.orders[1].symbols) for each in (model, *pruned)]
    assert kept[0] >= kept[1] > kept[2] == 0


def test_the_fit_matches_kneser_and_ney_by_hand():
    # "1 2" four times and "3 2" once: 2 follows two symbols, 1 and 3 only the start.
    texts = [[1, 2]] * 4 + [[3, 2]]
    one, two = (fit_ngrams(texts, 8, order=order, least_gain=0.0).base for order in (1, 2))
    assert one[2] == one[ngram.BOUNDARY] < one[1] < one[3] < one[7]
    assert two[1] == two[3]


def test_saved_tables_are_the_same_after_loading_and_a_missing_table_or_file_is_named(tmp_path):
    one, two, text = (tmp_path / f"{name}.npz" for name in ("one", "two", "text"))
    save_language(SMALL, one)
    save_language(load_language(one), two)
    assert one.read_bytes() == two.read_bytes()
    arrays = dict(np.load(one))
    del arrays["letters.base"]
    np.savez(two, **arrays)
    text.write_text("hello")
    for path, said in ((two, ": .*letters.base"), (text, ""), (tmp_path / "none.npz", "")):
        with pytest.raises(WeightsError, match=f"caption model {path.name} cannot be read{said}"):
            load_language(path)


def test_tables_that_do_not_fit_together_are_refused():
    empty = ngram.NGram(np.zeros(5, np.uint8), [])
    with pytest.raises(WeightsError, match="tables for 5 symbols, the vocabulary has 8"):
        Lexicon(Vocabulary(tuple(PUNCTUATION)), empty)
    with pytest.raises(WeightsError, match=r"the marks \['\.'\] are not among its words"):
        Vocabulary(tuple(PUNCTUATION.replace(".", "")))


@pytest.mark.parametrize(
    ("ends", "symbols", "levels", "message"),
    [
        ([1], [1], [ngram.LEVELS], f"levels must be below {ngram.LEVELS}, got {ngram.LEVELS}"),
        ([1], [9], [0], "symbols must be below 4, got 9"),
        ([2], [1], [0], "1 entries end at 2"),
    ],
)
def test_a_table_out_of_range_is_refused(ends, symbols, levels, message):
    order = ngram.Successors(*map(np.array, ([0], ends, symbols)), np.array(levels, np.uint8))
    with pytest.raises(WeightsError, match=message):
        ngram.NGram(np.zeros(4, np.uint8), [order])


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


def unpacked(data, language, *, named=False):
    reader = SymbolReader(data)
    text = read_caption(reader.read, language, named=named)
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
@example("dog: a")
@example("lighthouse and sailing boat: ")
@example("dog and dog: a")
@example("dog and castle and dog: a")
@example("a: b")
def test_every_text_survives_exactly(text):
    named = bool(things.part(text).things)
    assert unpacked(packed(text, SMALL), SMALL, named=named) == text


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


@given(st.binary(max_size=60), st.booleans())
def test_no_data_raises_anything_but_bitstream_error(data, named):
    with contextlib.suppress(BitstreamError):
        text = unpacked(data, SMALL, named=named)
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


def test_a_thing_in_front_costs_two_bytes_at_most_and_no_other_caption_pays_for_it(shipped):
    told = "pale blue sky, dark green beside tan middle, brown ground, fine texture"
    base = caption_bits(told, shipped.language)
    for front, most in (("dog", 5), ("macaw", 11), ("lighthouse and sailing boat", 22)):
        assert 0 < caption_bits(f"{front}: {told}", shipped.language) - base < most
    assert caption_bits(f"dragon: {told}", shipped.language) > base + 32  # spelled
    data = packed(f"aeroplane: {told}", shipped.language)
    assert unpacked(data, shipped.language, named=True) == f"aeroplane: {told}"


def test_the_same_thing_twice_and_too_long_a_caption_behind_one_are_refused():
    with pytest.raises(BitstreamError, match="caption names the thing 'fish' twice"):
        read_caption(scripted((1, 0, 0, 0, 0)), SMALL, named=True)
    with pytest.raises(BitstreamError, match="caption is 1006 bytes, at most 1000 are allowed"):
        read_caption(scripted((0, 0, 0, 5, 1000, 65)), SMALL, named=True)


def test_the_words_for_things_are_frozen():
    # Files name a thing by its place among them: another word needs a new version of the format.
    assert len(things.classes()) == 1000 and not any(":" in word for word in things.counts())
    listed = "\n".join(f"{word} {count}" for word, count in things.counts().items())
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == "08058573dec948f3"
    named = {7: "cockerel", 88: "macaw", 404: "aeroplane", 437: "lighthouse", 871: "sailing boat"}
    assert {i: things.classes()[i] for i in named} == named


def test_the_bytes_of_a_caption_are_frozen(shipped):
    # The tables are part of the model that files name: other bytes mean another model.
    assert packed("a red barn", shipped.language).hex() == "a95bc150"
    assert sum(form.frequency for form in FORMS) == TOTAL
