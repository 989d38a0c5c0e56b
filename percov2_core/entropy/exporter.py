"""The one door from floats to the integer twin: a trained model -> `exact.ExactModel`.

Weights become 8-bit integers, one scale per output channel; the gain of a norm is folded into the
matrix behind it. Everything that the twin multiplies, adds or looks up is fixed here and stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor, nn

from percov2_core.entropy import exact
from percov2_core.entropy import masked_config as mc
from percov2_core.entropy import masked_model as mm

WEIGHT_LIMIT = 127
EXPONENTIAL_BITS = 30
_NORMED, _RESIDUAL = 2.0**-exact.NORM_BITS, 2.0**-exact.RESIDUAL_BITS
_PLACES = ("rows", "columns", "word_places")
_LOGIT_UNIT = log(2) * 2.0**-exact.LOGIT_BITS  # stored in bits, given in nats
EXPONENTIAL_RANGE = 20  # bits below the likeliest token at which the probability becomes zero


@torch.no_grad()
def export(model: mm.MaskedImageModel) -> exact.ExactModel:
    """Make the integer twin of a trained model; WeightsError if a sum cannot be proven exact."""
    tables = {
        **_mixed(model, "codes"),
        **_mixed(model, "words"),
        **{name: _to_grid(getattr(model, name).weight, _RESIDUAL) for name in _PLACES},
        "exponential": _exponential(),
        **_product("out", model.out, step=_NORMED, unit=_LOGIT_UNIT, gain=model.norm.gain),
    }
    if model.config.ratio:
        tables |= _mixed(model, "parents") | {"below": _to_grid(model.below.weight, _RESIDUAL)}
    for name, tower in (("content", model.content), ("queries", model.queries)):
        tables |= {f"{name}.bias": _bias(tower.bias), f"{name}.word_bias": _bias(tower.word_bias)}
        for i, layer in enumerate(tower.layers):
            assert isinstance(layer, mm.Layer)
            tables |= _layer(f"{name}.{i}", layer)
    stored = {name: table.cpu().numpy() for name, table in tables.items()}
    return exact.ExactModel(model.config, stored)


@torch.no_grad()
def restore(twin: exact.ExactModel, config: mc.MaskedModelConfig) -> mm.MaskedImageModel:
    """A floating-point model that a twin could come from, to train on. `config` may add to the
    twin's a coarser level: it changes nothing at first."""
    model = mm.MaskedImageModel(config)
    t = {name: torch.from_numpy(table) for name, table in twin.tables.items()}
    code_step = 4 / exact.CODE_LIMIT  # embeddings of about unit variance
    both = bool(config.ratio and twin.config.ratio)
    if config.ratio and not both:
        for parameter in (*model.mix_parents.parameters(), model.below.weight):
            nn.init.zeros_(parameter)
    for name in ("codes", "words", *["parents"] * both):
        getattr(model, name).weight.copy_(t[name] * code_step)
        _fill(getattr(model, f"mix_{name}"), t, f"mix_{name}", step=code_step, unit=_RESIDUAL)
    for name in (*_PLACES, *["below"] * both):
        getattr(model, name).weight.copy_(t[name] * _RESIDUAL)
    _fill(model.out, t, "out", step=_NORMED, unit=_LOGIT_UNIT)
    for name, tower in (("content", model.content), ("queries", model.queries)):
        tower.bias.copy_(t[f"{name}.bias"] * 2.0**-exact.SCORE_BITS)
        tower.word_bias.copy_(t[f"{name}.word_bias"] * 2.0**-exact.SCORE_BITS)
        for i, layer in enumerate(tower.layers):
            assert isinstance(layer, mm.Layer)
            for part, (step, unit) in _units(layer, t[f"{name}.{i}.bits"].tolist()).items():
                _fill(getattr(layer, part), t, f"{name}.{i}.{part}", step=step, unit=unit)
    return model


def _fill(linear: nn.Linear, t: dict[str, Tensor], name: str, *, step: float, unit: float) -> None:
    """The inverse of `_product`."""
    scale = t[f"{name}.scale"].double() * (unit / step)
    linear.weight.copy_(t[f"{name}.weight"].T * scale[:, None])
    linear.bias.copy_((t[f"{name}.offset"].double() - 0.5) * unit)


def _units(layer: mm.Layer, bits: Sequence[int]) -> dict[str, tuple[float, float]]:
    """What one unit of input and of output of each matrix stands for."""
    mixed_step, hidden_step = (2.0**-b for b in bits)
    # The query's division by the root of the head width is folded into its unit.
    root = (layer.query.out_features // layer.heads) ** 0.5
    return {
        "query": (_NORMED, root * 2.0**-exact.QUERY_BITS),
        "key": (_NORMED, 2.0**-exact.KEY_BITS),
        "value": (_NORMED, 2.0**-exact.VALUE_BITS),
        "out": (mixed_step, _RESIDUAL),
        "up": (_NORMED, hidden_step),
        "down": (hidden_step, _RESIDUAL),
    }


def _layer(name: str, layer: mm.Layer) -> dict[str, Tensor]:
    """Tables of one layer; what its attention and its hidden part put out is as fine as fits."""
    mixed_bits = _finest_bits(layer.out.weight, clip=mc.VALUE_CLIP)
    hidden_bits = _finest_bits(layer.down.weight, clip=mc.HIDDEN_CLIP)
    into, memory, up = layer.norm.gain, layer.memory_norm.gain, layer.hidden_norm.gain
    gains = {"query": into, "key": memory, "value": memory, "up": up}
    tables = {f"{name}.bits": torch.tensor([mixed_bits, hidden_bits], dtype=torch.int32)}
    for part, (step, unit) in _units(layer, (mixed_bits, hidden_bits)).items():
        linear = getattr(layer, part)
        tables |= _product(f"{name}.{part}", linear, step=step, unit=unit, gain=gains.get(part))
    return tables


def _mixed(model: mm.MaskedImageModel, name: str) -> dict[str, Tensor]:
    """Tables of embeddings, and of the matrix that mixes those of a neighbourhood."""
    table, mix = getattr(model, name).weight, getattr(model, f"mix_{name}")
    step = float(table.abs().max()) / exact.CODE_LIMIT
    embeddings = torch.round(table / step).to(torch.int8)
    return {name: embeddings, **_product(f"mix_{name}", mix, step=step, unit=_RESIDUAL)}


def _product(
    name: str, linear: nn.Linear, *, step: float, unit: float, gain: Tensor | None = None
) -> dict[str, Tensor]:
    """Tables of one matrix, with (in,) factors `gain` folded into it. One unit of its integer input
    stands for `step`, one of its integer output for `unit`."""
    weight, scale = _quantised(linear.weight if gain is None else linear.weight * gain)
    return {
        f"{name}.weight": weight.T.contiguous(),
        f"{name}.scale": (scale * (step / unit)).float(),
        f"{name}.offset": (linear.bias.double() / unit + 0.5).float(),
    }


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) float -> int8 of the same shape and (out,) float64 scales."""
    scale = weight.double().abs().amax(1).clamp(min=1e-12) / WEIGHT_LIMIT
    return torch.round(weight.double() / scale[:, None]).to(torch.int8), scale


def _finest_bits(weight: Tensor, *, clip: float) -> int:
    """Bits behind the point for inputs up to `clip` whose sums still fit into float32."""
    longest = float(_quantised(weight)[0].double().abs().sum(1).max())
    return max(bits for bits in range(12) if (clip * 2**bits + 1) * longest < exact.FLOAT32_EXACT)


def _to_grid(table: Tensor, unit: float) -> Tensor:
    return torch.round(table.double() / unit).to(torch.int32)


def _bias(table: Tensor) -> Tensor:
    return _to_grid(table, 2.0**-exact.SCORE_BITS).clamp(-exact.BIAS_LIMIT, exact.BIAS_LIMIT)


def _exponential() -> Tensor:
    """2**30 * 2**(-i / 64), rounded; zero at the end."""
    i = torch.arange(EXPONENTIAL_RANGE << exact.LOGIT_BITS, dtype=torch.float64)
    table = torch.round(2.0 ** (EXPONENTIAL_BITS - i / 2**exact.LOGIT_BITS)).to(torch.int32)
    return torch.cat([table, torch.zeros(1, dtype=torch.int32)])
