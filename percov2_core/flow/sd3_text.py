"""Caption -> what Stable Diffusion 3 attends to: two CLIP text models and, optionally, T5.

The sequence is the last hidden state but one of both CLIP models side by side, padded with zeros
to T5's width, followed by T5's tokens; the pooled vector is both CLIP projections side by side
(Esser et al. 2024, section 4). Without T5 its part of the sequence is left out, not set to zero:
shorter and faster, and a checkpoint has to be trained as it is used.

B batch, L caption length in tokens, C = 4096 width, P = 2048 pooled width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percov2_core.flow.text import TextEmbedding


@dataclass(frozen=True, slots=True)
class Tower:
    """One text model and its tokenizer; `length` is the number of tokens a caption becomes."""

    model: Any
    tokenizer: Any
    length: int

    def ids(self, captions: list[str]) -> Tensor:
        """-> (B, length) int64, cut or padded."""
        ids: Tensor = self.tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )["input_ids"]
        return ids


class SD3TextEncoder(nn.Module):
    """The three frozen text models.

    Args:
        clip_l, clip_g: CLIP text models with projection.
        t5: An encoder, or None.
        width: C, the width of the sequence.
        device: Where captions are embedded. A model that rests elsewhere visits it.
    """

    def __init__(
        self, clip_l: Tower, clip_g: Tower, t5: Tower | None, *, width: int, device: torch.device
    ) -> None:
        super().__init__()
        self.towers = (clip_l, clip_g, t5)
        self.models = nn.ModuleList(tower.model for tower in self.towers if tower is not None)
        self.width = width
        self.device = device
        self._empty: TextEmbedding | None = None

    # Not as inference tensors: what is cached here may condition a training step later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def encode(self, captions: list[str]) -> TextEmbedding:
        """Captions -> (B, L, C) and (B, P) float32 on `device`; the empty caption is kept."""
        if captions != [""]:
            return self._encode(captions)
        if self._empty is None:
            self._empty = self._encode([""])
        return self._empty

    def _encode(self, captions: list[str]) -> TextEmbedding:
        clip_l, clip_g, t5 = self.towers
        left, right = self._clip(clip_l, captions), self._clip(clip_g, captions)
        sequence = torch.cat([left.sequence, right.sequence], dim=-1)
        sequence = F.pad(sequence, (0, self.width - sequence.shape[-1]))  # (B, 77, C)
        if t5 is not None:
            with visiting(t5.model, self.device):
                words = t5.model(t5.ids(captions).to(self.device)).last_hidden_state.float()
            sequence = torch.cat([sequence, words], dim=1)
        return TextEmbedding(sequence, torch.cat([left.pooled, right.pooled], dim=-1))

    def _clip(self, tower: Tower, captions: list[str]) -> TextEmbedding:
        with visiting(tower.model, self.device):
            ids = tower.ids(captions).to(self.device)
            out = tower.model(ids, output_hidden_states=True)
        return TextEmbedding(out.hidden_states[-2].float(), out.text_embeds.float())


@contextmanager
def visiting(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Bring a model to `device` while the block runs; its own copy stays where it rests."""
    home = next(model.parameters()).device
    if home.type == device.type and device.index in (None, home.index):
        yield
        return
    resting = [
        (module, name, tensor, tensor.data)
        for module in model.modules()
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        )
    ]
    try:
        model.to(device)
        yield
    finally:
        # Put back, not copied back: nothing has changed.
        for module, name, tensor, data in resting:
            tensor.data = data
            setattr(module, name, tensor)
