"""Damaged files: a BitstreamError each time, and nothing else."""

from __future__ import annotations

import pytest

from tests.fuzz import LIMIT_BYTES, Tally, run
from tests.tiny import tiny_codec


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_without_a_crash_or_much_memory(count):
    tally = run(tiny_codec(), count, seed=1)
    assert tally.rejected + tally.intact == count
    assert tally.rejected > 0.9 * count and tally.missed == 0
    assert tally.one_byte > 0.12 * count and tally.one_byte_missed == 0
    assert tally.grown_bytes < LIMIT_BYTES


def test_the_shares_of_several_processes_are_added_up():
    parts = [Tally(rejected=9990, missed=1, slowest_s=1.5), Tally(rejected=9, one_byte=2)]
    whole = Tally.of_all(parts)
    assert whole == Tally(rejected=9999, missed=1, one_byte=2, slowest_s=1.5)
    assert whole.passed


def test_a_run_fails_by_time_memory_and_what_it_missed():
    assert not Tally(rejected=9998, missed=2).passed
    assert not Tally(rejected=9999, one_byte=999, one_byte_missed=1).passed
    assert not Tally(rejected=1, slowest_s=2.1).passed
    assert not Tally(rejected=1, grown_bytes=LIMIT_BYTES + 1).passed
