"""Damaged files: a BitstreamError each time, and nothing else."""

from collections import Counter

import pytest

from tests.fuzz import LIMIT_BYTES, added_up, passed, run


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_without_a_crash_or_much_memory(count):
    tally = run(None, count, seed=1)
    assert tally["rejected"] + tally["intact"] == count
    assert tally["rejected"] > 0.9 * count and tally["missed"] == 0
    assert tally["one_byte"] > 0.12 * count and tally["one_byte_missed"] == 0
    assert tally["grown_bytes"] < LIMIT_BYTES


def test_the_shares_of_several_processes_are_added_up():
    parts = Counter(rejected=9990, missed=1, slowest_s=1.5), Counter(rejected=9, one_byte=2)
    whole = added_up(parts)
    assert whole == Counter(rejected=9999, missed=1, one_byte=2, slowest_s=1.5)
    assert passed(whole)


def test_a_run_fails_by_time_memory_and_what_it_missed():
    assert not passed(Counter(rejected=9998, missed=2))
    assert not passed(Counter(rejected=9999, one_byte=999, one_byte_missed=1))
    assert not passed(Counter(rejected=1, slowest_s=2.1))
    assert not passed(Counter(rejected=1, grown_bytes=LIMIT_BYTES + 1))
