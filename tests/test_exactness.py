"""The shipped entropy models give the same bytes, tokens and guesses however they are run."""

import sys

import numpy as np
import pytest
from PIL import Image

from percov2_core.config import LEVELS
from percov2_core.evaluation.protocol import centre_square
from tests.tiny import run


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


def digests(tokens, *ways, **environment):
    """Those of all pictures, one list for each way."""
    words = (sys.executable, "-m", "tests.exact_worker", str(tokens), *ways)
    # More threads than cores: they must not wait for each other by turning in circles.
    result = run(*words, OMP_WAIT_POLICY="passive", **environment)
    assert result.returncode == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def native(tokens):
    """By threads of one product x pictures at a time."""
    ways = ("1x1", "2x1", "4x1", "1x8")
    return dict(zip(ways, digests(tokens, *ways), strict=True))


def test_threads_and_pictures_at_a_time_change_no_digest_and_each_picture_has_its_own(native):
    assert native == dict.fromkeys(native, native["1x1"])
    assert len(native["1x1"]) == len(set(native["1x1"])) >= 4


@pytest.mark.parametrize(("capability", "way"), [("default", "4x1"), ("avx2", "1x1")])
def test_instruction_sets_change_nothing(tokens, native, capability, way):
    others = {"default": "SSE41", "avx2": "AVX2"}[capability]
    limits = {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": others}
    assert digests(tokens, way, **limits) == [native["1x1"]]
