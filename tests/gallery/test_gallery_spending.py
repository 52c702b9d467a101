# SPDX-License-Identifier: Apache-2.0
"""The dialog on credits in a real browser, with amounts that the tests write down."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from looks import SIZES, box_of, loaded, posters, serious

from airflow_provider_gptimg.journal.spending import Amounts
from airflow_provider_gptimg.spending import NO_JOURNAL

expect = pytest.importorskip("playwright.sync_api").expect

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

DAYS = [f"{date(2026, 10, 30) + timedelta(days=day)}" for day in range(30)]


def rows(**amounts: Amounts) -> dict[str, Any]:
    named = [{"name": name.replace("_", "-"), **each.as_dict()} for name, each in amounts.items()]
    return {"rows": named, "total": sum(amounts.values(), Amounts()).as_dict()}


@pytest.fixture
def spent(page_of):
    days = {day.replace("-", "_"): Amounts() for day in DAYS}
    days |= {DAYS[day].replace("-", "_"): Amounts(charged=day * 4, refunded=day % 5 * 2) for day in range(3, 30, 2)}
    days["2026_11_27"] = Amounts(charged=120, refunded=20, reused=8, unknown=16)
    of_run = rows(generate=Amounts(16, 2), posters_for_the_autumn_campaign=Amounts(80, 0, 8))
    page_of.spending = {"run": {"by": "task"} | of_run, "dag": {"by": "day", "runs": 41, "cut": False} | rows(**days)}
    page_of.show(*posters())
    return page_of


def _open(page: Any) -> Any:
    loaded(page, 1)
    page.get_by_role("button", name="Spending", exact=True).click()
    return page.get_by_role("dialog", name="Spending")


@SIZES
def test_credits_of_a_run_and_of_a_dag_over_time(spent, look, size):
    page = look(spent.tab(), size)
    dialog = _open(page)
    expect(dialog.get_by_role("status").first).to_have_text("96 credits charged, 2 refunded · 8 saved by reuse")
    expect(dialog.locator("tbody tr")).to_have_text(["generate162140", "posters-for-the-autumn-campaign800808"])
    expect(dialog.locator("tfoot")).to_have_text("Total962948")
    expect(dialog.locator("svg.chart")).to_have_count(0)
    dialog.get_by_text("Dag, 30 Days").click()
    expect(dialog.get_by_role("status").first).to_contain_text("16 more unknown · 41 runs, days in UTC")
    chart = dialog.locator("svg.chart")
    boxes = [box_of(bar) for bar in chart.locator("rect.net").all()]
    assert len(boxes) == 15, "days without spending have no bar"
    nets = [row["net"] for row in spent.spending["dag"]["rows"] if row["net"]]
    assert [round(box["height"] / boxes[0]["height"], 1) for box in boxes] == [round(n / nets[0], 1) for n in nets]
    foot = box_of(chart)["y"] + box_of(chart)["height"]
    assert all(box["height"] > 0 and box["y"] + box["height"] < foot for box in boxes)
    expect(chart.locator("text")).to_have_text(["0", "100", "200", DAYS[0], DAYS[15], DAYS[-1]])
    expect(dialog.locator("tbody tr").first).to_contain_text(DAYS[-1])
    for part in (dialog, dialog.locator("#spending-body")):
        assert part.evaluate("e => e.scrollWidth <= e.clientWidth"), "nothing sticks out"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_a_journal_in_s3_it_says_what_to_set(spent, look):
    spent.spending = {"run": {"missing": NO_JOURNAL}, "dag": {"missing": NO_JOURNAL}}
    page = look(spent.address)
    expect(_open(page).get_by_role("status").first).to_have_text(NO_JOURNAL)
    expect(page.locator("#spending-body")).to_be_empty()


def test_it_works_with_the_keyboard_alone(spent, look):
    page = look(spent.tab())
    loaded(page, 1)
    page.locator("#spending-open").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Spending")
    dialog.locator("tfoot").wait_for()
    for _ in range(4):
        if page.evaluate("document.activeElement.name") == "spending":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    dialog.locator("svg.chart").wait_for()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#spending-open")).to_be_focused()


def test_trouble_is_told(spent, look):
    page = look(spent.address)
    page.route("**/spending?*", lambda route: route.fulfill(status=502, json={"detail": "x"}))
    expect(_open(page).get_by_role("status").first).to_contain_text("cannot be read")


@SIZES
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_serious_is_found_in_it_by_an_accessibility_check(spent, look, axe, size, theme):
    page = look(spent.tab(), size, color_scheme=theme, reduced_motion="reduce")
    dialog = _open(page)
    dialog.locator("tfoot").wait_for()
    assert serious(page, axe) == []
    dialog.get_by_text("Dag, 30 Days").click()
    dialog.locator("svg.chart").wait_for()
    assert serious(page, axe) == []
