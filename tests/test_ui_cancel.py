"""Cancel, and press again, in a browser: the last word counts, however fast the machine is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="needs playwright")

from playwright.sync_api import Page, expect

from tests.ui_browser import choose_example, compress, open_tab, set_steps

pytestmark = [pytest.mark.ui, pytest.mark.timeout(600)]
Visit = Callable[..., Page]


def test_a_run_is_cancelled_in_the_middle_of_a_step(page: Page, hold: Path) -> None:
    choose_example(page, 6)
    set_steps(page, 3)
    page.locator("#pc-compress").click()
    expect(page.locator("#pc-stage [role=status]")).to_contain_text("Step 1 of 3")
    page.locator("#pc-cancel").click()
    expect(page.locator("#pc-head")).to_contain_text("Cancelled")
    expect(page.locator("#pc-stage figure")).to_have_count(0)
    hold.unlink()
    compress(page)
    expect(page.locator("#pc-head")).not_to_contain_text("Cancelled")


def test_a_waiting_run_is_cancelled_at_once(page: Page, visit: Visit, hold: Path) -> None:
    first = visit()
    for visitor, number in ((first, 0), (page, 1)):
        choose_example(visitor, number)
        set_steps(visitor, 2)
    first.locator("#pc-compress").click()
    expect(first.locator("#pc-stage [role=status]")).to_contain_text("Step 1 of 2")
    page.locator("#pc-compress").click()
    expect(page.locator("#pc-stage [role=status]")).to_contain_text("Waiting")
    page.locator("#pc-cancel").click()
    expect(page.locator("#pc-head")).to_contain_text("Cancelled")
    page.locator("#pc-compress").click()
    expect(page.locator("#pc-stage [role=status]")).to_contain_text("Waiting")
    hold.unlink()
    for visitor in (first, page):
        visitor.wait_for_selector("#pc-stage .pc-range")


def test_pressing_again_replaces_the_run_under_way(page: Page, hold: Path) -> None:
    choose_example(page, 2)
    set_steps(page, 2)
    page.locator("#pc-compress").click()
    expect(page.locator("#pc-stage [role=status]")).to_contain_text("Step 1 of 2")
    page.get_by_label("Ultra-low", exact=True).check()
    page.locator("#pc-compress").click()
    hold.unlink()
    page.wait_for_selector("#pc-stage .pc-range")
    expect(page.locator("#pc-head")).to_contain_text("mode ultra-low")
    open_tab(page, "In numbers")
    expect(page.locator("#pc-numbers .pc-ours")).to_contain_text("ultra-low")
    open_tab(page, "Trade-off")
    expect(page.locator("#pc-runs tbody tr")).to_have_count(1)
