"""Floating-point operations of the flow transformer, counted from its settings.

Matrix products and convolutions only, two operations for each multiply and add, as
`torch.utils.flop_counter` counts them; a test compares both. N image patches and L text tokens
beside each other, width d, f = 4 d hidden units (Esser et al. 2024, figure 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TIME_FEATURES = 256  # fixed in diffusers' `CombinedTimestepTextProjEmbeddings`


def transformer_flops(
    config: Mapping[str, Any], *, height: int, width: int, text_tokens: int, batch: int = 1
) -> int:
    """Operations of one forward of `SD3Transformer2DModel`.

    Args:
        config: The transformer's own settings.
        height, width: Sides of the latent grid in cells.
        text_tokens: L, length of the text sequence.
        batch: Samples, the unconditional half of guidance included.
    """
    patch, d = int(config["patch_size"]), _inner(config)
    patches = (height // patch) * (width // patch)
    dual = set(config.get("dual_attention_layers") or ())
    layers = int(config["num_layers"])
    blocks = sum(
        _block(d, patches, text_tokens, last=i == layers - 1, dual=i in dual) for i in range(layers)
    )
    enter = patches * patch**2 * int(config["in_channels"]) * d
    leave = patches * d * patch**2 * int(config["out_channels"])
    text = text_tokens * int(config["joint_attention_dim"]) * d
    vectors = (_TIME_FEATURES + d + int(config["pooled_projection_dim"]) + d) * d
    modulation = 2 * d * d  # of the last norm
    return 2 * batch * (enter + leave + text + vectors + modulation + blocks)


def _block(d: int, patches: int, text: int, *, last: bool, dual: bool) -> int:
    """Multiply-adds of one joint block: its last one gives up the text."""
    both = patches + text
    image = (3 + 1 + 8) * d * d * patches  # query, key, value; output; two layers of f units
    words = (3 if last else 3 + 1 + 8) * d * d * text
    scores = 2 * both * both * d  # queries by keys, weights by values
    vectors = (9 if dual else 6) * d * d + (2 if last else 6) * d * d  # modulation, per sample
    second = 4 * d * d * patches + 2 * patches * patches * d if dual else 0
    return image + words + scores + vectors + second


def _inner(config: Mapping[str, Any]) -> int:
    return int(config["num_attention_heads"]) * int(config["attention_head_dim"])
