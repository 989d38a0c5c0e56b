"""The integer twin of the masked image model: the same frequencies on every machine.

Letters: K codebook size, D width, A heads. `session` runs what is held here.

Every activation is an integer. A matrix product adds integers whose partial sums are proven to
stay below 2**24 (carried in float32) or 2**53 (carried in float64), so the order of summation
cannot matter. The rest is table lookups and +, -, x, /, sqrt, floor, which IEEE 754 rounds alike
everywhere. Nothing here may be fused, replaced by a library's softmax or norm, or divided by way of
a reciprocal; NumPy does none of it by itself.

It is NumPy, on the CPU, wherever the networks run: the range coder is there anyway, and one
implementation needs one proof.

    unit of an integer   where
    2**-10               residual stream, position tables
    2**-9                after the norm
    2**-8, 2**-6, 2**-7  queries, keys, values
    2**-14               attention scores and their biases
    1/16000              attention weights
    2**-6                logits, in bits
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from percov2_core.entropy import masked_config as mc
from percov2_core.errors import WeightsError

FORMAT = "percov2-exact-1"

RESIDUAL_BITS, NORM_BITS = 10, 9
QUERY_BITS, KEY_BITS, VALUE_BITS = 8, 6, 7
SCORE_BITS = QUERY_BITS + KEY_BITS
LOGIT_BITS = 6
RESIDUAL_LIMIT = 2.0**22
QUERY_LIMIT = mc.QUERY_CLIP * 2**QUERY_BITS
KEY_LIMIT = mc.KEY_CLIP * 2**KEY_BITS
VALUE_LIMIT = mc.VALUE_CLIP * 2**VALUE_BITS - 1
BIAS_LIMIT = 2**21
LOGIT_LIMIT = 2.0**20
WEIGHT_TOTAL = 16000.0  # what the attention weights of one position add up to, at most
CODE_LIMIT = 127.0
TOTAL = 1 << 16  # what the frequencies of one token add up to

FLOAT32_EXACT, FLOAT64_EXACT = 2.0**24, 2.0**53

Floats: TypeAlias = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Product:
    """x -> floor((x @ weight) * scale + offset), the sum exact."""

    weight: Floats  # (in, out) integers, in float64 if the sums are proven for that only
    scale: Floats  # (out,) float32
    offset: Floats  # (out,) float32, one half for rounding included

    def __call__(self, x: Floats) -> Floats:
        """(..., in) integers -> (..., out) integers, both in float32, the result a new array."""
        total: Floats = (x @ self.weight).astype(np.float32, copy=False)
        total *= self.scale
        total += self.offset
        np.floor(total, out=total)
        return total

    @classmethod
    def beside(cls, parts: Sequence[Product]) -> Product:
        """Products of the same input as one: a single large one is faster than many small ones."""
        return cls(
            weight=np.concatenate([part.weight for part in parts], axis=1),
            scale=np.concatenate([part.scale for part in parts]),
            offset=np.concatenate([part.offset for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Window:
    """A `Product` of R embeddings side by side, looked up: a row for each entry in each place."""

    rows: Floats  # (R * E, out) what each of E embeddings adds in each of R places
    first: NDArray[np.int64]  # (R,) the first row of each place
    summed: Product  # of what is looked up: ones for weights

    def __call__(self, ids: NDArray[np.int64]) -> Floats:
        """(n, R) embedding numbers in [0, E) -> (n, out) integers in float32."""
        found = self.rows.take(ids + self.first, axis=0)  # (n, R, out)
        return self.summed(found.transpose(0, 2, 1))

    @classmethod
    def of(cls, product: Product, embeddings: Floats) -> Window:
        """Multiply all (E, C) embeddings in all places, each sum exact as it was."""
        count, size = embeddings.shape
        wide = product.weight.astype(np.float64)
        places = wide.reshape(-1, size, wide.shape[1])  # (R, C, out)
        rows = (embeddings.astype(np.float64) @ places).reshape(-1, wide.shape[1])
        kind, first = product.weight.dtype, count * np.arange(len(places))
        summed = replace(product, weight=np.ones(len(places), kind))
        return cls(rows.astype(kind), first, summed)


@dataclass(frozen=True, slots=True)
class ExactLayer:
    """The matrices of one layer, and the ranges between them."""

    query: Product
    memory: Product  # keys, then values
    out: Product
    up: Product
    down: Product
    mixed_scale: float  # from weights x values to the integers that `out` takes
    hidden_limit: float


class ExactModel:
    """Integer tables, checked: if this object exists, its sums are proven to be exact."""

    def __init__(
        self, config: mc.MaskedModelConfig, tables: Mapping[str, NDArray[np.number]]
    ) -> None:
        self.config = config
        self.tables = dict(tables)
        self.carrier = np.dtype(np.float32 if _float32_is_exact() else np.float64)
        head = config.width // config.heads
        _prove("attention scores", head * QUERY_LIMIT * KEY_LIMIT + BIAS_LIMIT, FLOAT32_EXACT)
        _prove("attention outputs", (WEIGHT_TOTAL + 1) * VALUE_LIMIT, FLOAT32_EXACT)
        _prove("sum of squares", config.width * RESIDUAL_LIMIT**2, FLOAT64_EXACT)
        self._normed = (2**NORM_BITS + 0.5) * config.width**0.5 + 1  # length of a normed vector
        self.exponential = self.table("exponential", np.float64)
        _prove("frequencies", TOTAL * float(self.exponential.max()), FLOAT64_EXACT)
        self.word_places = self.table("word_places")
        self.mix_codes, self.mix_words = self._window("codes"), self._window("words")
        self.mix_parents = self._window("parents") if config.ratio else None
        self.out = self._product("out", length=self._normed)
        self.content = [self._layer(f"content.{i}") for i in range(config.content_layers)]
        self.queries = [self._layer(f"queries.{i}") for i in range(config.query_layers)]
        self.query_memory = Product.beside([layer.memory for layer in self.queries])
        # (A, S) scores by relative position, that of words last
        self.biases: dict[str, Floats] = {}
        for name in ("content", "queries"):
            by_place, of_words = self.table(f"{name}.bias"), self.table(f"{name}.word_bias")
            self.biases[name] = np.concatenate([by_place, of_words[:, None]], axis=1)

    def table(self, name: str, kind: type[np.floating] = np.float32) -> Floats:
        """One table of integers, in floats that hold them."""
        if name not in self.tables:
            raise WeightsError(f"exact model: table {name!r} is missing")
        return self.tables[name].astype(kind)

    def save(self, path: Path) -> None:
        """Write tables and config to one safetensors file; the same model gives the same bytes."""
        settings = json.dumps(asdict(self.config), sort_keys=True)
        # The library takes no notice of strides.
        tables = {name: np.ascontiguousarray(table) for name, table in self.tables.items()}
        data = save(tables, metadata={"format": FORMAT, "config": settings})
        path.write_bytes(_in_order(data))

    @classmethod
    def load(cls, path: Path) -> ExactModel:
        """Read what `save` wrote and prove its bounds again; WeightsError if the file is absent, of
        another format, or not provable."""
        if not path.is_file():
            raise WeightsError(f"entropy model {path.name} is missing")
        try:
            with safe_open(path, framework="np") as file:
                found = file.metadata() or {}
                tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise WeightsError(f"entropy model {path.name} cannot be read: {error}") from error
        if (kind := found.get("format")) != FORMAT:
            problem = f"format {kind!r}, this build reads {FORMAT!r}"
            raise WeightsError(f"entropy model {path.name}: {problem}")
        settings = json.loads(found["config"])
        settings["vocabulary"] = tuple(settings["vocabulary"])
        return cls(mc.MaskedModelConfig(**settings), tables)

    def _product(self, name: str, *, most: float = np.inf, length: float = np.inf) -> Product:
        """Check that inputs of this greatest size, or of this length, sum exactly."""
        weight = self.table(f"{name}.weight")
        wide = weight.astype(np.float64)
        # A partial sum is at most max|x| sum|w|, and at most |x| |w| by Cauchy and Schwarz.
        longest = float(np.sqrt(np.square(wide).sum(axis=0)).max())
        bound = min(most * float(np.abs(wide).sum(axis=0).max()), length * longest)
        _prove(name, bound, FLOAT64_EXACT)
        scale, offset = self.table(f"{name}.scale"), self.table(f"{name}.offset")
        kind = self.carrier if bound < FLOAT32_EXACT else np.float64
        return Product(weight.astype(kind), scale, offset)

    def _window(self, name: str) -> Window:
        return Window.of(self._product(f"mix_{name}", most=CODE_LIMIT), self.table(name))

    def _layer(self, name: str) -> ExactLayer:
        mixed_bits, hidden_bits = (int(b) for b in self.table(f"{name}.bits"))
        mixed_limit, hidden_limit = mc.VALUE_CLIP * 2**mixed_bits, mc.HIDDEN_CLIP * 2**hidden_bits
        query, key, value, up = (
            self._product(f"{name}.{part}", length=self._normed)
            for part in ("query", "key", "value", "up")
        )
        return ExactLayer(
            query=query,
            memory=Product.beside([key, value]),
            out=self._product(f"{name}.out", most=mixed_limit + 1),
            up=up,
            down=self._product(f"{name}.down", most=hidden_limit),
            mixed_scale=2.0**mixed_bits / (WEIGHT_TOTAL * 2**VALUE_BITS),
            hidden_limit=hidden_limit,
        )


def _in_order(data: bytes) -> bytes:
    """The same safetensors file with its header sorted, whose order the library leaves to chance:
    a model's digest, and with it the fingerprint in every file, is taken over these bytes."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[start:]


def _prove(name: str, bound: float, limit: float) -> None:
    if not bound < limit:
        problem = f"must stay below {limit:.0f}, they can reach {bound:.0f}"
        raise WeightsError(f"exact model: sums of {name} {problem}")


def _float32_is_exact() -> bool:
    """Whether the BLAS multiplies float32 as such: some can be told to use fewer bits."""
    x = np.full((64, 64), 255.0, dtype=np.float32)
    x[:, 0] = 2049.0  # 12 bits: more than TF32 or bfloat16 keep
    return bool(((x @ x.T) == 2049.0**2 + 63 * 255.0**2).all())
