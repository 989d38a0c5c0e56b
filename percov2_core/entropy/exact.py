"""The integer twin of the masked image model: the same frequencies on every machine.

Letters: N tokens, n of them in a stage, M entries of memory, K codebook size, D width, A heads.

Every activation is an integer. A matrix product adds integers whose partial sums are proven to
stay below 2**24 (carried in float32) or 2**53 (carried in float64), so the order of summation
cannot matter. The rest is table lookups and +, -, x, /, sqrt, floor, which IEEE 754 rounds alike
everywhere. Nothing here may be fused, autocast or replaced by a library's softmax or norm.

    unit of an integer   where
    2**-10               residual stream, position tables
    2**-9                after the norm
    2**-8, 2**-6, 2**-7  queries, keys, values
    2**-14               attention scores and their biases
    1/16000              attention weights
    2**-6                logits, in bits
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from percov2_core.entropy import masked_model as mm
from percov2_core.entropy.schedule import Grid
from percov2_core.errors import WeightsError

FORMAT = "percov2-exact-1"

RESIDUAL_BITS, NORM_BITS = 10, 9
QUERY_BITS, KEY_BITS, VALUE_BITS = 8, 6, 7
SCORE_BITS = QUERY_BITS + KEY_BITS
LOGIT_BITS = 6
RESIDUAL_LIMIT = 2.0**22
QUERY_LIMIT = mm.QUERY_CLIP * 2**QUERY_BITS
KEY_LIMIT = mm.KEY_CLIP * 2**KEY_BITS
VALUE_LIMIT = mm.VALUE_CLIP * 2**VALUE_BITS - 1
BIAS_LIMIT = 2**21
LOGIT_LIMIT = 2.0**20
WEIGHT_TOTAL = 16000.0  # what the attention weights of one position add up to, at most
CODE_LIMIT = 127.0

FLOAT32_EXACT, FLOAT64_EXACT = 2.0**24, 2.0**53
TOTAL = 1 << 16  # what the frequencies of one token add up to


@dataclass(frozen=True, slots=True)
class Product:
    """x -> floor((x @ weight) * scale + offset), the sum exact.

    Attributes:
        weight: (in, out) integers in float32.
        scale: (out,) float32.
        offset: (out,) float32, one half for rounding included.
        wide: True if the sums are proven for float64 only.
    """

    weight: Tensor
    scale: Tensor
    offset: Tensor
    wide: bool

    def __call__(self, x: Tensor, *, carrier: torch.dtype) -> Tensor:
        """(..., in) integers -> (..., out) integers, both in float32."""
        kind = torch.float64 if self.wide else carrier
        total = (x.to(kind) @ self.weight.to(kind)).float()
        return torch.floor(total * self.scale + self.offset)


@dataclass(frozen=True, slots=True)
class _Layer:
    query: Product
    key: Product
    value: Product
    out: Product
    up: Product
    down: Product
    mixed_scale: float  # from weights x values to the integers that `out` takes
    hidden_limit: float


class ExactModel:
    """Integer tables, checked: if this object exists, its sums are proven to be exact."""

    def __init__(
        self, config: mm.MaskedModelConfig, tables: Mapping[str, Tensor], *, device: str = "cpu"
    ) -> None:
        self.config = config
        self.tables = dict(tables)
        self.device = torch.device(device)
        head = config.width // config.heads
        _prove("attention scores", head * QUERY_LIMIT * KEY_LIMIT + BIAS_LIMIT, FLOAT32_EXACT)
        _prove("attention outputs", (WEIGHT_TOTAL + 1) * VALUE_LIMIT, FLOAT32_EXACT)
        _prove("sum of squares", config.width * RESIDUAL_LIMIT**2, FLOAT64_EXACT)
        self._normed = (2**NORM_BITS + 0.5) * config.width**0.5 + 1  # length of a normed vector
        self.mix_codes = self._product("mix_codes", most=CODE_LIMIT)
        self.mix_words = self._product("mix_words", most=CODE_LIMIT)
        self.out = self._product("out", length=self._normed)
        self.content = [self._layer(f"content.{i}") for i in range(config.content_layers)]
        self.queries = [self._layer(f"queries.{i}") for i in range(config.query_layers)]

    def table(self, name: str) -> Tensor:
        """One table of integers, in float32 or, for the exponential, int64."""
        if name not in self.tables:
            raise WeightsError(f"exact model: table {name!r} is missing")
        kind = torch.int64 if name == "exponential" else torch.float32
        return self.tables[name].to(self.device, kind)

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that change with any table or setting."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        for name in sorted(self.tables):
            digest.update(name.encode())
            digest.update(self.tables[name].cpu().contiguous().numpy().tobytes())
        return digest.digest()

    def begin(self, grid: Grid, words: Sequence[int]) -> Session:
        """Open one tile whose caption has these word ids; nothing of it is known yet."""
        return Session(self, grid, words)

    def save(self, path: Path) -> None:
        """Write tables and config to one safetensors file."""
        tables = {name: t.cpu().contiguous() for name, t in self.tables.items()}
        settings = json.dumps(asdict(self.config), sort_keys=True)
        save_file(tables, path, metadata={"format": FORMAT, "config": settings})

    @classmethod
    def load(cls, path: Path, *, device: str = "cpu") -> ExactModel:
        """Read what `save` wrote and prove its bounds again.

        Raises:
            WeightsError: if the file is absent, of another format, or not provable.
        """
        if not path.is_file():
            raise WeightsError(f"entropy model {path.name} is missing")
        try:
            with safe_open(path, framework="pt") as file:
                found = file.metadata() or {}
                tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise WeightsError(f"entropy model {path.name} cannot be read: {error}") from error
        if found.get("format") != FORMAT:
            raise WeightsError(
                f"entropy model {path.name}: format {found.get('format')!r}, "
                f"this build reads {FORMAT!r}"
            )
        settings = json.loads(found["config"])
        settings["vocabulary"] = tuple(settings["vocabulary"])
        return cls(mm.MaskedModelConfig(**settings), tables, device=device)

    def _product(self, name: str, *, most: float = np.inf, length: float = np.inf) -> Product:
        """Check that inputs of this greatest size, or of this length, sum exactly."""
        weight = self.table(f"{name}.weight")
        wide = weight.double()
        # A partial sum is at most max|x| sum|w|, and at most |x| |w| by Cauchy and Schwarz.
        bound = min(
            most * float(wide.abs().sum(0).max()), length * float(wide.square().sum(0).sqrt().max())
        )
        _prove(name, bound, FLOAT64_EXACT)
        scale, offset = self.table(f"{name}.scale"), self.table(f"{name}.offset")
        return Product(weight, scale, offset, bound >= FLOAT32_EXACT)

    def _layer(self, name: str) -> _Layer:
        mixed_bits, hidden_bits = (int(b) for b in self.table(f"{name}.bits"))
        mixed_limit, hidden_limit = mm.VALUE_CLIP * 2**mixed_bits, mm.HIDDEN_CLIP * 2**hidden_bits
        return _Layer(
            query=self._product(f"{name}.query", length=self._normed),
            key=self._product(f"{name}.key", length=self._normed),
            value=self._product(f"{name}.value", length=self._normed),
            out=self._product(f"{name}.out", most=mixed_limit + 1),
            up=self._product(f"{name}.up", length=self._normed),
            down=self._product(f"{name}.down", most=hidden_limit),
            mixed_scale=2.0**mixed_bits / (WEIGHT_TOTAL * 2**VALUE_BITS),
            hidden_limit=hidden_limit,
        )


class Session:
    """One tile while its stages become known. Each position is computed once.

    Use: `frequencies` of a stage, then `reveal` its tokens, then the next stage.
    """

    def __init__(self, model: ExactModel, grid: Grid, words: Sequence[int]) -> None:
        self.model, config = model, model.config
        n, device = grid[0] * grid[1], model.device
        self._carrier = torch.float32 if _float32_is_exact(device) else torch.float64
        self._known = torch.full((n + 1,), config.mask_id, device=device)
        self._known[n] = config.outside_id
        self._neighbours = torch.from_numpy(mm.neighbour_indices(grid)).to(device)
        self._relative = torch.from_numpy(mm.relative_indices(grid)).to(device)
        rows, columns = (torch.from_numpy(i).to(device) for i in mm.place_indices(grid))
        self._place = model.table("rows")[rows] + model.table("columns")[columns]  # (N, D)
        self._codes = model.table("codes")
        self._words = len(words)
        self._looked_at = torch.zeros(0, dtype=torch.int64, device=device)
        towers = {"content": model.content, "queries": model.queries}
        self._bias = {name: model.table(f"{name}.bias") for name in towers}
        self._word_bias = {name: model.table(f"{name}.word_bias") for name in towers}
        size = (config.heads, len(words) + n, config.width // config.heads)
        self._memory = {
            name: [
                (torch.zeros(size, device=device), torch.zeros(size, device=device)) for _ in layers
            ]
            for name, layers in towers.items()
        }
        with _plain(device):
            phrase = _normalise(self._read_words(words))
            for name, layers in towers.items():
                for layer, memory in zip(layers, self._memory[name], strict=True):
                    self._remember(layer, memory, phrase, at=0)

    def frequencies(self, positions: NDArray[np.int64]) -> NDArray[np.uint32]:
        """(n,) flat positions -> (n, K) frequencies >= 1, each row summing to 2**16."""
        at = self._index(positions)
        with _plain(self.model.device):
            y = self._start(at)
            bias = self._biases("queries", at)
            for layer, memory in zip(self.model.queries, self._memory["queries"], strict=True):
                y = self._update(layer, y, memory, bias)
            logits = self.model.out(_normalise(y), carrier=self._carrier)
            found = _to_frequencies(logits, self.model.table("exponential"))
        return found.cpu().numpy().astype(np.uint32)

    def reveal(self, positions: NDArray[np.int64], tokens: NDArray[np.integer]) -> None:
        """Make a whole stage known: (n,) flat positions and (n,) tokens in [0, K)."""
        device = self.model.device
        at = self._index(positions)
        self._known[at] = self._index(tokens)
        filled = self._words + len(self._looked_at)
        self._looked_at = torch.cat([self._looked_at, at])
        with _plain(device):
            x = self._start(at)
            bias = self._biases("content", at)
            for layer, memory in zip(self.model.content, self._memory["content"], strict=True):
                self._remember(layer, memory, _normalise(x), at=filled)
                x = self._update(layer, x, memory, bias)
            x = _normalise(x)
            for layer, memory in zip(self.model.queries, self._memory["queries"], strict=True):
                self._remember(layer, memory, x, at=filled)

    def _read_words(self, words: Sequence[int]) -> Tensor:
        """W word ids -> (W, D) residual integers."""
        ids = torch.tensor(list(words), dtype=torch.int64, device=self.model.device)
        if not len(ids):
            return torch.zeros(0, self.model.config.width, device=self.model.device)
        padded = torch.nn.functional.pad(ids, (mm.WORD_REACH, mm.WORD_REACH), value=mm.PAD_WORD)
        codes = self.model.table("words")[padded.unfold(0, 2 * mm.WORD_REACH + 1, 1)].flatten(1)
        place = self.model.table("word_places")[: len(ids)]
        return _residual(self.model.mix_words(codes, carrier=self._carrier) + place)

    def _start(self, at: Tensor) -> Tensor:
        """(n,) positions -> (n, D) residual integers from what is known around them."""
        codes = self._codes[self._known[self._neighbours[at]]].flatten(1)
        return _residual(self.model.mix_codes(codes, carrier=self._carrier) + self._place[at])

    def _biases(self, tower: str, at: Tensor) -> Tensor:
        """(A, n, M) score biases towards the words and all positions known so far."""
        index = self._relative[at][:, self._looked_at]
        to_tokens = self._bias[tower][:, index]
        to_words = self._word_bias[tower][:, None, None].expand(-1, len(at), self._words)
        return torch.cat([to_words, to_tokens], dim=-1)

    def _remember(
        self, layer: _Layer, memory: tuple[Tensor, Tensor], x: Tensor, *, at: int
    ) -> None:
        """Append keys and values of (m, D) normed integers."""
        pairs = ((layer.key, KEY_LIMIT), (layer.value, VALUE_LIMIT))
        for store, (product, limit) in zip(memory, pairs, strict=True):
            made = product(x, carrier=self._carrier).clamp(-limit, limit)
            store[:, at : at + len(x)] = self._heads(made)

    def _update(
        self, layer: _Layer, x: Tensor, memory: tuple[Tensor, Tensor], bias: Tensor
    ) -> Tensor:
        """One layer for (n, D) residual integers."""
        carrier, filled = self._carrier, bias.shape[-1]
        q = layer.query(_normalise(x), carrier=carrier).clamp(-QUERY_LIMIT, QUERY_LIMIT)
        k, v = (store[:, :filled].to(carrier) for store in memory)
        score = (self._heads(q).to(carrier) @ k.transpose(1, 2)).float()  # (A, n, M)
        weights = _weights(score.add_(bias))
        mixed = (weights.to(carrier) @ v).float().transpose(0, 1).flatten(1)  # (n, D)
        mixed = torch.floor(mixed * layer.mixed_scale + 0.5)
        x = _residual(x + layer.out(mixed, carrier=carrier))
        hidden = layer.up(_normalise(x), carrier=carrier).clamp(0.0, layer.hidden_limit)
        return _residual(x + layer.down(hidden, carrier=carrier))

    def _index(self, numbers: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(np.array(numbers, dtype=np.int64)).to(self.model.device)

    def _heads(self, x: Tensor) -> Tensor:
        """(n, D) -> (A, n, D / A)."""
        heads = self.model.config.heads
        return x.reshape(len(x), heads, x.shape[1] // heads).transpose(0, 1)


def _normalise(x: Tensor) -> Tensor:
    """(n, D) residual integers -> integers of root mean square 2**9."""
    wide = x.double()
    floor = (mm.NORM_FLOOR * 2**RESIDUAL_BITS) ** 2
    square = wide.square().sum(-1, keepdim=True) / x.shape[-1] + floor
    return torch.floor(wide * (2.0**NORM_BITS / square.sqrt()) + 0.5).float()


def _residual(x: Tensor) -> Tensor:
    return x.clamp(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)


def _weights(score: Tensor) -> Tensor:
    """(A, n, M) integer scores -> integer weights that add up to at most 16000."""
    score = score.clamp_(min=0.0)
    total = score.sum(-1, keepdim=True, dtype=torch.float64) + mm.SUM_OFFSET * 2**SCORE_BITS
    return score.mul_((WEIGHT_TOTAL / total).float()).floor_()


def _to_frequencies(logits: Tensor, exponential: Tensor) -> Tensor:
    """(n, K) integers in units of 2**-6 bits -> (n, K) int64 that sum to 2**16."""
    logits = logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).to(torch.int64)
    size = logits.shape[1]
    below = logits.amax(1, keepdim=True) - logits
    mass = exponential[below.clamp(max=len(exponential) - 1)]
    spread = (TOTAL - size) * mass
    freqs = 1 + torch.div(spread, mass.sum(1, keepdim=True), rounding_mode="floor")
    # What rounding left goes to the likeliest token, of equal ones the first. The key is unique,
    # because devices differ in which of two equal maxima they report.
    key = freqs * size - torch.arange(size, device=logits.device)
    rest = TOTAL - freqs.sum(1, keepdim=True)
    return freqs.scatter_add(1, key.argmax(1, keepdim=True), rest)


@contextmanager
def _plain(device: torch.device) -> Iterator[None]:
    """No autograd, no autocast."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


def _float32_is_exact(device: torch.device) -> bool:
    """Whether float32 products are computed in float32, by the setting and by a trial."""
    if torch.get_float32_matmul_precision() != "highest":
        return False
    x = torch.full((64, 64), 255.0, device=device)
    x[:, 0] = 2049.0  # 12 bits: more than TF32 or bfloat16 keep
    with _plain(device):
        return bool(((x @ x.T) == 2049.0**2 + 63 * 255.0**2).all())


def _prove(name: str, bound: float, limit: float) -> None:
    if not bound < limit:
        raise WeightsError(
            f"exact model: sums of {name} must stay below {limit:.0f}, they can reach {bound:.0f}"
        )
