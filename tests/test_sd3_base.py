"""A base folder loads strictly and computes what diffusers' pipeline computes; the flow."""

import json
import shutil
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import T5EncoderModel

from percov2_core.errors import ConfigError, WeightsError
from percov2_core.flow.sampler import blend, draw_noise, sample, sigmas, tiles
from percov2_core.flow.text import TextEmbedding, small_text_encoder
from percov2_core.flow.transformer import (
    Conditions,
    FlowConfig,
    FlowModel,
    extend_patch_embedding,
    guidance_features,
)
from percov2_core.latent import LatentAutoencoder
from percov2_core.weights.base import load_base, load_text
from percov2_core.weights.files import WEIGHTS_FILE
from percov2_core.weights.networks import TEXT_WEIGHTS_FILE
from percov2_core.weights.parts import load_transformer
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import BASES, TINY, find_base_model
from tests.tiny import change_weights, edit_json, rename
from tests.tiny_sd3 import tiny_sd3_folder

CPU = Residency(device="cpu")
EMPTY = TextEmbedding(torch.zeros(1, 3, 8), torch.zeros(1, 4))
CAPTION = "A red house, by the sea."
SHORT = {"text_projection.weight": torch.zeros(2, 2)}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(tiny_sd3_folder(), tmp_path / "base")


@pytest.fixture(scope="module")
def pipeline():
    return StableDiffusion3Pipeline.from_pretrained(tiny_sd3_folder(), local_files_only=True)


def test_captions_are_embedded_as_published_and_without_t5_by_the_first_part(pipeline):
    base = load_base(tiny_sd3_folder(), residency=CPU, t5_tokens=24)
    ours = base.text.encode([CAPTION, ""])
    how = {"do_classifier_free_guidance": False, "max_sequence_length": 24}
    with torch.no_grad():
        theirs, _, pooled, _ = pipeline.encode_prompt([CAPTION, ""], None, None, **how)
    assert ours.sequence.shape == (2, 77 + 24, 96)
    assert torch.equal(ours.sequence, theirs)
    assert torch.equal(ours.pooled, pooled)
    assert base.text.encode(["sea " * 300]).sequence.shape[1] == 77 + 24  # longer ones are cut
    short = load_base(tiny_sd3_folder(), residency=replace(CPU, t5=False), t5_tokens=24).text
    whole = base.text.encode([CAPTION]).sequence
    assert torch.equal(short.encode([CAPTION]).sequence, whole[:, :77])
    assert len(short.models) == 2


def test_the_empty_caption_is_embedded_once_and_may_condition_training():
    text = load_base(tiny_sd3_folder(), residency=CPU, t5_tokens=8).text
    with torch.inference_mode():
        first = text.encode([""])
    assert text.encode([""]).sequence is first.sequence
    weight = torch.ones(1, requires_grad=True)
    (first.sequence * weight).sum().backward()  # an inference tensor would raise
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("steps", "guidance", "t5_tokens"), [(4, 4.0, 24), (28, 4.0, 0), (4, 1.0, 0), (28, 1.0, 24)]
)
def test_the_untrained_flow_paints_what_the_published_pipeline_paints(
    pipeline, steps, guidance, t5_tokens
):
    base = load_base(tiny_sd3_folder(), residency=CPU, t5_tokens=t5_tokens)
    transformer = load_transformer(tiny_sd3_folder() / "transformer", CPU)
    flow = FlowModel(extend_patch_embedding(transformer, 4), FlowConfig(start="noise"))
    noise = draw_noise((1, 16, 8, 8), 3, torch.device("cpu"))
    features = draw_noise((1, 4, 8, 8), 4, torch.device("cpu"))
    conditions = Conditions(torch.zeros_like(noise), features, base.text.encode([CAPTION]))
    how = {"times": base.times(steps, 8, 8), "guidance": guidance, "noise": noise}
    with torch.no_grad():
        *_, ours = sample(flow, conditions, base.text.encode([""]), **how)
    parts = pipeline.components
    if not t5_tokens:  # a model that was trained without it leaves its part out
        parts |= {"text_encoder_3": None, "tokenizer_3": None}
    how = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent"}
    how |= {"height": 64, "width": 64, "generator": torch.Generator("cpu").manual_seed(3)}
    theirs = StableDiffusion3Pipeline(**parts)(CAPTION, max_sequence_length=t5_tokens, **how).images
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, noise, atol=1e-1)


@pytest.mark.parametrize(("name", "millions"), [("sd3-medium", 2028), ("sd3.5-medium", 2243)])
def test_the_published_size_differs_in_the_patch_embedding_alone(name, millions):
    model = find_base_model(name)
    with torch.device("meta"):
        plain = SD3Transformer2DModel(**model.transformer)
        wide = extend_patch_embedding(SD3Transformer2DModel(**model.transformer), 32)
        vae = AutoencoderKL(**model.vae)
    assert round(plain.num_parameters() / 1e6) == millions
    assert round(vae.num_parameters() / 1e6) == 84
    shapes = {n: p.shape for n, p in plain.named_parameters()}
    changed = {n: tuple(p.shape) for n, p in wide.named_parameters() if p.shape != shapes[n]}
    assert changed == {"pos_embed.proj.weight": (1536, 48, 2, 2)}
    assert shapes["pos_embed.proj.weight"] == (1536, 16, 2, 2)


def test_the_autoencoder_scales_latents_as_published():
    vae = load_base(tiny_sd3_folder(), residency=CPU, t5_tokens=0).vae
    assert (vae.scale, vae.shift) == (1.5305, 0.0609)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        mean = vae.vae.encode(x).latent_dist.mean
        assert torch.equal(vae.encode(x), (mean - 0.0609) * 1.5305)


def test_a_picture_longer_than_a_tile_is_coded_and_painted_in_tiles():
    vae = LatentAutoencoder(AutoencoderKL(**{**TINY.vae, "sample_size": 64})).eval()
    seen = {vae.vae.encoder: [], vae.vae.decoder: []}
    for part in seen:
        part.register_forward_hook(lambda part, x, _: seen[part].append(max(x[0].shape[-2:])))
    with torch.no_grad():
        z = vae.encode(torch.rand(1, 3, 64, 160))
        y = vae.decode(z)
    assert (z.shape, y.shape) == ((1, 16, 8, 20), (1, 3, 64, 160))
    assert min(len(sides) for sides in seen.values()) > 2
    assert [max(sides) for sides in seen.values()] == [64, 8]


def test_shards_of_an_index_are_all_read(folder):
    place = folder / "text_encoder_3"
    T5EncoderModel.from_pretrained(place).save_pretrained(place, max_shard_size="20KB")
    (place / TEXT_WEIGHTS_FILE).unlink(missing_ok=True)
    _, *_, last = sorted(place.glob("model-*.safetensors"))  # at least two
    before = load_text(tiny_sd3_folder(), CPU, t5_tokens=8).encode([CAPTION])
    after = load_text(folder, CPU, t5_tokens=8).encode([CAPTION])
    assert torch.equal(before.sequence, after.sequence)
    last.unlink()
    with pytest.raises(WeightsError, match=r"text_encoder_3' cannot be read: "):
        load_text(folder, CPU, t5_tokens=8)


def test_older_files_have_numbers_of_positions_and_words_under_another_name(folder):
    before = load_base(folder, residency=CPU, t5_tokens=8).text.encode([CAPTION])
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    change_weights(folder / "text_encoder" / TEXT_WEIGHTS_FILE, lambda w: w.update(positions))
    path = folder / "text_encoder_3" / TEXT_WEIGHTS_FILE
    # As published: another setting, which must not leave the embedding random.
    edit_json(path.parent / "config.json", tie_word_embeddings=False)
    change_weights(path, lambda w: rename(w, "shared.weight", "encoder.embed_tokens.weight"))
    after = load_base(folder, residency=CPU, t5_tokens=8).text.encode([CAPTION])
    assert torch.equal(before.sequence, after.sequence)


def test_tokenizers_are_read_from_the_older_files_that_the_published_folder_has(folder):
    for name in ("tokenizer", "tokenizer_2"):
        place = folder / name
        model = json.loads((place / "tokenizer.json").read_text())["model"]
        (place / "vocab.json").write_text(json.dumps(model["vocab"]))
        (place / "merges.txt").write_text("#version: 0.2\n")
        (place / "tokenizer.json").unlink()
    before, after = (load_text(place, CPU, t5_tokens=0) for place in (tiny_sd3_folder(), folder))
    for caption in (CAPTION, "", "zebra's 12 stripes " * 20):
        assert torch.equal(before.encode([caption]).sequence, after.encode([caption]).sequence)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("transformer", lambda w: rename(w, "proj_out.bias", "a"), "out.bias is missing; a is unk"),
        ("vae", lambda w: w.pop("decoder.conv_in.weight"), r"decoder\.conv_in\.weight is missing$"),
        ("text_encoder_2", lambda w: w.update(SHORT), r"has shape \(2, 2\), expected \(40, 40\)$"),
        ("text_encoder_3", lambda w: w.pop("shared.weight"), "shared.weight is missing"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(folder, part, change, message):
    (path,) = (folder / part).glob("*.safetensors")
    change_weights(path, change)
    with pytest.raises(WeightsError, match=f"{part}': .*{message}") as caught:
        load_base(folder, residency=CPU)
        load_transformer(folder / "transformer", CPU)
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files_and_a_folder_that_is_no_base_are_named(folder):
    shutil.rmtree(folder / "tokenizer_3")
    with pytest.raises(WeightsError, match=r"weights: no file at .*tokenizer_3"):
        load_base(folder, residency=CPU)
    path = folder / "transformer" / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(WeightsError, match=r"transformer' cannot be read"):
        load_transformer(folder / "transformer", CPU)
    (folder / "model_index.json").unlink()
    with pytest.raises(WeightsError, match=r"base 'sd3-medium': no model_index\.json in folder"):
        load_base(folder, residency=CPU)
    with pytest.raises(ConfigError, match=r"base must be one of sd3-medium, sd3\.5-medium, got"):
        find_base_model("sd4")
    assert all(base.repository.startswith("stabilityai/") for base in BASES.values())


def silent():
    """A network that moves nothing."""

    def say(*, hidden_states, **_):
        return (torch.zeros_like(hidden_states[:, :16]),)

    return Mock(side_effect=say, dtype=torch.float32)


def test_guidance_costs_one_batch_of_two_and_nothing_when_it_is_one():
    model, how = silent(), {"noise": torch.ones(1, 16, 8, 8), "times": sigmas(3, shift=1.0)}
    for guidance in (2.5, 1.0):
        told = Conditions(torch.zeros(1, 16, 8, 8), torch.zeros(1, 2, 8, 8), EMPTY), EMPTY
        list(sample(FlowModel(model, FlowConfig()), *told, guidance=guidance, **how))
    asked = [len(call.kwargs["hidden_states"]) for call in model.call_args_list]
    assert asked == [2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (66, 64), (66, 200), (512, 512), (10, 300)])
def test_tiles_cover_the_grid_and_blend_to_the_same_field(size):
    field = torch.randn(1, 2, *size)
    boxes = tiles(*size, 64)
    parts = [field[box] for box in boxes]
    assert all(max(part.shape[-2:]) <= 64 for part in parts)
    assert torch.allclose(blend(parts, boxes, field.shape), field, atol=1e-6)


def test_a_network_that_says_nothing_leaves_the_start_where_it_is():
    flow = FlowModel(silent(), FlowConfig(start="codes", noise_scale=0.5))
    c = Conditions(torch.randn(1, 16, 8, 8), torch.zeros(1, 2, 8, 8), EMPTY)
    x = flow.first(c, torch.randn(1, 16, 8, 8))
    v = flow(x, torch.ones(1), c, torch.ones(1))
    assert torch.allclose(x - v, c.start, atol=1e-6)


def test_guidance_features_tell_guidances_apart():
    rows = guidance_features(torch.tensor([1.0, 1.5, 2.5, 4.0]), 8)
    assert rows.shape == (4, 8) and torch.cdist(rows, rows).fill_diagonal_(1.0).min() > 0.1
    beyond = guidance_features(torch.tensor([4.0, 12.0]), 8)
    assert torch.equal(beyond[0], beyond[1])


def test_words_outside_the_vocabulary_do_not_fail_and_long_captions_are_cut():
    encoder = small_text_encoder(("blue", "sky", ","), width=32, layers=1, max_length=6)
    ids = encoder.token_ids(["Blue sky, a zebra", "", "blue " * 50])
    assert ids.shape == (3, 6)
    assert ids[0].tolist()[:3] == encoder.token_ids(["blue sky,"])[0].tolist()[:3]
    assert encoder.encode(["blue sky"]).sequence.shape == (1, 6, 32)
