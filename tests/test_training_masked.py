import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from percov2_core.entropy.masked_model import UNKNOWN_WORD, MaskedModelConfig
from percov2_core.errors import ConfigError, WeightsError
from percov2_core.training.masked import (
    BatchMaker,
    MaskedTraining,
    collect_vocabulary,
    load_grids,
    load_model,
    random_stages,
    train_masked,
)

CONFIG = MaskedModelConfig(
    codebook_size=8, width=16, heads=2, content_layers=1, query_layers=1, hidden=16,
    code_width=4, max_words=4, vocabulary=("red", "blue"), dropout=0.1,
)  # fmt: skip
SETTINGS = MaskedTraining(
    minutes=1, batch_tokens=128, min_crop=3, held_out=2, warmup_steps=5, learning_rate=1e-2
)


@pytest.fixture
def grids(tmp_path):
    rng = np.random.default_rng(0)
    rows = np.arange(6)[None, :, None] // 2 + rng.integers(0, 3, (20, 1, 1))
    path = tmp_path / "grids.npz"
    tokens = np.broadcast_to(rows, (20, 6, 6)).astype(np.uint8)
    np.savez(path, tokens=tokens, captions=np.array(["red sky", "blue sea"] * 10))
    return path


def train(path, out, **values):
    settings = replace(SETTINGS, **values)
    return train_masked([path], out, config=CONFIG, settings=settings)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_bits_fall_far_below_uniform_and_the_model_loads(grids, tmp_path):
    model = train(grids, tmp_path / "run", steps=40)
    assert float(rows(tmp_path / "run" / "scores.csv")[-1]["held_out_0"]) < 2.0
    loaded = load_model(tmp_path / "run" / "masked.safetensors")
    assert loaded.config == model.config
    assert torch.equal(loaded.out.weight, model.out.weight)


def test_training_goes_on_after_a_break_as_if_there_had_been_none(grids, tmp_path, monkeypatch):
    first = train(grids, tmp_path / "whole", steps=6, validate_minutes=0.0)
    drawn = {"config": CONFIG, "settings": replace(SETTINGS, steps=6, validate_minutes=0.0)}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BatchMaker, "draw", drawing_within(0, 3, BatchMaker.draw))
        train_masked([grids], tmp_path / "broken", **drawn)
    monkeypatch.setattr(BatchMaker, "draw", drawing_within(3, 20, BatchMaker.draw))
    second = train_masked([grids], tmp_path / "broken", resume=True, **drawn)
    a, b = (rows(tmp_path / out / "losses.csv")[-1]["loss"] for out in ("whole", "broken"))
    assert a == b
    assert len(list((tmp_path / "broken").glob("checkpoint-*"))) == 1
    for x, y in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(x, y)


def drawing_within(first, end, draw):
    def drawn(self, step):
        if not first <= step < end:
            raise KeyboardInterrupt
        return draw(self, step)

    return drawn


def test_a_run_starts_where_an_earlier_one_ended(grids, tmp_path):
    train(grids, tmp_path / "first", steps=30)
    settings = replace(SETTINGS, steps=1, learning_rate=0.0)
    empty = replace(CONFIG, vocabulary=())
    then = train_masked(
        [grids], tmp_path / "then", config=empty, settings=settings, init=tmp_path / "first"
    )
    first = load_model(tmp_path / "first" / "masked.safetensors")
    assert then.config.vocabulary == CONFIG.vocabulary
    assert torch.equal(then.out.weight, first.out.weight)
    other = replace(CONFIG, hidden=32)
    with pytest.raises(ConfigError, match=r"init: the earlier run has .*hidden=16"):
        train_masked(
            [grids], tmp_path / "x", config=other, settings=settings, init=tmp_path / "first"
        )


def test_held_out_grids_are_never_drawn(tmp_path):
    tokens = np.zeros((9, 4, 4), dtype=np.uint8)
    tokens[-2:] = 7
    np.savez(tmp_path / "g.npz", tokens=tokens, captions=np.array(["x"] * 9))
    made = BatchMaker([load_grids(tmp_path / "g.npz")], CONFIG, SETTINGS)
    assert all(made.draw(step).tokens.max() == 0 for step in range(10))
    assert (made.held_out[0].tokens == 7).all()


def test_some_words_become_unknown_and_some_captions_vanish(grids):
    made = BatchMaker([load_grids(grids)], CONFIG, SETTINGS)
    words = torch.cat([made.draw(step).words.flatten() for step in range(30)])
    assert {0, UNKNOWN_WORD, 2, 3} <= set(words.tolist())


def test_random_stages_have_no_gap_at_the_start_and_fit_the_grid():
    rng = np.random.default_rng(0)
    for _ in range(40):
        found = random_stages((5, 7), rng)
        assert found.shape == (5, 7) and found.min() >= 0 and found.max() <= 16


def test_the_vocabulary_holds_common_words_in_order_of_frequency():
    assert collect_vocabulary(["b a", "a, b a", "c"], least=2) == ("a", "b")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tokens": np.zeros((1, 2, 2))}, "bad.npz has no array 'captions'"),
        (
            {"tokens": np.zeros((1, 40, 2)), "captions": np.array(["a"])},
            r"sides up to 32 and one caption each, got \(1, 40, 2\) and 1 captions",
        ),
    ],
)
def test_a_file_of_another_layout_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        load_grids(tmp_path / "bad.npz")


def test_a_few_grids_are_shared_between_training_and_holding_out(tmp_path):
    for count, drawn in ((4, 3), (8, 6)):
        tokens = np.zeros((count, 4, 4), dtype=np.uint8)
        np.savez(tmp_path / "g.npz", tokens=tokens, captions=np.array(["a"] * count))
        made = BatchMaker([load_grids(tmp_path / "g.npz")], CONFIG, replace(SETTINGS, held_out=32))
        assert len(made.sets[0].tokens) == drawn
        assert len(made.held_out[0].tokens) == count - drawn
    np.savez(tmp_path / "g.npz", tokens=tokens[:3], captions=np.array(["a"] * 3))
    with pytest.raises(ConfigError, match="at least 4 grids, got 3"):
        BatchMaker([load_grids(tmp_path / "g.npz")], CONFIG, SETTINGS)
    with pytest.raises(WeightsError, match=r"masked model none.safetensors is missing"):
        load_model(tmp_path / "none.safetensors")
