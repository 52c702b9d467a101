# SPDX-License-Identifier: Apache-2.0
"""Images are selected, compared, copied and downloaded, in a real browser."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from looks import SIZES, box_of, loaded, pick, posters

from airflow_provider_gptimg.gallery.recorded import Record

expect = pytest.importorskip("playwright.sync_api").expect

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@SIZES
def test_images_are_compared_side_by_side_at_the_same_size(page_of, look, size):
    page_of.show(*posters())
    page = look(page_of.address, size)
    loaded(page, 1)
    pick(page, 0)
    compare = page.get_by_role("button", name="Compare", exact=True)
    expect(compare).to_have_attribute("aria-disabled", "true")
    pick(page, 2, 4, 6)
    expect(page.locator("#picked")).to_have_text("4 selected")
    compare.click()
    expect(page.get_by_role("dialog", name="Compare 4 Images")).to_be_visible()
    frames = page.locator(".side-frame")
    expect(frames).to_have_count(4)
    boxes = [box_of(frame) for frame in frames.all()]
    assert len({(round(box["width"]), round(box["height"])) for box in boxes}) == 1
    assert all(box["y"] >= 0 and box["y"] + box["height"] <= size["height"] for box in boxes)
    page.keyboard.press("Escape")
    expect(compare).to_be_focused()
    pick(page, 1)
    expect(compare).to_have_attribute("aria-disabled", "true")


def test_uris_of_selected_images_are_copied_as_a_list_and_as_json(page_of, look):
    page_of.show(*posters(), Record("hosted", -1, "success", 1, result=_hosted()))
    page = look(page_of.address)
    loaded(page, 4)
    pick(page, 0, 3)
    page.locator(".tile", has_text="h1").hover()
    page.locator(".tile", has_text="h1").get_by_role("checkbox").check()
    uris = ["s3://posters/gptimg/t0/0.png", "s3://posters/gptimg/t1/1.png"]
    page.get_by_role("button", name="Copy URIs").click()
    expect(page.locator("#said")).to_have_text("Copied 2 URIs; 1 not in S3")
    assert page.evaluate("navigator.clipboard.readText()") == "\n".join(uris)
    page.get_by_role("button", name="Copy as JSON").click()
    assert json.loads(page.evaluate("navigator.clipboard.readText()")) == uris


def _hosted() -> dict[str, Any]:
    return {"task_id": "h1", "status": "completed", "images": [{"url": "https://file.gptimg.co/h1.png"}]}


def test_selected_images_are_downloaded_as_one_zip(page_of, look):
    page_of.show(*posters())
    page = look(page_of.address)
    loaded(page, 4)
    pick(page, 0, 3)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download Zip").click()
    assert download.value.suggested_filename == "images.zip"
    with zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["t0-0.png", "t1-1.png"]
    page.get_by_role("button", name="Clear Selection").click()
    expect(page.locator("#picks")).to_be_hidden()
    expect(page.locator("input[type=checkbox]:checked")).to_have_count(0)


def test_picking_works_with_the_keyboard_alone(page_of, look):
    page_of.show(*posters())
    page = look(page_of.tab())
    loaded(page, 2)

    def tab_to(selector: str) -> None:
        for _ in range(80):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} cannot be reached with the Tab key")

    for number in (1, 2):
        tab_to(f".tile:nth-child({number}) .pick input")
        page.keyboard.press("Space")
    expect(page.locator("#picked")).to_have_text("2 selected")
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.id") == "compare":
            break
    page.keyboard.press("Enter")
    expect(page.locator(".side img").nth(1)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#comparison")).to_be_hidden()
