"""Captions <-> symbols of a range coder.

A caption is one symbol for its form, then its words (or its bytes). Of all forms that can hold
a text the writer takes the cheapest. Where the file's header says so, things stand in front (see
`caption.things`): how many, then the place of each among the words. A caption is any valid Unicode
text of at most MAX_BYTES in UTF-8, control characters included: both sides accept exactly these,
and each survives exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log2
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from percov2_core.caption import things
from percov2_core.caption.language import UNKNOWN, CaptionLanguage, Lexicon, Word, join, split
from percov2_core.caption.ngram import BOUNDARY, GROUP, TOTAL, NGram, frequencies
from percov2_core.errors import BitstreamError, ConfigError

MAX_BYTES = 1000

# Where symbols go and come from: (N,) symbols with their (N, K) frequencies.
Write = Callable[[NDArray[np.integer], NDArray[np.uint32]], None]
Read = Callable[[NDArray[np.uint32]], NDArray[np.int32]]
Choice = tuple[int, NDArray[np.uint32]]  # one symbol and the (1, K) frequencies to code it with


class Form(NamedTuple):
    """How a text is turned into words. `frequency` is out of 2**16."""

    lexicon: str  # "grammar", "free", or "" for bare bytes
    capital: bool  # the first letter is a capital
    stop: bool  # the text ends with a full stop
    frequency: int


# The position is what files say: append only.
FORMS = (
    Form("grammar", capital=False, stop=False, frequency=40_000),
    Form("free", capital=False, stop=False, frequency=12_000),
    Form("free", capital=True, stop=True, frequency=10_000),
    Form("free", capital=True, stop=False, frequency=1_500),
    Form("free", capital=False, stop=True, frequency=1_500),
    Form("", capital=False, stop=False, frequency=536),
)
_FORM_FREQS = np.array([[form.frequency for form in FORMS]], dtype=np.uint32)
_LENGTH_FREQS = np.full((1, 1024), TOTAL // 1024, dtype=np.uint32)
_BYTE_FREQS = np.full((1, 256), TOTAL // 256, dtype=np.uint32)
_THINGS_FREQS = np.array([[3 * TOTAL // 4, TOTAL // 4]], dtype=np.uint32)  # one, two

# One exchange codes one symbol: the writer's returns the symbol that it was given, the reader's
# ignores it and returns the one that it reads. So both directions run the same loops below.
Exchange = Callable[[int, NDArray[np.uint32]], int]


def write_caption(write: Write, text: str, model: CaptionLanguage) -> None:
    """Append a caption. ConfigError: see `check_caption`."""
    for symbol, freqs in _cheapest(text, model):
        write(np.array([symbol]), freqs)


def read_caption(read: Read, model: CaptionLanguage, *, named: bool = False) -> str:
    """Read what `write_caption` wrote, where things stand in front if it is `named`;
    BitstreamError if that can be no caption."""

    def exchange(_: int, freqs: NDArray[np.uint32]) -> int:
        return int(read(freqs)[0])

    front = _things(exchange, ()) if named else ()
    text = things.join(things.Parted(front, _rest(exchange, model)))
    if (size := len(text.encode())) > MAX_BYTES:
        raise BitstreamError(f"caption is {size} bytes, at most {MAX_BYTES} are allowed")
    return text


def _rest(exchange: Exchange, model: CaptionLanguage) -> str:
    form = FORMS[exchange(0, _FORM_FREQS)]
    if not form.lexicon:
        return _decoded(_bytes(exchange, b""))
    words = list(_words(exchange, [], getattr(model, form.lexicon), model.letters))
    text = join(words) + "." * form.stop
    return text[:1].upper() + text[1:] if form.capital else text


def caption_bits(text: str, model: CaptionLanguage) -> float:
    """Ideal code length of a caption in bits, with the coder's own frequencies."""
    return _bits(_cheapest(text, model))


def _cheapest(text: str, model: CaptionLanguage) -> list[Choice]:
    front, rest = things.part(check_caption(text))
    choices: list[Choice] = []
    if front:
        _things(_noting(choices), front)
    return choices + min((_choices(rest, f, model) for f in _possible_forms(rest)), key=_bits)


def _bits(choices: list[Choice]) -> float:
    return -sum(log2(int(freqs[0, symbol]) / TOTAL) for symbol, freqs in choices)


def check_caption(text: str) -> str:
    """`text` itself; ConfigError if it is no valid Unicode, or over MAX_BYTES long in UTF-8."""
    if not isinstance(text, str):
        raise ConfigError(f"caption must be text, got {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        problem = f"got half a character at place {error.start + 1}"
        raise ConfigError(f"caption must be valid Unicode text, {problem}") from error
    if size > MAX_BYTES:
        raise ConfigError(f"caption must be at most {MAX_BYTES} UTF-8 bytes, got {size}")
    return text


def _possible_forms(text: str) -> Iterator[Form]:
    """Those that take away as much as they can, and the plain ones."""
    first, low, stop = text[:1], text[:1].lower(), text.endswith(".")
    capital = low != first and low.upper() == first and len(low) == 1
    for form in FORMS:
        if form.lexicon != "free" or (form.stop, form.capital) == (stop, capital):
            yield form


def _choices(text: str, form: Form, model: CaptionLanguage) -> list[Choice]:
    """All that is written for a text in this form."""
    choices: list[Choice] = []
    exchange = _noting(choices)
    exchange(FORMS.index(form), _FORM_FREQS)
    if not form.lexicon:
        _bytes(exchange, text.encode())
        return choices
    text = text.removesuffix(".") if form.stop else text
    text = text[:1].lower() + text[1:] if form.capital else text
    for _ in _words(exchange, split(text), getattr(model, form.lexicon), model.letters):
        pass
    return choices


def _noting(choices: list[Choice]) -> Exchange:
    """The writer's exchange, which appends to `choices`."""

    def exchange(symbol: int, freqs: NDArray[np.uint32]) -> int:
        choices.append((symbol, freqs))
        return symbol

    return exchange


def _things(exchange: Exchange, given: tuple[str, ...]) -> tuple[str, ...]:
    """Exchange what stands in front of a caption."""
    words, weights = zip(*things.counts().items(), strict=True)
    found: list[str] = []
    for i in range(1 + exchange(len(given) - 1, _THINGS_FREQS)):
        number = words.index(given[i]) if given else 0
        found.append(words[_symbol(exchange, number, np.array(weights))])
    if len(set(found)) < len(found):
        raise BitstreamError(f"caption names the thing {found[0]!r} twice")
    return tuple(found)


def _words(
    exchange: Exchange, words: list[Word], lexicon: Lexicon, letters: NGram
) -> Iterator[Word]:
    """Exchange words up to the end of the caption, and yield what came out."""
    history = [BOUNDARY]
    size = 0
    while size <= MAX_BYTES + 1:
        given = words[len(history) - 1] if len(history) <= len(words) else None
        number = lexicon.vocabulary.symbol(given) if given else BOUNDARY
        symbol = _symbol(exchange, number, lexicon.model.weights(history))
        if symbol == BOUNDARY:
            return
        if symbol == UNKNOWN:
            word = Word(_spelled(exchange, given.text if given else "", letters))
        else:
            word = lexicon.vocabulary.word(symbol)
        yield word
        size += len(word.text.encode()) + (not word.attached)
        history.append(symbol)
    raise BitstreamError(f"caption goes on after {MAX_BYTES} bytes")


def _spelled(exchange: Exchange, text: str, letters: NGram) -> str:
    """Exchange one word, byte after byte."""
    given = [*(byte + 1 for byte in text.encode()), BOUNDARY]
    history = [BOUNDARY]
    while len(history) <= MAX_BYTES + 1:
        number = given[min(len(history), len(given)) - 1]
        symbol = _symbol(exchange, number, letters.weights(history))
        if symbol == BOUNDARY:
            return _decoded(bytes(symbol - 1 for symbol in history[1:]))
        history.append(symbol)
    raise BitstreamError(f"caption holds a word of more than {MAX_BYTES} bytes")


def _symbol(exchange: Exchange, symbol: int, weights: NDArray[np.int64]) -> int:
    """Exchange one symbol: its group of GROUP, then its place in the group."""
    group = 0
    if len(weights) > GROUP:
        sums = np.add.reduceat(weights, np.arange(0, len(weights), GROUP))
        group = exchange(symbol // GROUP, frequencies(sums))
    first = group * GROUP
    return first + exchange(symbol % GROUP, frequencies(weights[first : first + GROUP]))


def _bytes(exchange: Exchange, data: bytes) -> bytes:
    size = exchange(len(data), _LENGTH_FREQS)
    if size > MAX_BYTES:
        raise BitstreamError(f"caption is {size} bytes, at most {MAX_BYTES} are allowed")
    given = data.ljust(size)
    return bytes(exchange(given[i], _BYTE_FREQS) for i in range(size))


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        # What it holds instead is not quoted: it is a stranger's, and not even text.
        raise BitstreamError("the caption in the file is not valid Unicode text") from error
