# SPDX-License-Identifier: Apache-2.0
"""Where there is a gallery, links lead to it; where there is none, a line says why, and links lead elsewhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from airflow_provider_gptimg.airflow_compat import AIRFLOW, AIRFLOW_VERSION, HAS_GALLERY
from airflow_provider_gptimg.gallery.plugin import GptImgGalleryPlugin
from airflow_provider_gptimg.links.gptimg import images_url

LOAD_PLUGINS = "from airflow import plugins_manager; plugins_manager.ensure_plugins_loaded()"


def test_a_line_in_the_log_says_where_there_is_no_gallery():
    loading = subprocess.run([sys.executable, "-c", LOAD_PLUGINS], check=True, capture_output=True, text=True)
    said = [line for line in (loading.stdout + loading.stderr).splitlines() if "No gallery" in line]
    assert len(said) == (0 if HAS_GALLERY else 1), said
    assert all("3.1" in line and AIRFLOW_VERSION in line for line in said)


def test_the_plugin_adds_pages_only_where_airflow_can_show_them():
    plugin = GptImgGalleryPlugin()
    assert (bool(plugin.external_views), bool(plugin.fastapi_apps)) == (HAS_GALLERY, HAS_GALLERY)


@pytest.mark.parametrize("map_index", [-1, 3])
def test_images_leads_to_a_page_that_this_airflow_has(map_index):
    url = images_url("d", "r", "t", map_index)
    if AIRFLOW < (3, 0):
        mapped = "" if map_index < 0 else "&map_index=3"
        assert url.endswith(f"/dags/d/grid?dag_run_id=r&task_id=t{mapped}&tab=xcom")
    else:
        mapped = "" if map_index < 0 else "/mapped/3"
        page = "plugin/gptimg-images" if HAS_GALLERY else "xcom"
        assert url.endswith(f"/dags/d/runs/r/tasks/t{mapped}/{page}")
