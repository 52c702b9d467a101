# SPDX-License-Identifier: Apache-2.0
"""An automated accessibility check finds nothing serious, at both widths, light and dark."""

from __future__ import annotations

import pytest
from looks import LONG, REFUSED, SIZES, failed, loaded, pick, posters, serious

from airflow_provider_gptimg.gallery.recorded import Record

pytest.importorskip("playwright.sync_api")

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@SIZES
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_serious_is_found_by_an_accessibility_check(page_of, look, axe, size, theme):
    page_of.state = "running"
    page_of.logs["generate"] = REFUSED
    pending = Record("later", -1, "deferred", 1, fields={"n": 1}, prompt="Still to come")
    page_of.show(*posters(LONG), failed(), pending)
    page = look(page_of.address, size, color_scheme=theme, reduced_motion="reduce")
    loaded(page, 1)
    assert serious(page, axe) == []
    page.locator("button.shot").first.click()
    page.locator("#stage img").wait_for()
    assert serious(page, axe) == []
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    pick(page, 0, 1)
    assert serious(page, axe) == []
    page.locator("#compare").click()
    assert serious(page, axe) == []
    page.keyboard.press("Escape")
    page.locator(".failed button.shot").click()
    page.locator(".failure-text", has_text="refused").wait_for()
    assert serious(page, axe) == []
