import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from percov2_core.config import LEVELS, SCHEDULES
from percov2_core.entropy import exact, session
from percov2_core.entropy.exact import ExactModel
from percov2_core.entropy.exporter import export, restore
from percov2_core.entropy.masked_config import MaskedModelConfig, word_ids
from percov2_core.entropy.masked_model import MaskedImageModel, pad_words
from percov2_core.entropy.schedule import order, stage_sizes, stages
from percov2_core.entropy.session import Session, read_parents
from percov2_core.errors import WeightsError
from percov2_core.evaluation.protocol import centre_square
from tests.tiny import run

CONFIG = MaskedModelConfig(
    codebook_size=16, width=24, heads=2, content_layers=2, query_layers=2, hidden=32,
    code_width=8, vocabulary=("pale", "blue", "dark", "green"), max_words=8, ratio=4,
)  # fmt: skip
ALONE = replace(CONFIG, ratio=0)
CAPTIONS = ("pale blue", "dark green")


def smooth_grids(count, seed, grid=(8, 8)):
    """Noisy ramps, foretold by neighbours, parents and the caption, at whose colour they start."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 2, count)
    slope = rng.uniform(-0.8, 0.8, (count, 2, 1, 1))
    y, x = np.indices(grid)
    level = 4 + 7 * which[:, None, None] + slope[:, 0] * y + slope[:, 1] * x
    noisy = np.clip(np.round(level + rng.normal(0, 0.5, level.shape)), 0, 15).astype(np.int64)
    parents = torch.from_numpy(15 - noisy[:, 1::4, 2::4])
    return torch.from_numpy(noisy), [word_ids(CAPTIONS[i], CONFIG) for i in which], parents


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = MaskedImageModel(CONFIG)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(48):
        tokens, words, parents = smooth_grids(8, step)
        stage = torch.from_numpy(stages(SCHEDULES[1 + step % 4], (8, 8)).copy())
        known = parents if step % 3 else None
        loss = model.bits(tokens, pad_words(words), stage, known).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def twin(trained):
    return export(trained)


def walk(twin, tokens, words, parents=None, schedule="qlds"):
    """All frequencies of one grid, row by row of the grid."""
    grid, flat = tuple(tokens.shape), tokens.numpy().ravel()
    session = opened(twin, words, parents, grid)
    found = np.zeros((len(flat), twin.config.codebook_size), dtype=np.int64)
    sequence = order(schedule, grid)
    for at in np.split(sequence, np.cumsum(stage_sizes(schedule, grid))[:-1]):
        found[at] = session.frequencies(at)
        session.reveal(at, flat[at])
    assert found.min() >= 1 and set(found.sum(1).tolist()) == {2**16}
    return found


def opened(twin, words, parents=None, grid=(8, 8)):
    above = None if parents is None else parents.numpy()
    return Session(twin, grid, words, read_parents(twin, above, grid))


def float_bits(model, schedule, known):
    tokens, words, parents = smooth_grids(8, 1001)
    stage = torch.from_numpy(stages(schedule, (8, 8)).copy())
    with torch.no_grad():
        bits = model.bits(tokens, pad_words(words), stage, parents if known else None)
    return float(bits.sum())


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
def test_the_twin_takes_at_most_one_percent_more_bits_than_the_float_model(trained, twin, schedule):
    wanted = []
    for known in (True, False):
        spent = 0.0
        for grid, ids, above in zip(*smooth_grids(8, 1001), strict=True):
            freqs = walk(twin, grid, ids, above if known else None, schedule)
            spent += float(np.log2(2**16 / freqs[np.arange(64), grid.numpy().ravel()]).sum())
        wanted.append(float_bits(trained, schedule, known))
        assert 0.99 < spent / wanted[-1] < 1.01
        # What is restored from the twin is as good as the model that it came from.
        assert 0.99 < float_bits(restore(twin, CONFIG), schedule, known) / wanted[-1] < 1.01
    # Training has taught it something (a token is 4 bits), most of all what parents say.
    assert wanted[1] < 3.5 * 512 and wanted[0] < 0.98 * wanted[1]


def test_restoring_undoes_exporting_and_a_new_level_above_says_nothing_at_first(twin):
    again = export(restore(twin, CONFIG))
    assert again.tables.keys() == twin.tables.keys()
    for name, table in twin.tables.items():
        assert again.tables[name].dtype == table.dtype
        if table.dtype.kind == "f":
            assert np.allclose(again.tables[name], table, rtol=1e-5), name
        else:
            assert np.array_equal(again.tables[name], table), name
    alone = ExactModel(ALONE, integer_tables())
    tokens, words, parents = smooth_grids(2, 1002)
    stage = torch.from_numpy(stages("qlds", (8, 8)).copy())
    with torch.no_grad():
        plain = restore(alone, ALONE)(tokens, pad_words(words), stage)
        assert torch.equal(restore(alone, CONFIG)(tokens, pad_words(words), stage, parents), plain)


class Coarse(np.ndarray):
    """Multiplied as in TF32, with 11 of the 24 bits."""

    def __matmul__(self, other):
        cut = (np.array(x).view(np.uint32) & np.uint32(0xFFFFE000) for x in (self, other))
        return np.matmul(*(x.view(np.float32) for x in cut))


def test_float64_products_and_blocks_change_nothing(twin, monkeypatch):
    full, grids = np.full, [list(one) for one in zip(*smooth_grids(4, 1003), strict=True)]
    found = [walk(twin, *one) for one in grids]
    for scores in (1, 200, 2000):
        monkeypatch.setattr(session, "_SCORES_AT_ONCE", scores)
        assert np.array_equal(found, [walk(twin, *one) for one in grids])
    assert twin.carrier == np.float32
    with monkeypatch.context() as patch:
        patch.setattr(exact.np, "full", lambda *a, **named: full(*a, **named).view(Coarse))
        wide = ExactModel(twin.config, twin.tables)
    assert wide.carrier == np.float64
    assert np.array_equal(found, [walk(wide, *one) for one in grids])


def test_the_order_inside_a_stage_changes_nothing(twin):
    # Sums over the memory run in another order, and matrices hold their rows in another place.
    tokens, words, parents = smooth_grids(1, 1005)
    flat, at = tokens[0].numpy().ravel(), order("var", (8, 8))
    found = []
    for first in (at[:16], at[:16][::-1]):
        session = opened(twin, words[0], parents[0])
        session.reveal(first, flat[first])
        found.append(session.frequencies(at[16:]))
    assert np.array_equal(*found)


@pytest.mark.parametrize("factor", [1, 10**6])
def test_a_window_looks_up_what_its_embeddings_side_by_side_would_be_multiplied_to(factor):
    # The larger weights need sums in float64, the smaller ones fit into float32.
    tables = integer_tables()
    tables["mix_codes.weight"] = tables["mix_codes.weight"].astype(np.float64) * factor
    twin = ExactModel(ALONE, tables)
    ids = np.arange(25) % np.arange(2, 9)[:, None]
    side_by_side = tables["codes"].astype(np.float64)[ids].reshape(7, -1)
    total = (side_by_side @ tables["mix_codes.weight"]).astype(np.float32)
    wanted = np.floor(total * tables["mix_codes.scale"] + tables["mix_codes.offset"])
    assert twin.mix_codes.rows.dtype == (np.float32 if factor == 1 else np.float64)
    found = twin.mix_codes(ids)
    assert found.dtype == wanted.dtype == np.float32 and np.array_equal(found, wanted)


def test_the_twin_survives_saving_always_in_the_same_bytes(twin, tmp_path):
    # The library shuffles its header: one save in two differs without the sorting.
    path, files = tmp_path / "twin.safetensors", set()
    for saved in [twin] * 10:
        saved.save(path)
        files.add(path.read_bytes())
    loaded = ExactModel.load(path)
    loaded.save(path)
    assert files == {path.read_bytes()} and loaded.config == twin.config
    one = [part[0] for part in smooth_grids(1, 1006)]
    assert np.array_equal(walk(loaded, *one), walk(twin, *one))


def test_frequencies_of_fixed_tables_are_frozen():
    # Drawn by an integer generator, so that no float decides them: these numbers must come out
    # on every machine.
    tokens = torch.arange(64).reshape(8, 8) % 16
    under = walk(ExactModel(CONFIG, integer_tables(4)), tokens, [2, 3, 1], tokens[:2, :2])
    assert under[[0, 27, 63], :4].tolist() == [
        [1507, 1507, 6025, 6025],
        [719, 2873, 11492, 1437],
        [263, 263, 2097, 1049],
    ]
    assert int((under * np.arange(1, 17)).sum()) == 37163344
    freqs = walk(ExactModel(ALONE, integer_tables()), tokens, [2, 3, 1])
    assert freqs[[0, 27, 63], :4].tolist() == [
        [7092, 7084, 3542, 7084],
        [1765, 14128, 7060, 883],
        [1145, 287, 4578, 1145],
    ]
    assert int((freqs * np.arange(1, 17)).sum()) == 33077417


def integer_tables(ratio=0):
    rng, tables = np.random.Generator(np.random.PCG64(5)), {}
    width, hidden, code = CONFIG.width, CONFIG.hidden, CONFIG.code_width

    def draw(name, *shape, most=127):
        tables[name] = rng.integers(-most, most + 1, shape).astype(np.int32)

    def product(name, rows, columns, scale):
        draw(f"{name}.weight", rows, columns)
        tables[f"{name}.scale"] = np.full(columns, scale, dtype=np.float32)
        tables[f"{name}.offset"] = np.full(columns, 0.5, dtype=np.float32)

    tables["exponential"] = np.array([2**30 >> (i // 64) for i in range(1280)] + [0])
    draw("codes", 18, code)
    draw("words", 6, code)
    for name, count in (("rows", 32), ("columns", 32), ("word_places", 8)):
        draw(name, count, width, most=500)
    product("mix_codes", 25 * code, width, 2.0**-6)
    product("mix_words", 5 * code, width, 2.0**-6)
    product("out", width, 16, 2.0**-11)
    for tower in ("content", "queries"):
        draw(f"{tower}.bias", 2, 63 * 63, most=2**15)
        draw(f"{tower}.word_bias", 2, most=2**15)
        for i in range(2):
            tables[f"{tower}.{i}.bits"] = np.array([8, 7])
            for part in ("query", "key", "value", "out"):
                product(f"{tower}.{i}.{part}", width, width, 2.0**-10)
            product(f"{tower}.{i}.up", width, hidden, 2.0**-10)
            product(f"{tower}.{i}.down", hidden, width, 2.0**-8)
    if ratio:
        draw("parents", 18, code)
        draw("below", ratio**2, width, most=500)
        product("mix_parents", 25 * code, width, 2.0**-6)
    return tables


def test_sums_that_cannot_be_proven_exact_in_float64_and_missing_tables_are_refused():
    tables = integer_tables()
    tables["queries.0.down.weight"] *= 100
    assert ExactModel(ALONE, tables).queries[0].down.weight.dtype == np.float64
    tables["mix_codes.weight"] = np.full(tables["mix_codes.weight"].shape, 2.0**44)
    with pytest.raises(WeightsError, match="sums of mix_codes must stay below 9007199254740992"):
        ExactModel(ALONE, tables)
    tables = integer_tables()
    tables["exponential"] = tables["exponential"] * 2**8
    with pytest.raises(WeightsError, match="sums of frequencies must stay below 9007199254740992"):
        ExactModel(ALONE, tables)
    tables = integer_tables()
    del tables["content.1.up.scale"]
    with pytest.raises(WeightsError, match=r"table 'content.1.up.scale' is missing"):
        ExactModel(ALONE, tables)


def test_files_that_are_absent_broken_or_foreign_are_named(tmp_path, twin):
    with pytest.raises(WeightsError, match=r"entropy model none.safetensors is missing"):
        ExactModel.load(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x01" * 20)
    with pytest.raises(WeightsError, match=r"entropy model broken.safetensors cannot be read"):
        ExactModel.load(tmp_path / "broken.safetensors")
    save_file(twin.tables, tmp_path / "old.safetensors", metadata={"format": "percov2-exact-0"})
    with pytest.raises(WeightsError, match="format 'percov2-exact-0', this build reads"):
        ExactModel.load(tmp_path / "old.safetensors")


# What varies comes after the tokens, so that it does not matter how they were found. Two pictures
# of 256 px on each run; with `pytest -m slow` all 24 of 512 px.
@pytest.fixture(scope="module", params=[(256, 12), pytest.param((512, 1), marks=pytest.mark.slow)])
def tokens(request, unsearched, kodak, tmp_path_factory):
    side, every = request.param
    found = [unsearched.look(centre_square(Image.open(path), side)) for path in kodak[::every]]
    path = tmp_path_factory.mktemp("exact") / "tokens.npz"
    grids = {level: np.stack([getattr(one, level) for one in found]) for level in LEVELS}
    np.savez(path, size=(side, side), captions=[one.caption for one in found], **grids)
    return path


def digests(tokens, *ways, **environment):
    """Those of all pictures, one list for each way."""
    words = (sys.executable, "-m", "tests.exact_worker", str(tokens), *ways)
    result = run(*words, **environment)
    assert result.returncode == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def native(tokens):
    """One picture after the other, then eight at a time."""
    return digests(tokens, "1", "8", OPENBLAS_NUM_THREADS="1")


@pytest.mark.timeout(1200)  # 24 pictures, three times; other work beside it
def test_threads_and_pictures_at_a_time_change_no_digest_and_each_picture_has_its_own(
    tokens, native
):
    assert native == 2 * digests(tokens, "1", OPENBLAS_NUM_THREADS="2")
    assert len(native[0]) == len(set(native[0])) >= 4


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("cores", "threads"), [("Nehalem", "4"), ("Sandybridge", "1")])
def test_instruction_sets_change_nothing(tokens, native, cores, threads):
    # SSE4.2 and AVX of the BLAS, where NumPy's own loops do without all that a build may not have.
    more = " ".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", []))
    limits = {"OPENBLAS_CORETYPE": cores, "NPY_DISABLE_CPU_FEATURES": more}
    assert digests(tokens, "1", OPENBLAS_NUM_THREADS=threads, **limits) == native[:1]
