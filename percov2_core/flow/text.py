"""Caption -> what the flow transformer attends to.

B batch, L caption length in tokens (padding included), C width, P pooled width.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

PAD, UNKNOWN, END = "<pad>", "<unk>", "<end>"


class TextEmbedding(NamedTuple):
    """What the captions say; an empty caption is the unconditional branch of guidance."""

    sequence: Tensor  # (B, L, C) float
    pooled: Tensor  # (B, P) float


class TextEmbedder(Protocol):
    """What turns captions into embeddings: `TextEncoder` or `weights.base.SD3TextEncoder`."""

    def encode(self, captions: list[str]) -> TextEmbedding:
        """Captions -> embedding, on the model's device."""


class TextEncoder(nn.Module):
    """A word tokenizer and a small CLIP text model."""

    def __init__(self, model: CLIPTextModelWithProjection, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    def token_ids(self, captions: list[str]) -> Tensor:
        """-> (B, L) int64, cut or padded to the model's length."""
        how = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        length = self.model.config.max_position_embeddings
        ids: Tensor = self.tokenizer(captions, max_length=length, **how)["input_ids"]
        return ids

    def encode(self, captions: list[str]) -> TextEmbedding:
        """Captions -> embedding, on the model's device."""
        out = self.model(self.token_ids(captions).to(self.model.device))
        return TextEmbedding(out.last_hidden_state, out.text_embeds)


def word_tokenizer(vocabulary: tuple[str, ...], max_length: int) -> PreTrainedTokenizerFast:
    """One id per known word and comma; anything else is <unk>; <end> closes a caption."""
    words = {word: i for i, word in enumerate((PAD, UNKNOWN, END, *vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    marks = pre_tokenizers.Split(Regex("[,.;]"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])
    end = [(END, words[END])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=end)
    names = {"pad_token": PAD, "unk_token": UNKNOWN, "eos_token": END}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **names)


def small_text_encoder(
    vocabulary: tuple[str, ...], *, width: int = 128, layers: int = 2, max_length: int = 48
) -> TextEncoder:
    """A fresh encoder for these words, to be trained with the flow model."""
    tokenizer = word_tokenizer(vocabulary, max_length)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        max_position_embeddings=max_length,
        projection_dim=width,
        hidden_act="gelu",
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return TextEncoder(CLIPTextModelWithProjection(config), tokenizer)
