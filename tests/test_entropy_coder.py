import contextlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from percov2_core.entropy import coder
from percov2_core.entropy.coder import TOTAL, SymbolReader, SymbolWriter
from percov2_core.errors import BitstreamError
from tests.tiny import counted


def random_groups(seed, *, groups=4, longest=40):
    """Groups of symbols with their frequencies; alphabets differ, rows are often very peaked."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(groups):
        count, size = int(rng.integers(0, longest)), int(rng.choice([2, 3, 16, 256, 1000]))
        p = rng.dirichlet(np.full(size, rng.choice([0.01, 0.3, 5.0])), count)
        freqs = 1 + np.floor(p * (TOTAL - size)).astype(np.int64)
        freqs[:, 0] += TOTAL - freqs.sum(axis=1)
        symbols = [int(rng.choice(size, p=row / TOTAL)) for row in freqs]
        made.append((np.array(symbols, dtype=np.int64), freqs.astype(np.uint32)))
    return made


def write(groups):
    writer = SymbolWriter()
    for symbols, freqs in groups:
        writer.write(symbols, freqs)
    return writer


@given(st.integers(0, 2**32), st.binary(min_size=1, max_size=3))
@example(161, b"X")  # more digits can be another stream: a file's check value tells
def test_symbols_survive_at_their_ideal_length_and_bytes_behind_them_do_not_pass(seed, tail):
    groups = random_groups(seed)
    writer = write(groups)
    data = writer.finish()
    assert writer.ideal_bits - 8 < 8 * len(data) < writer.ideal_bits + 8.1
    assert same(read_all(data, groups), groups)
    with contextlib.suppress(BitstreamError):
        assert not same(read_all(data + tail, groups), groups)


@given(st.integers(0, 2**32), st.data())
def test_a_cut_stream_never_gives_the_symbols_that_were_written(seed, data):
    groups = random_groups(seed)
    whole = write(groups).finish()
    cut = data.draw(st.integers(0, max(0, len(whole) - 1)))
    with contextlib.suppress(BitstreamError):
        assert not same(read_all(whole[:cut], groups), groups) or not whole


@given(st.integers(0, 2**32), st.binary(max_size=80))
def test_no_bytes_raise_anything_but_bitstream_error(seed, data):
    groups = random_groups(seed)
    with contextlib.suppress(BitstreamError):
        read_all(data, groups)
        assert len(data) <= sum(freqs.shape[0] for _, freqs in groups) * 2 + 1


def same(found, groups):
    return all(np.array_equal(a, b) for a, (b, _) in zip(found, groups, strict=True))


def read_all(data, groups):
    reader = SymbolReader(data)
    found = [reader.read(freqs) for _, freqs in groups]
    reader.close()
    return found


def test_a_stream_is_ended_from_its_tail_however_much_was_written(monkeypatch):
    calls = counted(monkeypatch, coder, "_shortest")
    writer = SymbolWriter()
    for seed in range(200):
        for symbols, freqs in random_groups(seed, longest=60):
            writer.write(symbols, freqs)
        writer.finish()
    assert len(writer.finish()) > 10_000
    touched = [len(data) for data, *_ in calls]
    assert max(touched) <= 32 and sum(touched) <= 20 * 201


@pytest.mark.parametrize("rest", [0, 1])
@pytest.mark.parametrize("start", [[0], [1], [1, 0], [0, 1, 1]])
def test_the_tail_alone_ends_a_stream_as_all_of_it_would(start, rest):
    # Runs of one symbol make long rows of equal digits, through which a carry may go.
    writer, even = SymbolWriter(), np.full((1, 2), TOTAL // 2, dtype=np.uint32)
    for symbol in [*start, *[rest] * 400]:
        writer.write(np.array([symbol]), even)
        words, (lower, width) = writer._coder.pos()
        data = writer._coder.get_compressed().astype(">u4").tobytes()
        size, least = 4 * int(words) + 8, writer.floor_bytes
        whole = coder._shortest(data, int(lower), int(width), size=size, least=least)
        assert writer.finish() == whole


@pytest.mark.parametrize("most", [1, 8])
def test_large_groups_are_read_as_they_were_written_and_zeros_cost_their_information(most):
    symbols = np.random.default_rng(3).integers(0, most, 2500)
    groups = [(symbols, np.full((2500, 8), TOTAL // 8, dtype=np.uint32))]
    data = write(groups).finish()
    assert len(data) in (937, 938)
    assert np.array_equal(read_all(data, groups)[0], symbols)


def test_a_short_stream_is_found_out_early_in_a_large_group():
    uniform = np.broadcast_to(np.full(256, TOTAL // 256, dtype=np.uint32), (60_000, 256))
    reader = SymbolReader(bytes(60))
    with pytest.raises(BitstreamError, match="its symbols so far need at least"):
        reader.read(uniform)
    assert reader.ideal_bits < 8 * 2000


def test_the_reader_says_what_is_wrong():
    even = np.full((4, 2), TOTAL // 2, dtype=np.uint32)
    with pytest.raises(BitstreamError, match="coded section does not fit this model"):
        read_all(b"\xff" * 8, [(None, even)])
    with pytest.raises(BitstreamError, match="is 3 bytes, the symbols in it take 1: bytes are"):
        read_all(b"\x90ab", [(None, even)])
    assert SymbolWriter().finish() == b"" and read_all(b"", []) == []


def test_the_bytes_are_frozen():
    # These bytes are in people's files.
    freqs = np.array([[60000, 5000, 500, 36]] * 12, dtype=np.uint32)
    writer = SymbolWriter()
    writer.write(np.array([0, 1, 2, 3, 0, 0, 0, 1, 0, 2, 3, 1]), freqs)
    assert writer.finish().hex() == "e872bd31f7f7"
