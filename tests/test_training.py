"""Every stage runs for a few steps at tiny size, resumes to the same loss, and loads strictly."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from percov2_core.errors import ConfigError
from percov2_core.hyper.networks import HyperDecoder, HyperEncoder, VectorQuantizer
from percov2_core.training import checkpoint, recipes
from percov2_core.training.loop import LoopConfig, StepLoss, _Trainer, run
from percov2_core.training.model import open_vae
from percov2_core.training.quantize import TrainingQuantizer
from percov2_core.training.samples import CropPlan, PhotoCrops, Photos
from percov2_core.training.stage1 import Stage1Loss
from percov2_core.weights.files import load_part
from percov2_core.weights.find import EMBEDDED_DIR
from percov2_core.weights.sizes import EMBEDDED, Sizes
from tests.tiny import TINY_VAE, drawing_within, rows, tiny_sizes

CPU = torch.device("cpu")
PLAN = {"sides": [64, 128], "weights": [1.0, 1.0], "batch_px": 128 * 128}
AE_RECIPE = {"model": TINY_VAE, "plan": PLAN}


def job(photos, out, **values):
    return recipes.RunOptions(data=photos, out=out, device="cpu", **values)


def losses(out):
    return [float(row["loss"]) for row in rows(out / "losses.csv")]


@pytest.fixture(scope="module")
def vae(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "ae"
    recipes.STAGES["autoencoder"](job(photos, out, steps=3, recipe=AE_RECIPE))
    return out / "vae"


def tiny_recipe(rate):
    tiny = tiny_sizes(rate)
    return {
        "model": {f.name: getattr(tiny, f.name) for f in dataclasses.fields(tiny)},
        "plan": PLAN,
        "loss": {"tune_painter": True},
        "loop": {"save_every_s": 0.0},
    }


@pytest.mark.parametrize("rate", ["extreme", "ultra-low"])
def test_a_resumed_run_ends_at_the_loss_of_an_unbroken_one(
    rate, photos, vae, tmp_path, monkeypatch
):
    recipe = tiny_recipe(rate)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    recipes.STAGES[rate](job(photos, whole, vae=vae, steps=4, recipe=recipe))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PhotoCrops, "draw", drawing_within(0, 2, PhotoCrops.draw))
        recipes.STAGES[rate](job(photos, broken, vae=vae, steps=4, recipe=recipe))
    recipes.STAGES[rate](job(photos, broken, vae=vae, steps=4, recipe=recipe, resume=True))
    assert losses(whole) == losses(broken)
    a, b = (load_part(HyperEncoder, f / "parts/hyper_encoder", CPU) for f in (whole, broken))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_frozen_tokens_stay_as_they_are_while_the_decoder_learns(photos, vae, tmp_path):
    recipe = tiny_recipe("extreme")
    first, then = tmp_path / "first", tmp_path / "then"
    recipes.STAGES["extreme"](job(photos, first, vae=vae, steps=2, recipe=recipe))
    frozen = {**recipe, "loss": {"freeze_tokens": True, "tune_painter": True}}
    recipes.STAGES["extreme"](job(photos, then, vae=vae, init=first, steps=2, recipe=frozen))
    for kind, name, same in (
        (HyperEncoder, "hyper_encoder", True),
        (VectorQuantizer, "quantizer", True),
        (HyperDecoder, "hyper_decoder", False),
    ):
        a, b = (load_part(kind, f / "parts" / name, CPU).state_dict() for f in (first, then))
        assert all(torch.equal(a[k], b[k]) for k in a) == same


def test_the_autoencoder_stage_resumes_and_saves_what_loads(photos, vae, tmp_path):
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
        self.slow = torch.nn.Parameter(torch.zeros(1))
        self.fast = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch, progress):
        return StepLoss((self.slow + self.fast).sum(), {})


def test_a_group_learns_at_its_own_multiple_of_the_rate(tmp_path):
    config = LoopConfig(steps=1, lr=1e-3, warmup_steps=1, device="cpu", ema=0.0)

    line = Line()
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


def test_a_recipe_with_an_unknown_setting_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"recipe loop: expected .* got 'speed'"):
        job(tmp_path, tmp_path, recipe={"loop": {"speed": 1}}).loop()
    (tmp_path / "recipe.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match="must be an object, got list"):
        recipes.read_recipe(tmp_path / "recipe.json")


def test_the_command_line_says_how_long_before_the_recipe_does(tmp_path):
    recipe = {"loop": {"minutes": 5.0}}
    assert job(tmp_path, tmp_path, recipe=recipe).loop(steps=100).steps is None
    found = job(tmp_path, tmp_path, recipe={"loop": {"steps": 7}}, minutes=3.0).loop()
    assert (found.steps, found.minutes) == (None, 3.0)
    assert job(tmp_path, tmp_path, recipe=recipe, steps=9).loop().steps == 9


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no picture"):
        Photos(tmp_path)


SHIPPED = sorted((EMBEDDED_DIR / "recipes").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_recipes_of_the_model_card_can_be_read(path):
    recipe = recipes.read_recipe(path)
    for key, kind in (("loop", LoopConfig), ("plan", CropPlan), ("loss", Stage1Loss)):
        recipes.settings(kind, recipe[key], key)
    known = EMBEDDED[path.stem.rpartition("-")[0]]
    sizes = dataclasses.asdict(known) | recipe.get("model", {})
    assert recipes.settings(Sizes, sizes, "model")
