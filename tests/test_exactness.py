"""The shipped entropy models give the same bytes, tokens and samples however they are run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from percov2_core.config import RATES
from percov2_core.evaluation.protocol import centre_square

ROOT = Path(__file__).parents[1]


# What varies comes after the tokens, so that it does not matter how they were found. Two pictures
# of 256 px on each run; with `pytest -m slow` all 24 of 512 px.
@pytest.fixture(scope="module", params=[(256, 12), pytest.param((512, 1), marks=pytest.mark.slow)])
def grids(request, unsearched, kodak, tmp_path_factory):
    """Tokens and captions of the Kodak pictures."""
    side, every = request.param
    pictures = [centre_square(Image.open(path), side) for path in kodak[::every]]
    read = {r: [unsearched.read(unsearched.encode(p, r)) for p in pictures] for r in RATES}
    path = tmp_path_factory.mktemp("exact") / "grids.npz"
    tokens = {r: np.stack([c.tokens for c in contents]) for r, contents in read.items()}
    captions = [c.caption for c in read["extreme"]]
    np.savez(path, captions=np.array(captions), **tokens)
    return path


# Threads of one product x pictures at a time.
WAYS = ("1x1", "2x1", "4x1", "1x8")


def run(grids, *ways, **environment):
    """The digests of all pictures, one list for each way."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.exact_worker", str(grids), *ways],
        cwd=ROOT,
        # More threads than cores: they must not wait for each other by turning in circles.
        env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def native(grids):
    return dict(zip(WAYS, run(grids, *WAYS), strict=True))


def test_every_picture_at_both_rates_has_a_digest_of_its_own(native):
    assert len(native["1x1"]) == len(set(native["1x1"])) >= 4


@pytest.mark.parametrize("way", WAYS[1:])
def test_threads_and_pictures_at_a_time_change_nothing(native, way):
    assert native[way] == native["1x1"]


@pytest.mark.parametrize(("capability", "way"), [("default", "4x1"), ("avx2", "1x1")])
def test_instruction_sets_change_nothing(grids, native, capability, way):
    assert run(grids, way, ATEN_CPU_CAPABILITY=capability) == [native["1x1"]]
