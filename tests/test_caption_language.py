"""The n-gram tables: integers, normalised, the same after saving."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from percov2_core.caption import ngram
from percov2_core.caption.language import (
    PUNCTUATION,
    Lexicon,
    Vocabulary,
    Word,
    join,
    load_language,
    save_language,
    split,
)
from percov2_core.errors import WeightsError
from percov2_core.training.caption_language import build_language, fit_ngrams

CAPTIONS = ["A dog runs.", "A dog and a cat run.", "The cat, not the dog, sleeps."] * 5
SENTENCES = ["blue sky, green middle, brown ground, fine texture"] * 5
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
    table = ngram.mass_table()  # masses halve every eight levels exactly
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
    save_language(build_language(CAPTIONS, SENTENCES), one)
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
