"""The shipped entropy models give the same bytes, tokens and samples however they are run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from percov2_core import load_codec
from percov2_core.config import RATES
from percov2_core.evaluation.protocol import centre_square
from percov2_core.weights import EMBEDDED_DIR

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (EMBEDDED_DIR / "model.json").is_file(), reason="the embedded model is not in place"
)


# Every n-th picture: a few on each run, all 24 with `pytest -m slow`.
@pytest.fixture(scope="module", params=[12, pytest.param(1, marks=pytest.mark.slow)])
def grids(request, kodak, tmp_path_factory):
    """Tokens and captions of the Kodak pictures, made once: what varies comes after them."""
    codec = load_codec(device="cpu")
    pictures = [centre_square(Image.open(path)) for path in kodak[:: request.param]]
    read = {r: [codec.read(codec.encode(p, r)) for p in pictures] for r in RATES}
    path = tmp_path_factory.mktemp("exact") / "grids.npz"
    tokens = {r: np.stack([c.tokens for c in contents]) for r, contents in read.items()}
    captions = [c.caption for c in read["extreme"]]
    np.savez(path, captions=np.array(captions), **tokens)
    return path


def run(grids, *, threads, at_once, **environment):
    command = [sys.executable, "-m", "tests.exact_worker", str(grids), str(threads), str(at_once)]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.fixture(scope="module")
def reference(grids):
    return run(grids, threads=1, at_once=1)


def test_every_picture_at_both_rates_has_a_digest_of_its_own(reference):
    assert len(reference) == len(set(reference)) >= 4


@pytest.mark.parametrize(
    "variant",
    [
        {"threads": 2, "at_once": 1},
        {"threads": 4, "at_once": 1},
        {"threads": 1, "at_once": 8},
        {"threads": 4, "at_once": 1, "ATEN_CPU_CAPABILITY": "default"},
        {"threads": 1, "at_once": 1, "ATEN_CPU_CAPABILITY": "avx2"},
    ],
)
def test_threads_batches_and_instruction_sets_change_nothing(grids, reference, variant):
    assert run(grids, **variant) == reference
