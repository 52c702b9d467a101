# SPDX-License-Identifier: Apache-2.0
"""The plugin as every process of Airflow loads it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import airflow_provider_gptimg.gallery
from airflow_provider_gptimg.gallery.plugin import GptImgGalleryPlugin


def test_it_is_found_once():
    found = [entry for entry in entry_points(group="airflow.plugins") if entry.name == "gptimg_gallery"]
    assert [entry.load() for entry in found] == [GptImgGalleryPlugin]


def test_loading_it_imports_no_web_server():
    code = (
        "import sys, airflow.sdk; before = set(sys.modules)\n"
        "from airflow_provider_gptimg.gallery.plugin import GptImgGalleryPlugin\n"
        "assert GptImgGalleryPlugin().external_views\n"
        "heavy = {'fastapi', 'starlette', 'boto3', 'httpx'} & (set(sys.modules) - before)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_needs_nothing_from_elsewhere():
    static = Path(airflow_provider_gptimg.gallery.__file__).parent / "static"
    for file in static.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, f"{file.name} names an address"
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in text, f"{file.name} makes markup or code of a text"
