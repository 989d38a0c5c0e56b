"""The describer: one regular sentence, the same for the same pixels."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from percov2_core.caption.describer import TERMS, VOCABULARY, describe, opponent, term_costs, words


def landscape():
    picture = np.zeros((240, 360, 3), np.uint8)
    picture[:80] = (150, 190, 225)
    picture[80:160, :180] = (55, 80, 35)
    picture[80:160, 180:] = (160, 125, 80)
    picture[160:] = (100, 72, 46)
    picture[165:235, 10:110] = (205, 45, 45)
    return Image.fromarray(picture)


def test_sentences_are_frozen():
    # Models are trained on these words: another sentence here means training them again.
    assert describe(landscape()) == (
        "pale blue sky, dark green beside tan middle, "
        "red beside dark brown beside dark brown ground, smooth texture, uniform"
    )
    dice = np.random.default_rng(11)
    sentences = []
    for spread in range(2, 82, 2):
        blocks = dice.integers(0, 256, 3) + dice.integers(-spread, spread, (5, 4, 3))
        picture = Image.fromarray(np.clip(blocks, 0, 255).astype(np.uint8))
        sentences.append(describe(picture.resize((200, 160), Image.Resampling.BOX)))
    assert hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:16] == "b2bd32ac66af4d9f"


@pytest.mark.parametrize("size", [(1, 1), (12, 12), (64, 64), (512, 37), (9, 2000)])
@given(st.integers(0, 2**32 - 1))
def test_any_picture_is_described_in_at_most_45_words_of_the_vocabulary(size, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    told = words(describe(Image.fromarray(noise)))
    assert set(told) <= set(VOCABULARY) and len(told) <= 45


@pytest.mark.parametrize("name", TERMS)
def test_each_term_names_its_own_colour(name):
    total = opponent(np.array(TERMS[name], dtype=np.int64)) * 5
    assert list(TERMS)[term_costs(total, 5).argmin()] == name


def test_a_small_vivid_object_is_told_with_its_place_and_commas_are_words():
    picture = np.full((240, 240, 3), 110, np.uint8)
    picture[90:150, 90:150] = (205, 45, 45)
    assert "vivid red centre" in describe(Image.fromarray(picture))
    assert words("Pale blue sky,  brown") == ["pale", "blue", "sky", ",", "brown"]
