"""Every stage runs for a few steps at tiny size and loads strictly; several processes at once."""

import dataclasses
import json
import shutil
import sys
import tarfile
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from percov2_core.config import LEVELS
from percov2_core.contents import Tokens
from percov2_core.entropy.exporter import restore
from percov2_core.errors import ConfigError
from percov2_core.hyper.networks import HyperDecoder, HyperEncoder, VectorQuantizer
from percov2_core.latent import LatentAutoencoder
from percov2_core.training import checkpoint, recipes
from percov2_core.training.cache import Cache
from percov2_core.training.checkpoint import load_average
from percov2_core.training.loop import LoopConfig, StepLoss, _Trainer, run
from percov2_core.training.model import open_vae
from percov2_core.training.photos import find_photos
from percov2_core.training.quantize import TrainingQuantizer
from percov2_core.training.samples import CropPlan
from percov2_core.training.shown import Shown, expected_codes, shown_codes
from percov2_core.training.stage1 import Stage1Loss
from percov2_core.weights import load_codec
from percov2_core.weights.files import ENTROPY_FILE
from percov2_core.weights.find import EMBEDDED_DIR
from percov2_core.weights.networks import load_part
from percov2_core.weights.sizes import Sizes
from tests import tiny
from tests.hub import files_of
from tests.sharded_worker import launch_arguments
from tests.tiny import ROOT, TINY_MASKED, counted, picture, rows, tiny_codec, tiny_folder
from tests.tiny_sd3 import tiny_checkpoint, tiny_sd3_folder
from tests.ui_server import free_port

CPU = torch.device("cpu")
PLAN = {"sides": [64, 128], "weights": [1.0, 1.0], "batch_px": 128 * 128}
AE_RECIPE = {"model": tiny.TINY_VAE, "plan": PLAN}


def job(photos, out, **values):
    return recipes.RunOptions(data=photos, out=out, device="cpu", **values)


@pytest.fixture(scope="module")
def vae(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "ae"
    recipes.STAGES["autoencoder"](job(photos, out, steps=3, recipe=AE_RECIPE))
    return out / "vae"


TINY = {f.name: getattr(tiny.tiny_sizes(), f.name) for f in dataclasses.fields(Sizes)}
RECIPE = {"plan": PLAN}


def test_a_surrogate_is_trained_for_a_model_and_stands_in_for_its_decoder(
    photos, tmp_path, monkeypatch
):
    folder, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_folder(), folder)
    recipe = {"plan": PLAN, "loop": {"lr": 0.01, "warmup_steps": 1}}
    recipes.STAGES["surrogate"](job(photos, run, steps=40, model=str(folder), recipe=recipe))
    first, last = rows(run / "losses.csv")
    assert float(last["error"]) < 0.9 * float(first["error"])
    shutil.copytree(run / "surrogate", folder / "fine" / "surrogate")
    codec, decoded = load_codec(folder), counted(monkeypatch, LatentAutoencoder, "_decode")
    codec.look(picture(), caption="", coarse=False)
    assert len(decoded) == 1


@pytest.fixture(scope="module")
def levels(photos, vae, tmp_path_factory):
    """What `tokens` makes, and in it what `masked-coarse` and `masked-fine` make of that."""
    out = tmp_path_factory.mktemp("levels")
    recipe = {**RECIPE, "model": TINY}
    recipes.STAGES["tokens"](job(photos, out, vae=vae, steps=4, recipe=recipe))
    recipe = {**TINY_MASKED, "plan": {"sides": [64, 128], "counts": [6, 4]}}
    for level in LEVELS:
        how = {"vae": vae, "parts": out / "parts", "steps": 2, "recipe": recipe}
        recipes.STAGES[f"masked-{level}"](job(photos, out / level, **how))
        shutil.copy(out / level / ENTROPY_FILE, out / "parts" / level)
    return out / "parts"


def test_the_painter_learns_while_the_levels_stay_and_all_together_are_a_model(
    photos, vae, levels, tmp_path
):
    before, first, then = files_of(levels), tmp_path / "first", tmp_path / "then"
    how = {"vae": vae, "parts": levels, "recipe": RECIPE, "steps": 2}
    recipes.STAGES["painter"](job(photos, first, **how))
    recipes.STAGES["painter"](job(photos, then, init=first, **how))
    assert files_of(levels) == before
    assert [path.name for path in (then / "parts").iterdir()] == ["painter"]
    average = checkpoint.load_average(then)
    for name in LEVELS:
        for kind, place, inside in (
            (HyperEncoder, "hyper_encoder", f"encoders.{name}"),
            (VectorQuantizer, "quantizer", f"quantizers.{name}.quantizer"),
        ):
            own = load_part(kind, levels / name / place, CPU).state_dict()
            assert all(torch.equal(average[f"{inside}.{k}"], value) for k, value in own.items())
    decoders = [f / "painter" / "hyper_decoder" for f in (levels, first / "parts", then / "parts")]
    found = [load_part(HyperDecoder, f, CPU).state_dict() for f in decoders]
    for a, b in pairwise(found):
        assert any(not torch.equal(a[key], b[key]) for key in a)
    tuned, plain = (open_vae(f).vae for f in (then / "vae", vae))
    assert not torch.equal(next(tuned.decoder.parameters()), next(plain.decoder.parameters()))
    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    for source in (*(levels / name for name in LEVELS), then / "parts" / "painter", then / "vae"):
        shutil.copytree(source, model / source.name, dirs_exist_ok=True)
    codec = load_codec(model, device="cpu")
    assert codec.decode(codec.encode(picture(), "ultra-low")).size == picture().size


def test_encoders_can_learn_along_for_the_codes_that_there_are(photos, vae, levels, tmp_path):
    loss = {"freeze_tokens": False, "fixed_codebook": True, "rate": 0.1}
    recipe = {**RECIPE, "loss": loss, "shown": {"none": 1.0, "some": 0.0, "blind": 0.0}}
    how = {"vae": vae, "parts": levels, "recipe": recipe, "steps": 2}
    recipes.STAGES["painter"](job(photos, tmp_path, **how))
    for name in LEVELS:
        for kind, place, same in (
            (HyperEncoder, "hyper_encoder", False),
            (VectorQuantizer, "quantizer", True),
        ):
            own, now = (
                load_part(kind, folder / name / place, CPU).state_dict()
                for folder in (levels, tmp_path / "parts")
            )
            assert all(torch.equal(now[key], value) for key, value in own.items()) == same


def test_training_shows_what_a_file_says():
    codec, rng = tiny_codec(), np.random.default_rng(0)
    grids = [rng.integers(0, 256, shape) for shape in ((1, 2), (4, 8))]
    tokens = Tokens((128, 64), "blue sky", *grids)
    # One stage: training tells all that is known at once.
    contents = codec.read(codec.write(tokens, count=11, schedule="uniform"))
    modules, unknown = codec.levels["fine"], ~contents.fine.sent
    fine, coarse = (torch.from_numpy(grid)[None] for grid in (tokens.fine, tokens.coarse))
    prior = restore(modules.prior.model, modules.prior.model.config).eval()
    expected, bits = expected_codes(
        prior, modules.quantizer, fine, coarse, unknown, [tokens.caption]
    )
    above = codec.levels["coarse"].quantizer.lookup(coarse)
    shown = shown_codes(modules.quantizer.lookup(fine), unknown, above, expected=expected)
    for ours, theirs in zip(shown[:3], codec._given(contents, 1.0)[:3], strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)
    assert 0.01 < expected.norm(dim=1).max() < 1
    torch.testing.assert_close((-bits).exp2().sum(-1), torch.ones(bits.shape[:-1]))


def test_steps_see_every_part_of_a_file():
    rng, shown = np.random.default_rng(0), Shown()
    drawn = [shown.draw((8, 12), rng) for _ in range(200)]
    shares = np.array([unknown.mean() for unknown, _ in drawn])
    assert (shares == 1).mean() == pytest.approx(shown.none, abs=0.1)
    assert ((shares > 0) & (shares < 1)).mean() == pytest.approx(shown.some, abs=0.1)
    assert len(set(shares)) > 20
    assert {coarse for unknown, coarse in drawn if not unknown.any()} == {True, False}
    assert all(coarse for unknown, coarse in drawn if unknown.any())


def test_the_autoencoder_stage_saves_what_loads_and_resumes_from_a_checkpoint_only(
    photos, vae, tmp_path
):
    assert open_vae(vae).encode(torch.zeros(1, 3, 64, 64)).shape == (1, 16, 8, 8)
    with pytest.raises(ConfigError, match="resume: no checkpoint at"):
        recipes.STAGES["autoencoder"](job(photos, tmp_path, steps=1, resume=True, recipe=AE_RECIPE))


def well_separated(count, steps):
    """Batches of vectors near `count` directions."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        picks = torch.randint(count, (4, 8, 8), generator=generator)
        noise = 0.01 * torch.randn(4, count, 8, 8, generator=generator)
        yield torch.eye(count)[picks].movedim(-1, 1) + noise


def test_the_codebook_starts_at_the_centres_of_what_the_first_steps_gave():
    quantizer = TrainingQuantizer(VectorQuantizer(8, 8), warmup=4, mean_use=32)
    for z in well_separated(8, 4):
        codes, loss = quantizer(z)
        assert loss == 0 and torch.equal(codes, torch.nn.functional.normalize(z, dim=1))
    found = quantizer.quantizer.codebook
    torch.testing.assert_close(found.norm(dim=1), torch.ones(8))
    assert (found @ torch.eye(8)).max(dim=1).values.min() > 0.6
    codes, loss = quantizer(z)
    assert (loss > 0 and torch.equal(codes.detach().argmax(1), z.argmax(1))) or loss < 1


def test_dead_codes_come_back_to_life():
    quantizer = TrainingQuantizer(VectorQuantizer(16, 4), warmup=2, mean_use=16)
    data = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        quantizer(data)
    moving = quantizer.moving
    for average in (moving.embed, moving.embed_avg):
        average[:, 1:] = average[:, :1].clone()
    for _ in range(400):
        quantizer(data)
    assert quantizer.entropy_bits() > 3.0
    assert torch.equal(quantizer.quantizer.codebook, moving.embed[0])


def test_a_codebook_that_is_trained_already_is_gone_on_from():
    trained = VectorQuantizer(16, 4)
    before = trained.codebook.clone()
    quantizer = TrainingQuantizer(trained, warmup=0, mean_use=16)
    quantizer(torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(trained.codebook, before)
    assert (trained.codebook * before).sum(dim=1).mean() > 0.9


class Line(torch.nn.Module):
    """Two numbers that a step moves down."""

    def __init__(self):
        super().__init__()
        self.slow, self.fast = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))

    def forward(self, batch, progress):
        return StepLoss((self.slow + self.fast).sum(), {})


def test_a_group_learns_at_its_own_multiple_of_the_rate(tmp_path):
    config, line = LoopConfig(steps=1, lr=1e-3, warmup_steps=1, device="cpu", ema=0.0), Line()
    groups = [{"params": [line.slow]}, {"params": [line.fast], "lr_scale": 10.0}]
    run(line, lambda step: None, tmp_path, config=config, groups=groups)
    assert line.slow.item() == pytest.approx(-1e-3) and line.fast.item() == pytest.approx(-1e-2)


def test_each_process_draws_its_own_batches():
    rank = SimpleNamespace(num_processes=4, process_index=1)
    numbers = _Trainer._numbers(SimpleNamespace(step=3, accelerator=rank))
    assert [next(numbers) for _ in range(3)] == [13, 17, 21]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("fast"), "'fast' is missing, expected torch.Size"),
        (lambda state: state.update(other=torch.ones(1)), "expected no such name"),
        (lambda state: state.update(slow=torch.ones(2)), r"'slow' is torch.Size\(\[2\]\)"),
    ],
)
def test_a_checkpoint_of_another_module_is_refused(change, message):
    state = checkpoint.kept(Line())
    change(state)
    with pytest.raises(ConfigError, match=message):
        checkpoint.fill(Line(), state)


def test_a_folder_without_pictures_and_a_recipe_with_an_unknown_setting_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no picture"):
        job(tmp_path, tmp_path).photos()
    with pytest.raises(ConfigError, match=r"recipe loop: expected .* got 'speed'"):
        job(tmp_path, tmp_path, recipe={"loop": {"speed": 1}}).loop()
    (tmp_path / "recipe.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match="must be an object, got list"):
        recipes.read_recipe(tmp_path / "recipe.json")


def test_a_folder_shards_and_a_saved_data_set_hold_the_same_photos(photos, tmp_path):
    files = sorted(photos.iterdir())
    for name in ("shards", "set"):
        (tmp_path / name).mkdir()
    for number in (0, 3):
        with tarfile.open(tmp_path / "shards" / f"{number:05d}.tar", "w") as shard:
            for path in files[number : number + 3]:
                shard.add(path, path.name)
                shard.addfile(tarfile.TarInfo(f"{path.stem}.json"))
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    table = pa.table({"label": [*range(6)], "image": pa.array(rows, image)})
    with pa.ipc.new_stream(tmp_path / "set" / "data-00000-of-00001.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=4)
    wanted = [photo.read() for photo in find_photos(photos)]
    for place in (tmp_path / "shards", tmp_path / "set"):
        found = [photo.read() for photo in find_photos(place)]
        assert len(found) == 6 and all(map(np.array_equal, found, wanted))
    assert len(find_photos(tmp_path / "shards" / "00003.tar")) == 3


def test_a_broken_shard_or_table_and_one_without_a_picture_are_named(tmp_path):
    for name in ("a.tar", "a.arrow"):
        (tmp_path / name).write_bytes(b"nothing of the kind" * 40)
        with pytest.raises(ConfigError, match=f"{name}' cannot be read"):
            find_photos(tmp_path / name)
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with pytest.raises(ConfigError, match="there is no picture in its shards"):
        find_photos(tmp_path / "empty.tar")


def test_the_command_line_says_how_long_before_the_recipe_does(tmp_path):
    recipe = {"loop": {"minutes": 5.0}}
    assert job(tmp_path, tmp_path, recipe=recipe).loop(steps=100).steps is None
    found = job(tmp_path, tmp_path, recipe={"loop": {"steps": 7}}, minutes=3.0).loop()
    assert (found.steps, found.minutes) == (None, 3.0)
    assert job(tmp_path, tmp_path, recipe=recipe, steps=9).loop().steps == 9


def test_the_recipes_of_the_model_card_can_be_read():
    kinds = {"plan": CropPlan, "loss": Stage1Loss, "shown": Shown}
    paths = sorted((EMBEDDED_DIR / "recipes").glob("*.json"))
    assert paths
    for path in paths:
        options = job(path, path, recipe=recipes.read_recipe(path))
        assert set(options.recipe) <= {"loop", *kinds} and options.loop(), path.stem
        assert all(options.settings(kind, key) for key, kind in kinds.items())


CONFIGS = ROOT / "assets" / "training"
SHARDED = CONFIGS / "eight-gpus-fsdp.yaml"
SHORT_RECIPE = {
    "plan": {"sides": [64, 128], "counts": [8, 4]},
    "loop": {"warmup_steps": 1, "lr": 1e-4},
    "tuning": {"batch_px": 4 * 64 * 64, "warmup": 2, "held_out": 2},
}


@pytest.mark.parametrize(
    ("name", "processes", "machines", "sharded"),
    [
        ("one-gpu", 1, 1, False),
        ("eight-gpus", 8, 1, False),
        ("eight-gpus-fsdp", 8, 1, True),
        ("two-nodes-fsdp", 16, 2, True),
    ],
)
def test_accelerate_reads_the_shipped_configs(name, processes, machines, sharded):
    args = launch_arguments(str(CONFIGS / f"{name}.yaml"))
    assert (args.num_processes, args.num_machines, args.use_fsdp) == (processes, machines, sharded)
    assert args.mixed_precision == "bf16"
    if sharded:
        assert args.fsdp_version == 2
        assert args.fsdp_ignored_modules == "quantizers"
        assert args.fsdp_transformer_layer_cls_to_wrap == "JointTransformerBlock"


def launch(entry, *words):
    command = ["torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    command += ["--master_port", str(free_port()), *entry, "train", *words, "--device", "cpu"]
    environment = {"PERCOV2_SD3_BASE": str(tiny_sd3_folder()), "PYTHONPATH": str(ROOT)}
    done = tiny.run(sys.executable, "-m", *command, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def work(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    (folder / "recipe.json").write_text(json.dumps(SHORT_RECIPE))
    words = ["--model", "sd3-medium", "--data", str(photos), "--no-t5"]
    words += ["--captioner", "describer", "--config", str(folder / "recipe.json")]
    launch(["-m", "percov2_core"], "cache", *words, "--out", str(folder / "cache"))
    return folder


def stage1(entry, work, out, *, rank, steps=4, more=()):
    """Train a copy of the model: each run ends by writing its average into it."""
    model = shutil.copytree(tiny_checkpoint(rank, t5_tokens=0), Path(mkdtemp()) / "model")
    words = ["tokens", "--model", f"sd3-medium:{model}", "--cache", str(work / "cache")]
    words += ["--config", str(work / "recipe.json"), "--out", str(out), "--steps", str(steps)]
    return launch(entry, *words, *more)


def last_loss(out):
    return float(rows(out / "losses.csv")[-1]["loss"])


@pytest.mark.slow
def test_two_processes_cache_their_halves_and_train_a_low_rank_difference(work, tmp_path):
    assert len(list((work / "cache").glob("shard-*"))) == 2
    cached = Cache(work / "cache")
    assert {side: len(found) for side, found in cached.drawn.items()} == {64: 8, 128: 4}
    said = stage1(["-m", "percov2_core"], work, tmp_path / "run", rank=4)
    assert said.count("cost: ") == 1  # one process speaks


@pytest.mark.slow
def test_sharded_training_resumes_to_the_same_loss_and_a_checkpoint_for_any_count(work, tmp_path):
    worker = [str(ROOT / "tests" / "sharded_worker.py"), str(SHARDED)]
    whole, broken, plain = tmp_path / "whole", tmp_path / "broken", tmp_path / "plain"
    stage1(worker, work, whole, rank=0)
    stage1(worker, work, broken, rank=0, steps=2)
    stage1(worker, work, broken, rank=0, more=["--resume"])
    assert last_loss(whole) == last_loss(broken)
    a, b = (load_average(out) for out in (whole, broken))
    assert all(torch.equal(a[k], b[k]) for k in a)
    # The same without sharding, whose weights are not rounded before they are gathered.
    stage1(["-m", "percov2_core"], work, plain, rank=0)
    c = load_average(plain)
    assert {k: v.shape for k, v in c.items()} == {k: v.shape for k, v in a.items()}
    assert last_loss(plain) == pytest.approx(last_loss(whole), rel=0.02)
