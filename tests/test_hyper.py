"""The networks between latent and tokens, and the encoder's search at every effort."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from percov2_core.cli import main
from percov2_core.config import COARSE, EFFORTS, FINE, SearchConfig
from percov2_core.entropy.schedule import coding_order
from percov2_core.errors import BitstreamError, ConfigError
from percov2_core.hyper.networks import Codes, HyperDecoder, VectorQuantizer
from percov2_core.hyper.search import search_tokens
from percov2_core.hyper.stand_ins import STAND_INS
from percov2_core.latent import LatentAutoencoder
from percov2_core.metrics.structure import structure_distance
from percov2_core.ui.gallery import EXAMPLES_DIR
from tests.tiny import counted, picture


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    return VectorQuantizer(32, 6)


def test_tokens_are_the_nearest_codes_by_angle(quantizer):
    vectors = torch.randn(1, 6, 4, 4)
    flat = F.normalize(vectors.movedim(1, -1).flatten(0, 2), dim=1)
    nearest = torch.cdist(flat, quantizer.codebook).argmin(dim=1).view(1, 4, 4)
    assert torch.equal(quantizer.tokens(vectors), nearest)
    assert torch.equal(quantizer.tokens(3 * vectors), nearest)
    assert torch.equal(quantizer.tokens(quantizer.lookup(nearest)), nearest)
    with pytest.raises(BitstreamError, match=r"tokens must be in \[0, 32\), got up to 32"):
        quantizer.lookup(torch.tensor([[[32]]]))


def blurred(codes):
    """A decoder in which neighbouring tokens overlap."""
    x = F.interpolate(codes[:, :3], scale_factor=4, mode="nearest")
    return F.avg_pool2d(x, 5, 1, 2)


def test_the_search_comes_closer_to_the_picture_than_the_nearest_codes(quantizer):
    x = blurred(quantizer.lookup(torch.randint(32, (1, 6, 6))))
    tokens = torch.randint(32, (1, 6, 6))
    errors = []
    for rounds in (0, 2, 6):
        config = SearchConfig(rounds=rounds, curvature=2.0)
        found = search_tokens(tokens, quantizer, blurred, x, config=config)
        errors.append(float((blurred(quantizer.lookup(found)) - x).square().mean()))
        assert rounds or torch.equal(found, tokens)
    assert errors[0] > 1.2 * errors[1] > 1.2 * errors[2]


def test_the_search_moves_what_it_may_alone(quantizer):
    x = blurred(quantizer.lookup(torch.randint(32, (1, 6, 6))))
    tokens, movable = torch.randint(32, (1, 6, 6)), torch.rand(1, 6, 6) < 0.5
    config = SearchConfig(rounds=6, curvature=2.0)
    found = search_tokens(tokens, quantizer, blurred, x, config=config, movable=movable)
    changed = found != tokens
    assert changed.any() and not changed[~movable].any()


def striped(codes):
    """A decoder with 16 px a token: brightness from one number, stripes from another."""
    level, strength = (F.interpolate(codes[:, i : i + 1], scale_factor=16) for i in (0, 1))
    stripes = torch.arange(level.shape[-1]).remainder(4).sub(1.5).sign()
    return (level + strength * stripes).expand(-1, 3, -1, -1)


def test_the_search_can_weigh_structure(quantizer):
    x = 0.5 * striped(quantizer.lookup(torch.randint(32, (1, 8, 8))))
    x = x + 0.3 * torch.randn(1, 3, 128, 128)
    tokens = torch.randint(32, (1, 8, 8))
    distances = []
    for weight in (0.0, 1.0):
        config = SearchConfig(rounds=8, curvature=20.0, structure=weight)
        tokens = search_tokens(tokens, quantizer, striped, x, config=config)
        distances.append(float(structure_distance(striped(quantizer.lookup(tokens)), x)))
    assert distances[1] < 0.95 * distances[0]


def test_the_search_weighs_bits_against_the_error(quantizer):
    x = blurred(quantizer.lookup(torch.randint(32, (1, 6, 6))))
    nearest = torch.randint(32, (1, 6, 6))
    bits = 8 * torch.rand(32, 6, 6)
    errors, spent = [], []
    for rate in (0.0, 0.2, 50.0):
        config = SearchConfig(rounds=6, curvature=2.0, rate=rate)
        tokens = search_tokens(nearest, quantizer, blurred, x, config=config, bits=lambda _: bits)
        errors.append(float((blurred(quantizer.lookup(tokens)) - x).square().mean()))
        spent.append(float(bits.gather(0, tokens).sum()))
    assert errors == sorted(errors)
    assert spent[0] > 1.2 * spent[1] > 1.2 * spent[2]


def test_a_styled_decoder_starts_neutral_and_then_hears_the_guidance():
    decoder = HyperDecoder(16, 4, (8, 8), (2, 1), 6, guidance_width=4)
    codes, low, high = Codes(torch.randn(1, 6, 3, 3)), torch.zeros(1, 4), torch.ones(1, 4)
    for block in (b for blocks in decoder.blocks for b in blocks):
        torch.nn.init.normal_(block.narrow.weight)
    assert torch.equal(decoder(codes, low).start, decoder(codes, high).start)
    for layer in (s for styles in decoder.styles for s in styles):
        torch.nn.init.normal_(layer.weight)
    assert not torch.allclose(decoder(codes, low).start, decoder(codes, high).start)


def test_coarse_codes_join_the_fine_ones_below_them_and_say_nothing_at_first():
    coarse = {"coarse_widths": (8, 8, 8), "coarse_depths": (1, 1, 1)}
    decoder = HyperDecoder(16, 4, (8,), (1,), 6, 4, **coarse)
    fine, none, told = torch.randn(1, 6, 5, 8), torch.zeros(1, 6, 2, 2), torch.ones(1, 4)
    coarse, sent = torch.randn(1, 6, 2, 2), torch.ones(1, 1, 5, 8)

    def start(*codes):
        return decoder(Codes(*codes), told).start

    assert torch.equal(start(fine, sent, coarse), start(fine, sent, none))
    torch.nn.init.normal_(decoder.join.weight)
    changed = (start(fine, sent, coarse) - start(fine, sent, none)).abs().amax((0, 1)) > 0
    assert changed.all() and changed.shape == (10, 16)
    assert not torch.equal(start(fine, sent, coarse), start(fine, 0 * sent, coarse))


def error(image, other):
    return np.square(np.asarray(image, float) - np.asarray(other, float)).mean()


def test_more_effort_comes_closer_to_the_picture(shipped):
    image = picture(192, 128)
    found = {effort: shipped.encode(image, caption="", effort=effort) for effort in EFFORTS}
    far = [error(image, shipped.decode(found[e], preset="faithful")) for e in EFFORTS]
    assert far == sorted(far, reverse=True)
    assert far[1] < 0.97 * far[0]
    assert shipped.encode(image, caption="").to_bytes() == found["normal"].to_bytes()


@pytest.mark.parametrize("tokens", [10, 40, 90])  # of 6 coarse and 96 fine ones
def test_a_part_of_the_tokens_is_searched_for_what_it_completes_to(shipped, tokens):
    image = Image.open(EXAMPLES_DIR / "kodim23-parrots.jpg").resize((185, 120))  # no whole tokens
    sure = replace(shipped.levels[FINE.name].search, best_rounds=3)
    levels = {**shipped.levels, FINE.name: replace(shipped.levels[FINE.name], search=sure)}
    codec, shares = replace(shipped, levels=levels), []
    found = codec.look(image, caption="", effort="best")
    before = codec.write(found, count=tokens)
    better = codec.complete(image, found, before)
    after = codec.encode(
        image, "hybrid", caption="", effort="best", tokens=tokens, progress=shares.append
    )
    assert after == codec.write(better, count=tokens) and after != before
    assert error(image, codec.decode(after)) < 0.99 * error(image, codec.decode(before))
    assert shares == sorted(set(shares)) and shares[-1] == 1.0 and len(shares) > 4
    for level, sent in (("coarse", after.sent.coarse), ("fine", after.sent.fine)):
        start = found if after.sent.fine >= 64 else found._replace(fine=found.nearest)
        was, now = (getattr(grids, level) for grids in (start, better))
        rest = coding_order("qlds", was.shape)[sent:]
        assert np.array_equal(was.ravel()[rest], now.ravel()[rest])  # what is not sent


def test_stand_ins_say_what_their_names_do():
    codebook, p = torch.eye(3), torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]]).repeat(500, 1)
    made = {name: stand_in(p, codebook) for name, stand_in in STAND_INS.items()}
    assert torch.equal(made["expected"], p) and not made["nothing"].any()
    assert torch.equal(made["likeliest"][:2], torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
    assert torch.allclose(made["drawn"].view(500, 2, 3).mean(0), p[:2], atol=0.07)
    assert set(made["drawn"].flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(made["drawn"], STAND_INS["drawn"](p, codebook))
    assert torch.allclose(made["blend"], (made["expected"] + made["drawn"]) / 2)


def test_what_is_sent_whole_or_in_less_time_is_left_as_it_is(shipped):
    image = picture(64, 64)
    for effort, mode in (("normal", "ultra-low"), ("best", "extreme")):
        found = shipped.look(image, caption="", effort=effort)
        assert shipped.complete(image, found, shipped.write(found, mode)) is found
    for count in (0, 1):  # the caption alone, a coarse token
        assert shipped.complete(image, found, shipped.write(found, count=count)) is found


def test_completing_can_be_cancelled_between_tiles(shipped, monkeypatch):
    image = picture(640, 64)  # two tiles
    found = shipped.look(image, caption="", effort="fast")._replace(effort="best")
    decoded = counted(monkeypatch, LatentAutoencoder, "_decode")
    completing = shipped.completing(image, found, shipped.write(found, "ultra-low"))
    assert next(completing).tokens is None
    once = len(decoded)
    completing.close()
    assert 0 < len(decoded) == once


def test_fast_takes_the_nearest_codes_and_asks_no_entropy_model(shipped, unsearched, monkeypatch):
    image = picture(192, 128)
    nearest = unsearched.look(image, caption="")
    for level in (COARSE, FINE):
        prior = shipped.levels[level.name].prior
        monkeypatch.setattr(prior, "choices", lambda *a, **k: pytest.fail("searched"))
    found = shipped.look(image, caption="", effort="fast")
    assert np.array_equal(found.fine, nearest.fine)
    assert np.array_equal(found.coarse, nearest.coarse)
    # Nor does a file of few tokens, for which nothing is searched.
    few = shipped.encode(image, "ultra-low", caption="")
    monkeypatch.undo()
    searched = shipped.look(image, caption="")
    assert found.nearest is None and np.array_equal(searched.nearest, nearest.fine)
    assert (searched.fine != searched.nearest).any()
    assert few == shipped.write(searched, "ultra-low") == shipped.write(found, "ultra-low")


def test_the_command_hands_it_on(photo, unsearched, shipped, monkeypatch, tmp_path):
    monkeypatch.setattr("percov2_core.weights.load_codec", lambda name: shipped)
    out = tmp_path / "x.pcv2"
    assert main(["compress", str(photo), "-o", str(out), "--effort", "fast"]) == 0
    assert out.read_bytes() == unsearched.encode(Image.open(photo)).to_bytes()


def test_an_effort_that_there_is_not_is_named(shipped):
    with pytest.raises(ConfigError, match="effort must be one of fast, normal, best, got 'max'"):
        shipped.look(picture(), effort="max")
