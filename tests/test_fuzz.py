"""Damaged files: a BitstreamError each time, and nothing else."""

from __future__ import annotations

from tests.fuzz import LIMIT_BYTES, Tally, run
from tests.tiny import tiny_codec


def test_damaged_files_are_refused_without_a_crash_or_much_memory():
    tally = run(tiny_codec(), 1500, seed=1)
    assert tally.rejected + tally.intact == 1500
    assert tally.rejected > 1400 and tally.missed == 0
    assert tally.one_byte > 200 and tally.one_byte_missed == 0
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
