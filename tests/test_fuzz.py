"""Damaged files: a BitstreamError each time, and nothing else."""

from __future__ import annotations

from tests.fuzz import LIMIT_BYTES, run
from tests.tiny import tiny_codec


def test_damaged_files_are_refused_without_a_crash_or_much_memory():
    result = run(tiny_codec(), 1500, seed=1)
    assert result["rejected"] + result["intact"] == 1500
    assert result["rejected"] > 1400 and result["missed"] == 0
    assert result["grown_bytes"] < LIMIT_BYTES
