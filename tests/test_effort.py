"""How long the encoder searches: `effort` of `encode` and `look`."""

import numpy as np
import pytest
from PIL import Image

from percov2_core.cli import main
from percov2_core.config import COARSE, EFFORTS, FINE
from percov2_core.errors import ConfigError
from tests.tiny import picture


def error(image, other):
    return np.square(np.asarray(image, float) - np.asarray(other, float)).mean()


def test_more_effort_comes_closer_to_the_picture(shipped):
    image = picture(192, 128)
    found = {effort: shipped.encode(image, caption="", effort=effort) for effort in EFFORTS}
    far = [error(image, shipped.decode(found[e], preset="faithful")) for e in EFFORTS]
    assert far == sorted(far, reverse=True)
    assert far[1] < 0.97 * far[0]
    assert shipped.encode(image, caption="").to_bytes() == found["normal"].to_bytes()


def test_fast_takes_the_nearest_codes_and_asks_no_entropy_model(shipped, unsearched, monkeypatch):
    image = picture(192, 128)
    nearest = unsearched.look(image, caption="")
    for level in (COARSE, FINE):
        prior = shipped.levels[level.name].prior
        monkeypatch.setattr(prior, "choices", lambda *a, **k: pytest.fail("searched"))
    found = shipped.look(image, caption="", effort="fast")
    assert np.array_equal(found.fine, nearest.fine)
    assert np.array_equal(found.coarse, nearest.coarse)


def test_the_command_hands_it_on(photo, unsearched, shipped, monkeypatch, tmp_path):
    monkeypatch.setattr("percov2_core.weights.load_codec", lambda name: shipped)
    out = tmp_path / "x.pcv2"
    assert main(["compress", str(photo), "-o", str(out), "--effort", "fast"]) == 0
    assert out.read_bytes() == unsearched.encode(Image.open(photo)).to_bytes()


def test_an_effort_that_there_is_not_is_named(shipped):
    with pytest.raises(ConfigError, match="effort must be one of fast, normal, best, got 'max'"):
        shipped.look(picture(), effort="max")
