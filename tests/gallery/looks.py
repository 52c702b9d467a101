# SPDX-License-Identifier: Apache-2.0
"""Runs to look at, and what tests of the page do again and again."""

from __future__ import annotations

from typing import Any

import pytest
from page_server import mirrored

from airflow_provider_gptimg.gallery.recorded import Record

LONG = " ".join(["A poster of a lighthouse at dusk, with a sailing boat and gulls."] * 40)
REFUSED = "GptImgTaskFailedError: The prompt was refused. " + "It names what is not allowed. " * 20
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
SHAPES = {0: (360, 240), 1: (240, 360), 2: (300, 300), 3: (480, 270)}


def posters(prompt: str | None = "A cat") -> list[Record]:
    """Four submits, whose images are of four shapes, and their transfers."""
    aspects = ("3:2", "2:3", None, "16:9")
    submits = [
        Record("generate", i, "success", 1, fields={"n": 2, "aspect_ratio": aspect}, result=f"t{i}", prompt=prompt)
        for i, aspect in enumerate(aspects)
    ]
    return [*submits, *(mirrored("mirror", f"t{i}", 2, map_index=i) for i in range(4))]


def failed() -> Record:
    return Record("generate", 9, "failed", 2, fields={"n": 1}, prompt="Something else")


def loaded(page: Any, n: int) -> None:
    page.locator(".shot.loaded").nth(n - 1).wait_for()


def box_of(locator: Any) -> dict[str, float]:
    box: dict[str, float] = locator.bounding_box()
    return box


def pick(page: Any, *numbers: int) -> None:
    for number in numbers:
        page.locator(".tile").nth(number).hover()
        page.locator(".pick input").nth(number).check()


def serious(page: Any, axe: str) -> list[str]:
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{violation['id']}: {[node['html'][:150] for node in violation['nodes']]}"
        for violation in found
        if violation["impact"] in ("serious", "critical", "moderate")
    ]
