import csv

import numpy as np
import pytest
import torch

from percov2_core.entropy.masked_model import UNKNOWN_WORD, MaskedModelConfig
from percov2_core.errors import ConfigError, WeightsError
from percov2_core.training.masked import _Loop, load_model, train_masked
from percov2_core.training.token_batches import (
    BatchMaker,
    MaskedTraining,
    collect_vocabulary,
    load_grids,
    random_stages,
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


def loop(path):
    return _Loop(CONFIG, BatchMaker([load_grids(path)], CONFIG, SETTINGS), SETTINGS, "cpu")


def test_the_bits_fall_far_below_uniform(grids):
    trainer = loop(grids)
    for _ in range(40):
        trainer.take_step()
    assert trainer.validate()[0] < 2.0


def test_training_goes_on_after_a_break_as_if_there_had_been_none(grids, tmp_path):
    torch.manual_seed(3)
    first = loop(grids)
    for _ in range(3):
        first.take_step()
    first.save(tmp_path / "last.pt")
    wanted = [first.take_step() for _ in range(3)]
    torch.manual_seed(4)
    second = loop(grids)
    second.load(tmp_path / "last.pt")
    assert [second.take_step() for _ in range(3)] == wanted


def test_a_run_leaves_losses_a_checkpoint_and_a_model_that_loads(grids, tmp_path):
    settings = MaskedTraining(minutes=0.004, batch_tokens=64, held_out=2)
    model = train_masked([grids], tmp_path / "run", config=CONFIG, settings=settings)
    loaded = load_model(tmp_path / "run" / "masked.safetensors")
    with (tmp_path / "run" / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["step"]) > 0 and 0 < float(rows[-1]["held_out_0"]) < 9
    assert loaded.config == model.config
    assert torch.equal(loaded.out.weight, model.out.weight)
    assert (tmp_path / "run" / "last.pt").exists()


def test_a_batch_is_the_same_for_the_same_step_only(grids):
    made = BatchMaker([load_grids(grids)], CONFIG, SETTINGS)
    again = BatchMaker([load_grids(grids)], CONFIG, SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(made.draw(5), again.draw(5), strict=True))
    assert len({made.draw(step).tokens.shape for step in range(9)}) > 1


def test_held_out_grids_are_never_drawn(tmp_path):
    tokens = np.zeros((5, 4, 4), dtype=np.uint8)
    tokens[-2:] = 7
    np.savez(tmp_path / "g.npz", tokens=tokens, captions=np.array(["x"] * 5))
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


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"masked model none.safetensors is missing"):
        load_model(tmp_path / "none.safetensors")
