"""The shipped entropy models give the same bytes, tokens and guesses however they are run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from percov2_core.config import LEVELS
from percov2_core.evaluation.protocol import centre_square

ROOT = Path(__file__).parents[1]


# What varies comes after the tokens, so that it does not matter how they were found. Two pictures
# of 256 px on each run; with `pytest -m slow` all 24 of 512 px.
@pytest.fixture(scope="module", params=[(256, 12), pytest.param((512, 1), marks=pytest.mark.slow)])
def tokens(request, unsearched, kodak, tmp_path_factory):
    """Tokens and captions of the Kodak pictures."""
    side, every = request.param
    found = [unsearched.look(centre_square(Image.open(path), side)) for path in kodak[::every]]
    path = tmp_path_factory.mktemp("exact") / "tokens.npz"
    grids = {level: np.stack([getattr(one, level) for one in found]) for level in LEVELS}
    np.savez(path, size=(side, side), captions=[one.caption for one in found], **grids)
    return path


# Threads of one product x pictures at a time.
WAYS = ("1x1", "2x1", "4x1", "1x8")


def run(tokens, *ways, **environment):
    """The digests of all pictures, one list for each way."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.exact_worker", str(tokens), *ways],
        cwd=ROOT,
        # More threads than cores: they must not wait for each other by turning in circles.
        env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def native(tokens):
    return dict(zip(WAYS, run(tokens, *WAYS), strict=True))


def test_every_picture_has_digests_of_its_own(native):
    assert len(native["1x1"]) == len(set(native["1x1"])) >= 4


@pytest.mark.parametrize("way", WAYS[1:])
def test_threads_and_pictures_at_a_time_change_nothing(native, way):
    assert native[way] == native["1x1"]


@pytest.mark.parametrize(("capability", "way"), [("default", "4x1"), ("avx2", "1x1")])
def test_instruction_sets_change_nothing(tokens, native, capability, way):
    others = {"default": "SSE41", "avx2": "AVX2"}[capability]
    limits = {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": others}
    assert run(tokens, way, **limits) == [native["1x1"]]
