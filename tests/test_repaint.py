"""The second painter: what must hold for any weights, against the published pipelines; that it adds
texture; and who is told what where it cannot be had."""

import shutil
from contextlib import closing
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.cli import main
from percov2_core.config import PRESETS
from percov2_core.errors import ConfigError, WeightsError
from percov2_core.evaluation.protocol import to_tensor
from percov2_core.flow.sampler import sigmas, tiles
from percov2_core.flow.transformer import FlowConfig, FlowModel
from percov2_core.metrics.distortion import ms_ssim
from percov2_core.painting import Manner, Step
from percov2_core.repaint import MEANS_PX, keep_means, usual_strength
from percov2_core.weights import load_codec, open_painter
from percov2_core.weights.base import SCHEDULER_FILE, load_repainter, load_times, scheduled
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import TINY
from tests import tiny_painter
from tests.tiny import ROOT, counted, edit_json, picture, tiny_folder
from tests.tiny_sd3 import tiny_sd3_folder

CAPTION = "A red house, by the sea."
SIZE = (96, 64)
MANNER = Manner(strength=0.6, steps=4, guidance=4.3, seed=3, held=False)


@pytest.fixture(scope="module")
def second():
    return load_repainter(str(tiny_sd3_folder()), Residency(device="cpu"))


@pytest.fixture(scope="module")
def codec():
    """The tiny codec with painters of its own."""
    return load_codec(tiny_folder(), device="cpu")


def painted(second, manner, start=None, caption=CAPTION, size=SIZE):
    """The last step."""
    own = None if start is None else [Step(1, 1, lambda: start, start)]
    *_, last = second.paint(own, caption, size, manner)
    return last


def published(kind, t5):
    absent = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = kind.from_pretrained(tiny_sd3_folder(), local_files_only=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("t5", [True, False])
def test_it_paints_to_the_bit_what_the_published_pipelines_paint(t5):
    second = load_repainter(str(tiny_sd3_folder()), Residency(device="cpu", t5=t5))
    from_text = published(StableDiffusion3Pipeline, t5)
    from_image = published(StableDiffusion3Img2ImgPipeline, t5)
    start, size = picture(*SIZE), {"width": SIZE[0], "height": SIZE[1]}
    for steps, guidance in product((4, 28), (1.0, 7.0)):
        manner = MANNER._replace(steps=steps, guidance=guidance)
        for strength in (None, 0.3, 1.0) if steps == 4 else (None, 0.6)[: round(guidance)]:
            how = {"num_inference_steps": steps, "guidance_scale": guidance, **size}
            how |= {"generator": torch.Generator("cpu").manual_seed(manner.seed)}
            if strength is None:
                theirs = from_text(CAPTION, output_type="latent", **how).images
                ours = painted(second, manner)
            else:
                how |= {"image": start, "strength": strength}
                theirs = from_image(CAPTION, output_type="latent", **how).images
                ours = painted(second, manner._replace(strength=strength), start)
            assert torch.equal(ours.preview.args[0], theirs)


def test_without_strength_it_returns_the_round_trip_of_the_autoencoder(second):
    start = picture(*SIZE)
    x = to_tensor(start) / 127.5 - 1
    with torch.no_grad():
        back = second.vae.vae.decode(second.vae.vae.encode(x).latent_dist.mean).sample
    wanted = ((back[0].clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1)
    last = painted(second, MANNER._replace(strength=0.0, held=True), start)
    assert np.abs(np.asarray(last.picture) - wanted.numpy().astype(int)).max() <= 1  # of rounding
    assert (last.index, last.total, last.share) == (1, 1, 1.0)


def means(image):
    return F.avg_pool2d(to_tensor(image), MEANS_PX)


def untrained(seed):
    """A transformer that says what no trained one would."""
    torch.manual_seed(seed)
    return SD3Transformer2DModel(**TINY.transformer).eval().requires_grad_(False)


def test_held_means_are_those_of_the_own_picture_whatever_the_transformer_says(shipped, second):
    with Image.open(ROOT / "assets" / "examples" / "kodim23-parrots.jpg") as image:
        start = image.convert("RGB").crop((200, 100, 328, 196))
    for seed, strength in ((0, 0.4), (1, 1.0)):
        flow = FlowModel(untrained(seed), FlowConfig(start="noise"))
        wild = replace(second, vae=shipped.vae, flow=flow)
        manner = MANNER._replace(strength=strength, held=True)
        there_and_back = painted(wild, manner._replace(strength=0.0), start, size=start.size)
        lost = (means(there_and_back.picture) - means(start)).abs()
        own = [Step(1, 1, lambda: start, start)]
        free = painted(wild, manner._replace(held=False), start, size=start.size)
        assert (means(free.picture) - means(start)).abs().mean() > 2 * lost.mean()
        _, *steps = wild.paint(own, CAPTION, start.size, manner)
        for shown in (steps[0].preview(), steps[-1].picture):
            off = (means(shown) - means(start)).abs()
            assert off.mean() < lost.mean() and off.max() <= 0.5  # half a level, of rounding


def test_means_are_kept_at_the_ends_of_the_scale_too():
    torch.manual_seed(0)
    wanted = torch.rand(1, 3, 32, 48).mul(8).sub(4).clamp(-1, 1)
    pixels = torch.randn(1, 3, 16, 24).mul(3)
    box = (..., slice(8, 24), slice(16, 40))
    kept = keep_means(pixels, box, wanted=wanted)
    assert kept.abs().max() <= 1 + 1e-6
    difference = F.avg_pool2d(kept, MEANS_PX) - F.avg_pool2d(wanted[box], MEANS_PX)
    assert difference.abs().max() < 1e-5
    assert torch.allclose(keep_means(wanted[box], box, wanted=wanted), wanted[box], atol=1e-5)


def test_a_trained_one_adds_texture_and_keeps_the_layout(shipped, monkeypatch):
    found = sorted((ROOT / "assets" / "examples").glob("*.jpg"))
    pictures = [tiny_painter.square(path, 256) for path in found]
    unseen = [pictures.pop(7), pictures.pop(4)]
    trained = tiny_painter.train(shipped.vae, pictures, steps=150, lr=4e-3)
    monkeypatch.setattr(shipped, "painters", lambda name: trained)
    for image in unseen:
        stream = shipped.encode(image, size=62, effort="fast", caption="")
        own = shipped.decode(stream)
        again = shipped.decode(stream, painter="tiny", fidelity=0.2, guidance=1.0)
        swd = [tiny_painter.patch_swd(image, shown) for shown in (own, again)]
        assert swd[1] < 0.97 * swd[0]
        layout = [ms_ssim(to_tensor(image), to_tensor(shown)).item() for shown in (own, again)]
        assert layout[1] > 0.85 * layout[0]
        assert (means(again) - means(own)).abs().max() <= 0.5


def test_a_file_is_repainted_in_its_own_size_and_less_of_it_is_repainted_more(codec, second):
    painter, image = str(tiny_sd3_folder()), picture(150, 84)
    stream = codec.encode(image, "ultra-low", caption=CAPTION, seed=5)
    first = codec.decode(stream, painter=painter, steps=4)
    assert first.size == image.size and first != codec.decode(stream)
    assert first == codec.decode(stream, painter=painter, steps=4, seed=5)
    assert first != codec.decode(stream, painter=painter, steps=4, seed=6)
    manner = Manner(strength=usual_strength(stream, "balanced"), steps=4, guidance=5.5, seed=5)
    whole = painted(second, manner, codec.decode(stream), size=image.size)
    assert whole.picture == first
    kept = painted(second, manner._replace(strength=0.0), codec.decode(stream), size=image.size)
    assert codec.decode(stream, painter=painter, fidelity=1.0) == kept.picture
    total = Stream.blank((512, 512), "hybrid", 0, tokens=0).tokens_total
    for preset in PRESETS:
        counts = [0, total.coarse, total.coarse + 40, total.coarse + 200, sum(total)]
        sizes = [Stream.blank((512, 512), "hybrid", 0, tokens=count) for count in counts]
        strengths = [usual_strength(size, preset) for size in sizes]
        assert strengths[0] == 1.0 and strengths == sorted(set(strengths), reverse=True)
    vivid = [usual_strength(stream, preset) for preset in PRESETS]
    assert vivid == sorted(set(vivid))


def test_a_caption_alone_is_text_to_image_in_the_size_of_the_file(codec, tmp_path, capsys):
    stream = codec.encode(picture(150, 84), "hybrid", caption=CAPTION)
    painter = str(tiny_sd3_folder())
    ours = codec.decode(stream, painter=painter, steps=2, guidance=3.0, fidelity=0.9)
    how = {"num_inference_steps": 2, "guidance_scale": 3.0, "width": 160, "height": 96}
    how["generator"] = torch.Generator("cpu").manual_seed(0)
    theirs = published(StableDiffusion3Pipeline, t5=True)(CAPTION, **how).images[0]
    assert ours == theirs.crop((0, 0, 150, 84))
    file, out = tmp_path / "a.pcv2", tmp_path / "a.png"
    file.write_bytes(stream.to_bytes())
    words = ["decompress", str(file), "-o", str(out), "--model", str(tiny_folder())]
    assert main([*words, "--painter", painter, "--steps", "2", "--guidance", "3"]) == 0
    told = f"150x84 from {len(stream.to_bytes())} bytes, painted by {painter} from the caption "
    assert capsys.readouterr().out == told + "alone\n"
    with Image.open(out) as image:
        assert image.tobytes() == ours.tobytes()


def test_a_closed_painting_runs_no_further_step(codec, second, monkeypatch):
    contents = codec.read(codec.encode(picture(*SIZE), "ultra-low", caption=""))
    monkeypatch.setattr(codec, "painters", lambda name: second)
    calls = counted(monkeypatch, second.flow.transformer, "forward")
    with closing(codec.paint(contents, painter="tiny", steps=10, fidelity=0.0)) as steps:
        shown = [next(steps) for _ in range(4)]
    assert [step.index for step in shown][-1] >= 1 and {step.total for step in shown} == {10}
    assert shown[0].index == 0 and shown[0].preview().size == SIZE
    assert sorted(step.share for step in shown) == [step.share for step in shown]
    assert len(calls) == shown[-1].index


def test_a_picture_larger_than_the_base_was_trained_on_goes_through_in_tiles(second):
    small = replace(second, flow=FlowModel(untrained(0), FlowConfig(start="noise", tile=8)))
    manner = MANNER._replace(strength=1.0, steps=2, held=True)
    start = picture(*SIZE)
    *steps, last = small.paint([Step(1, 1, lambda: start, start)], CAPTION, SIZE, manner)
    assert last.picture.size == SIZE and last.share == 1.0
    assert len(steps) == 1 + 2 * len(tiles(8, 12, 8)) - 1
    assert (means(last.picture) - means(start)).abs().max() <= 0.5


def test_times_are_those_at_which_the_published_scheduler_looks(tmp_path):
    base = shutil.copytree(tiny_sd3_folder(), tmp_path / "base")
    configs = ({"shift": 3.0}, {"use_dynamic_shifting": True}, {"shift_terminal": 0.1})
    for steps, config in product((4, 28), configs):
        scheduler = FlowMatchEulerDiscreteScheduler(**config)
        scheduler.save_pretrained(base / "scheduler")
        mu = calculate_shift(4 * 6, 256, 4096, 0.5, 1.15) if "use_d" in str(config) else None
        scheduler.set_timesteps(steps, mu=mu)
        times = load_times(base)
        assert times(steps, 8, 12) == scheduler.sigmas.tolist() == times(steps, 8, 12)
    found = scheduled(FlowMatchEulerDiscreteScheduler(shift=3.0), 4, 8, 12)
    assert [round(t, 3) for t in found] == [1.0, 0.858, 0.602, 0.009, 0.0]
    embedded = sigmas(4, 3.0)
    assert [round(t, 3) for t in embedded] == [1.0, 0.9, 0.75, 0.5, 0.0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"_class_name": "Other"}, "_class_name must be 'FlowMatchEulerDiscreteScheduler', got"),
        ({"stochastic_sampling": True}, "stochastic_sampling must be False, got True"),
        ({"num_train_timesteps": 500}, "num_train_timesteps must be 1000, got 500"),
    ],
)
def test_a_scheduler_that_euler_steps_do_not_follow_is_refused(setting, message, tmp_path):
    base = shutil.copytree(tiny_sd3_folder(), tmp_path / "base")
    edit_json(base / SCHEDULER_FILE, **setting)
    with pytest.raises(WeightsError, match=message):
        load_times(base)


def test_other_bases_are_had_by_name_and_the_text_encoder_can_stay_away(codec, monkeypatch):
    monkeypatch.setenv("PERCOV2_SD3_BASE", str(tiny_sd3_folder()))
    stream = codec.encode(picture(), "extreme", caption=CAPTION)
    names = ("sd3-medium", "sd3.5-medium", str(tiny_sd3_folder()))
    first, *others = (codec.decode(stream, painter=name, steps=2) for name in names)
    assert others == [first, first]
    kept = codec.painters("sd3-medium")
    assert codec.painters("sd3-medium") is kept  # loaded once


def test_who_cannot_paint_is_told_before_anything_runs(monkeypatch, capsys, tmp_path):
    codec = load_codec(tiny_folder(), device="cpu")
    for name in ("PERCOV2_SD3_BASE", "PERCOV2_ALLOW_DOWNLOAD"):
        monkeypatch.delenv(name, raising=False)
    stream = codec.encode(picture(), "extreme", caption="")
    known = "own, sd3-medium, sd3.5-medium, a folder in diffusers' layout, got 'sd4'"
    with pytest.raises(ConfigError, match=f"painter must be one of {known}"):
        codec.decode(stream, painter="sd4")
    with pytest.raises(ConfigError, match="fidelity: needs a painter other than 'own', got 'own'"):
        codec.decode(stream, fidelity=0.5)
    with pytest.raises(ConfigError, match=r"fidelity must be in \[0, 1\], got 2"):
        codec.decode(stream, painter="sd3-medium", fidelity=2)
    missing = "is not in the Hub's cache: run `python -m percov2_core weights --model sd3-medium"
    with pytest.raises(WeightsError, match=missing):
        codec.paint(codec.read(stream), painter="sd3-medium")
    assert open_painter(codec, "sd3-medium") == "'sd3-medium' needs a GPU, and there is none"
    assert open_painter(codec, "sd4").endswith("got 'sd4'")
    assert open_painter(codec, "") == open_painter(codec, str(tiny_sd3_folder())) == ""
    (tmp_path / "a.pcv2").write_bytes(stream.to_bytes())
    words = ["decompress", str(tmp_path / "a.pcv2"), "-o", str(tmp_path / "a.png")]
    assert main([*words, "--painter", "sd3-medium", "--model", str(tiny_folder())]) == 1
    assert missing in capsys.readouterr().err and not (tmp_path / "a.png").exists()
