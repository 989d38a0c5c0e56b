"""Several processes: the shipped configs of Accelerate, and training on two CPU processes."""

import json
import shutil
import sys
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

from percov2_core.training.cache import Cache
from percov2_core.training.checkpoint import load_average
from tests.sharded_worker import launch_arguments
from tests.tiny import ROOT, rows, run
from tests.tiny_sd3 import tiny_checkpoint, tiny_sd3_folder
from tests.ui_server import free_port

CONFIGS = ROOT / "assets" / "training"
SHARDED = CONFIGS / "eight-gpus-fsdp.yaml"
RECIPE = {
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
    done = run(sys.executable, "-m", *command, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def work(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
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
