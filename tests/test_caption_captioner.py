"""Captioners by name; BLIP is run with a tiny random network of the real classes."""

from pathlib import Path

import pytest
from PIL import Image

from percov2_core.caption.captioner import BLIP_MODEL, get_captioner, load_blip
from percov2_core.caption.describer import describe
from percov2_core.errors import ConfigError, UnavailableError

PICTURE = Image.new("RGB", (40, 30), (90, 120, 200))
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[ENC]", "[DEC]", "a", "blue", "dog"]


@pytest.fixture
def tiny_blip(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    import torch
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(0)
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(VOCABULARY), "intermediate_size": 16, "encoder_hidden_size": 16}
    special = {"bos_token_id": 6, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = transformers.BlipConfig(
        text_config={**layers, **text, **special, "max_position_embeddings": 64},
        vision_config={**layers, "intermediate_size": 16, "image_size": 32, "patch_size": 16},
    )
    transformers.BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    pixels = BlipImageProcessorPil(size={"height": 32, "width": 32})
    transformers.BlipProcessor(pixels, tokenizer).save_pretrained(tmp_path)
    return tmp_path


def test_blip_writes_words_of_its_own_vocabulary(tiny_blip):
    captioner = get_captioner("blip", blip=str(tiny_blip))
    assert captioner.name == "blip"
    caption = captioner(PICTURE)
    assert caption == captioner(PICTURE)
    assert set(caption.split()) <= set(VOCABULARY)


def test_blip_is_loaded_once_and_prepares_pixels_with_pil(tiny_blip):
    captioner = load_blip(str(tiny_blip), "cpu")
    assert captioner is get_captioner("blip", blip=str(tiny_blip))
    assert type(captioner.processor.image_processor).__name__ == "BlipImageProcessorPil"


def test_absent_weights_are_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.delenv("PERCOV2_ALLOW_DOWNLOAD", raising=False)
    with pytest.raises(UnavailableError) as caught:
        get_captioner("blip", blip=str(tmp_path / "nothing"))
    message = str(caught.value)
    assert message.startswith("captioner 'blip': ")
    assert "set PERCOV2_ALLOW_DOWNLOAD=1" in message
    assert "\n" not in message


def test_the_hub_is_not_asked_unless_allowed(monkeypatch, tmp_path):
    monkeypatch.delenv("PERCOV2_ALLOW_DOWNLOAD", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError, match="is not here"):
        get_captioner("blip", blip=f"{BLIP_MODEL}-absent")


def test_the_describer_is_a_captioner():
    captioner = get_captioner("describer")
    assert (captioner.name, captioner(PICTURE)) == ("describer", describe(PICTURE))


def test_fixed_says_the_users_text():
    captioner = get_captioner("fixed", text="a red barn")
    assert (captioner.name, captioner(PICTURE)) == ("fixed", "a red barn")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fixed", "captioner 'fixed' needs a text, got none"),
        ("clip", "captioner must be one of auto, describer, fixed, blip, got 'clip'"),
    ],
)
def test_a_captioner_that_cannot_be_made_says_why(name, message):
    with pytest.raises(ConfigError, match=message):
        get_captioner(name)
