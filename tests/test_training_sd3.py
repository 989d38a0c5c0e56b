import shutil
import weakref
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors import safe_open

from percov2_core.bitstream import Stream
from percov2_core.cli import main
from percov2_core.config import LEVELS, MODES
from percov2_core.errors import ConfigError
from percov2_core.flow.sampler import sample, sigmas
from percov2_core.flow.text import TextEmbedding
from percov2_core.flow.transformer import Conditions, FlowConfig, FlowModel, extend_patch_embedding
from percov2_core.hyper.networks import HyperEncoder, VectorQuantizer
from percov2_core.training import checkpoint, masked, recipes
from percov2_core.training import model as stage
from percov2_core.training.cache import Cache, cache_bytes, read_info
from percov2_core.training.loop import LoopConfig, memory_bytes
from percov2_core.training.photos import Photo
from percov2_core.training.samples import Samples
from percov2_core.training.shown import Shown
from percov2_core.training.stage1 import Stage1, Stage1Loss, draw_times, mean_scores
from percov2_core.training.stage1 import parameter_groups as groups
from percov2_core.weights import load_codec, parts
from percov2_core.weights.base import load_text
from percov2_core.weights.files import model_digest
from percov2_core.weights.parts import add_lora
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import BASES, SD3
from tests.tiny import TINY_MASKED, counted, picture, rows
from tests.tiny_sd3 import tiny_checkpoint, tiny_sd3_folder

pytestmark = pytest.mark.usefixtures("sd3_base")
QUIET = {"warmup_steps": 1}
LOOP = {**QUIET, "save_every_s": 0.0, "lr": 1e-3}
STAGE1 = {"loop": LOOP, "tuning": {"batch_px": 4 * 64 * 64, "warmup": 2, "held_out": 2}}
PLAN = {"plan": {"sides": [64, 128], "counts": [8, 4]}}


def job(out, **values):
    return recipes.RunOptions(out=out, device="cpu", **values)


def write_cache(photos, out, recipe=PLAN):
    words = {"model": "sd3-medium", "captioner": "describer", "t5": False}
    recipes.STAGES["cache"](job(out, data=photos, recipe=recipe, **words))
    return out


@pytest.fixture(scope="module")
def cache(photos, sd3_base, tmp_path_factory):
    return write_cache(photos, tmp_path_factory.mktemp("runs") / "cache")


@pytest.fixture(scope="module", params=[4, 0], ids=["lora", "full"])
def fresh(request):
    return tiny_checkpoint(request.param, t5_tokens=0)


@pytest.fixture
def model(fresh, tmp_path):
    return shutil.copytree(fresh, tmp_path / "model")


def run(model, cache, out, name="tokens", recipe=STAGE1, **values):
    values = {"steps": 5, "model": f"sd3-medium:{model}", "cache": cache, **values}
    recipes.STAGES[name](job(out, recipe=recipe, **values))


def test_every_stage_then_a_file_and_back(model, cache, tmp_path):
    digests = [model_digest(model)]
    for name in ("tokens", "masked-coarse", "masked-fine", "painter"):
        recipe = TINY_MASKED if name.startswith("masked") else STAGE1
        run(model, cache, tmp_path / name, name, recipe)
        digests.append(model_digest(model))
    # What gives tokens their meaning is trained by all stages but the last.
    assert len(set(digests)) == 4 and digests[3] == digests[4]
    codec = load_codec(f"sd3-medium:{model}", device="cpu")
    image = picture(96, 80)
    for mode in MODES:
        stream = codec.encode(image, mode, caption="a red house")
        back = codec.read(Stream.from_bytes(stream.to_bytes()))
        assert np.array_equal(codec.read(stream).fine.tokens, back.fine.tokens)
        assert codec.decode(back.stream, steps=1, guidance=3.0).size == image.size


def states(model):
    """The networks of a model by name, and what is in them."""
    codec = load_codec(f"sd3-medium:{model}", device="cpu")
    networks = {"decoder": codec.painter.decoder, "flow": codec.painter.flow}
    for name, modules in codec.levels.items():
        networks |= {f"encoders.{name}": modules.encoder, f"quantizers.{name}": modules.quantizer}
    return {name: network.state_dict() for name, network in networks.items()}


def changed(before, after):
    return {n for n in after if any(not torch.equal(before[n][k], v) for k, v in after[n].items())}


def test_what_was_trained_is_what_the_codec_loads(model, cache, tmp_path, capsys):
    before = states(model)
    run(model, cache, tmp_path / "run", recipe=STAGE1 | {"loop": QUIET}, steps=21)
    counted, measured = (s for s in capsys.readouterr().out.splitlines() if s.startswith("cost:"))
    assert "GiB a process" in counted and "steps/s (measured); 21 take 0.0" in measured
    scores = rows(tmp_path / "run" / "scores.csv")
    assert set(scores[-1]) == {"step", "seconds", "flow_0.2", "flow_0.5", "flow_0.8", "flow_1"}
    trained, average = states(model), checkpoint.load_average(tmp_path / "run")
    assert changed(before, trained) == set(trained)
    for name in ("encoders.coarse", "encoders.fine", "decoder"):
        assert all(torch.equal(v, average[f"{name}.{k}"]) for k, v in trained[name].items())
    run(model, cache, tmp_path / "painter", "painter", STAGE1 | {"loop": QUIET}, steps=2)
    assert changed(trained, states(model)) == {"decoder", "flow"}


def test_a_resumed_run_ends_where_an_unbroken_one_does(fresh, cache, tmp_path, monkeypatch):
    models = [shutil.copytree(fresh, tmp_path / name) for name in ("a", "b")]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(models[0], cache, whole)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, Cache, "draw", most=3)
        run(models[1], cache, broken)
    drawn = counted(monkeypatch, Cache, "draw")
    run(models[1], cache, broken, resume=True)
    assert min(step for _, step in drawn) == 3
    assert rows(whole / "losses.csv")[-1]["loss"] == rows(broken / "losses.csv")[-1]["loss"]
    assert len(list(broken.glob("checkpoint-*"))) == 1
    a, b = (checkpoint.load_average(out) for out in (whole, broken))
    assert all(torch.equal(a[k], b[k]) for k in a)


WHOLE = Shown(none=0.0, some=0.0, no_coarse=0.0)


def system(model, cache, loss=None, shown=WHOLE, **values):
    tuning = stage.Tuning(**{"warmup": 0, "batch_px": 2 * 64 * 64, "held_out": 0, **values})
    how = {"loss": Stage1Loss(**{"times": "logistic", **(loss or {})}), "shown": shown}
    how |= {"tuning": tuning, "loop": LoopConfig(device="cpu")}
    return stage.build_over_base(opened(cache), model, **how)


def opened(cache):
    return Cache(cache, batch_px=2 * 64 * 64)


def test_the_checkpoint_of_a_run_holds_nothing_of_a_frozen_base(model, cache):
    built = system(model, cache)
    frozen = {n for n, p in built.named_parameters() if not p.requires_grad}
    names = set(checkpoint.kept(built))
    assert not names & {n for n in frozen if n.startswith("flow.")}
    assert {n for n, p in built.named_parameters() if p.requires_grad} <= names
    assert {f"quantizers.{level}.quantizer.codebook" for level in LEVELS} <= names
    if (model / "painter" / "lora").is_dir():
        assert frozen and all("lora_" in n or "pos_embed" in n for n in names if "flow." in n)


def test_a_base_in_half_precision_trains_in_full(model, cache, monkeypatch):
    monkeypatch.setattr(stage, "on_cpu", lambda device: False)
    # Also of the level that is not shown, and in a warm-up: several processes want that.
    built = system(model, cache, shown=Shown(none=0.0, some=0.0, no_coarse=1.0), warmup=9)
    trained = {p.dtype for p in built.parameters() if p.requires_grad}
    frozen = {p.dtype for p in built.flow.parameters() if not p.requires_grad}
    assert trained == {torch.float32}
    assert frozen == ({torch.bfloat16} if (model / "painter" / "lora").is_dir() else set())
    with torch.autocast("cpu", torch.bfloat16):
        loss = built(opened(cache).draw(0), 0.0).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in built.parameters() if p.requires_grad)


def test_the_hyper_latents_are_learned_through_the_flow_alone(model, cache):
    built = system(model, cache, {"start": 0.0, "commitment": 0.0})
    batch = opened(cache).draw(0)
    trained = [(n, p) for n, p in built.named_parameters() if p.requires_grad]
    embedding = next(p for n, p in trained if "pos_embed" in n and n.endswith("weight"))
    built(batch, 0.0).loss.backward()
    assert embedding.grad[:, 16:].any()  # the new channels learn from the first step on
    assert not any(encoder.out.weight.grad.any() for encoder in built.encoders.values())
    with torch.no_grad():
        embedding[:, 16:] = 0.1
        built.decoder.join.weight.fill_(0.1)
    built(batch, 0.0).loss.backward()
    assert all(encoder.out.weight.grad.any() for encoder in built.encoders.values())


class Oracle(torch.nn.Module):
    """The velocity that leads to `z` from anywhere."""

    def __init__(self, z):
        super().__init__()
        self.z, self.config = z, FlowConfig()

    first = FlowModel.first

    def forward(self, x, t, conditions, guidance):
        return (x - self.z) / t[:, None, None, None]


def test_the_velocity_that_is_learned_is_the_one_that_the_sampler_follows(model, cache):
    built = system(model, cache)
    batch = opened(cache).draw(0)
    z, built.flow = batch.latent, Oracle(batch.latent)
    scores = mean_scores(built.eval(), [batch])
    assert max(scores.values()) < 1e-6
    empty = opened(cache).empty
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    how = {"times": sigmas(3, 3.0), "guidance": 1.0, "noise": noise}
    *_, reached = sample(built.flow, Conditions(z, z, batch.text), empty, **how)
    torch.testing.assert_close(reached, z, atol=1e-4, rtol=1e-4)


def test_a_dropped_caption_is_the_empty_one(model, cache):
    batch, cpu = opened(cache).draw(0), torch.device("cpu")
    dropped = system(model, cache, {"text_drop": 1.0})._text(batch, cpu)
    assert torch.equal(dropped.sequence, opened(cache).empty.sequence.expand_as(dropped.sequence))
    kept = system(model, cache, {"text_drop": 0.0})._text(batch, cpu)
    assert torch.equal(kept.pooled, batch.text.pooled)


def test_each_text_encoder_is_dropped_by_itself_and_all_at_once_as_often_as_asked(model, cache):
    built, count = system(model, cache, {"text_drop": 0.25}), 500
    empty, widths = opened(cache).empty, list(opened(cache).info.clip_widths)
    other = TextEmbedding(*(v.expand(count, *v.shape[1:]) + 1 for v in empty))
    torch.manual_seed(0)
    text = built._text(Samples([""] * count, text=other), torch.device("cpu"))
    pooled, tokens = (
        [part.flatten(1).all(1) for part in (t == e)[..., : sum(widths)].split(widths, dim=-1)]
        for t, e in zip(text, empty, strict=True)
    )
    assert all(map(torch.equal, pooled, tokens))  # what is said of all words goes with them
    shares = [dropped.float().mean() for dropped in (*pooled, pooled[0] & pooled[1])]
    assert np.allclose(shares, (0.5, 0.5, 0.25), atol=0.06)  # 0.25 ** (1 / 2) each


def test_times_are_drawn_as_each_model_needs_them():
    torch.manual_seed(0)
    for shift, median in ((1.0, 0.5), (3.0, 0.75)):
        loss = Stage1Loss(times="logistic", shift=shift)
        t = draw_times(20_000, loss, torch.device("cpu"))
        assert t.min() > 0 and t.max() < 1
        assert abs(float(t.median()) - median) < 0.01
    t = draw_times(20_000, Stage1Loss(whole_flow=0.8), torch.device("cpu"))
    assert 0.78 < (t == 1).float().mean() < 0.82 and t.min() >= 0.02
    with pytest.raises(ConfigError, match="times must be one of whole, logistic, got 'even'"):
        Stage1Loss(times="even")


def test_what_starts_fresh_learns_faster(model, cache):
    built = system(model, cache)
    base, new = groups(built, new_scale=10.0)
    trained = sum(p.requires_grad for p in built.parameters())
    assert len(base["params"]) + len(new["params"]) == trained and "lr_scale" not in base
    own = {id(p) for part in (built.encoders, built.decoder) for p in part.parameters()}
    assert own <= {id(p) for p in new["params"]}
    lora = (model / "painter" / "lora").is_dir()
    assert (len(new["params"]) > len(own)) == lora


def test_the_cache_gives_what_the_frozen_parts_gave(cache):
    text = load_text(tiny_sd3_folder(), Residency(device="cpu"), t5_tokens=0)
    first, again = (Cache(cache, batch_px=2 * 64 * 64, held_out=1) for _ in range(2))
    batch = first.draw(3)
    wanted = text.encode(batch.captions)
    torch.testing.assert_close(batch.text.sequence, wanted.sequence, atol=2e-3, rtol=8e-3)
    torch.testing.assert_close(batch.text.pooled, wanted.pooled, atol=2e-3, rtol=8e-3)
    torch.testing.assert_close(first.empty.pooled, text.encode([""]).pooled)
    assert torch.equal(batch.latent, again.draw(3).latent)
    shapes = {tuple(Cache(cache, batch_px=1).draw(i).latent.shape) for i in range(20)}
    assert shapes == {(1, 16, 8, 8), (1, 16, 16, 16)}
    assert sum(map(len, first.drawn.values())) == 10
    assert sum(map(len, first.every(64))) == 8 and sum(map(len, first.held_out())) == 2


def test_a_cache_that_was_broken_off_is_completed_to_the_same_bytes(cache, photos, tmp_path):
    copy = shutil.copytree(cache, tmp_path / "cache")
    (shard,) = copy.glob("shard-*")
    whole = shard.read_bytes()
    shard.unlink()
    write_cache(photos, copy)
    assert shard.read_bytes() == whole
    other = {"plan": {**PLAN["plan"], "counts": [9, 4]}}
    message = r"made with .*counts=\(8, 4\).* this run has .*counts=\(9, 4\)"
    with pytest.raises(ConfigError, match=message):
        write_cache(photos, copy, other)


def test_photos_are_read_one_by_one_and_what_they_take_is_told_before(
    photos, tmp_path, capsys, caplog, monkeypatch
):
    folder, alive, said = shutil.copytree(photos, tmp_path / "photos"), [], []
    (folder / "a.png").write_bytes((folder / "0.png").read_bytes()[:300])
    read = Photo.read

    def reading(photo):
        said.append(capsys.readouterr().out)
        assert not any(there() is not None for there in alive)
        pixels = read(photo)
        alive.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(Photo, "read", reading)
    out = write_cache(folder, tmp_path / "cache", {"plan": {"sides": [64], "counts": [14]}})
    broken = [words for words in caplog.messages if words.startswith("left out: a.png is a PNG")]
    assert len(broken) == 2 and len(alive) == 12 and not any(said[1:])
    info, empty = read_info(out), Cache(out).empty
    assert f"14 samples of 7 photos will take {cache_bytes(info, empty) / 1e9:.3g} GB" in said[0]
    with safe_open(next(out.glob("shard-*")), framework="pt") as file:
        found = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
    assert {values.dtype for values in found} == {torch.bfloat16}
    assert 14 / 12 * sum(values.nbytes for values in found) == cache_bytes(info, empty)


def test_a_grid_larger_than_the_entropy_models_tile_is_cut(cache, tmp_path, monkeypatch):
    levels = {
        name: masked.Tokenizer(HyperEncoder(16, (8,) * n, (1,) * n, 4), VectorQuantizer(16, 4))
        for name, n in (("coarse", 3), ("fine", 1))
    }
    large = masked.token_sets(Cache(cache), tmp_path / "whole", levels=levels)[1]
    monkeypatch.setattr(masked, "MAX_TILE", 4)
    small = masked.token_sets(Cache(cache), tmp_path / "cut", levels=levels)[1]
    assert large.tokens.shape == (4, 8, 8) and small.tokens.shape == (16, 4, 4)
    assert np.array_equal(small.tokens[1], large.tokens[0, :4, 4:])
    assert np.array_equal(small.parents[1], large.parents[0, :1, 1:])
    assert small.captions[:4] == [large.captions[0]] * 4


def test_a_damaged_shard_is_named(cache, tmp_path):
    copy = shutil.copytree(cache, tmp_path / "cache")
    (shard,) = copy.glob("shard-*")
    data = shard.read_bytes()
    for broken in (data[:-1], data[:100], b"no shard" * 100):
        shard.write_bytes(broken)
        with pytest.raises(ConfigError, match=f"shard '{shard}' is damaged"):
            Cache(copy)


@pytest.mark.parametrize(("rank", "shards", "gib"), [(64, 1, "5.3"), (0, 1, "38.2"), (0, 8, "4.8")])
def test_the_memory_that_the_readme_names_is_what_is_counted(rank, shards, gib, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(shards > 1).lower())
    with torch.device("meta"):
        network = SD3Transformer2DModel(**BASES["sd3-medium"].transformer)
        network = extend_patch_embedding(network, SD3.features).requires_grad_(not rank)
        if rank:  # a frozen base may be in half precision
            network = add_lora(network.to(torch.bfloat16), rank=rank)
    empty = TextEmbedding(torch.zeros(1, 77, 4096), torch.zeros(1, 2048))
    levels, painter = parts.build(SD3, transformer=network, text=stage.CachedText(empty))
    use = dict.fromkeys(LEVELS, 1.0)
    built = Stage1(levels, painter, Stage1Loss(), Shown(), mean_use=use, empty=empty)
    assert f"{memory_bytes(built, shards) / 2**30:.1f}" == gib
    assert f"{gib} GiB" in (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cache --data D", "--model is needed for this stage"),
        ("cache --data D --model sd2", "base must be one of sd3-medium"),
        ("tokens --model sd3-medium", "--cache is needed for this stage, got none"),
        ("tokens --model sd3-medium:X --cache X", "cache: no cache.json in 'X'"),
        ("autoencoder --model sd3-medium", "stage 'autoencoder' trains no part over a base"),
        ("tokens --model sd3-medium --lora-rank -1", "--lora-rank must be at least 0, got -1"),
    ],
)
def test_a_wrong_order_is_one_line(words, message, capsys, tmp_path):
    assert main(["train", *words.split(), "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_a_cache_of_another_text_length_or_base_is_refused(model, cache, tmp_path):
    info = (copy := shutil.copytree(cache, tmp_path / "other")) / "cache.json"
    text = info.read_text()
    info.write_text(text.replace('"text_tokens": 77', '"text_tokens": 333'))
    with pytest.raises(ConfigError, match="made with 256 tokens of T5, checkpoint expects 0"):
        run(model, copy, tmp_path / "run")
    info.write_text(text.replace("sd3-medium", "sd3.5-medium"))
    with pytest.raises(ConfigError, match=r"made with 'sd3\.5-medium', checkpoint is over"):
        run(model, copy, tmp_path / "run")
    info.write_text(text.replace('"format": 3', '"format": 1'))
    with pytest.raises(ConfigError, match="format 1, this build reads 3"):
        read_info(copy)


def test_a_low_rank_difference_is_not_sharded(model, cache, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    refused = pytest.raises(ConfigError, match="FSDP cuts weights of one precision only")
    with refused if (model / "painter" / "lora").is_dir() else nullcontext():
        system(model, cache)
