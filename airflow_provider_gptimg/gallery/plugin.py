# SPDX-License-Identifier: Apache-2.0
"""Puts the gallery among Airflow's pages: into the navigation, and as a tab of runs and of task instances.

Every process of Airflow loads its plugins, so this imports next to nothing; only the API server makes the app.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_gptimg.airflow_compat import (
    AIRFLOW_VERSION,
    HAS_GALLERY,
    AirflowPlugin,
    conf,
)
from airflow_provider_gptimg.links.gptimg import GALLERY_ROUTE

__all__ = ["GptImgGalleryPlugin"]

_PREFIX = "/gptimg"


log: logging.Logger = logging.getLogger(__name__)


class GptImgGalleryPlugin(AirflowPlugin):
    """The gallery. Before Airflow 3.1 it only logs a line."""

    name = "gptimg_gallery"

    @classmethod
    def on_load(cls, *args: Any, **kwargs: Any) -> None:
        """Log a line where Airflow cannot show the gallery."""
        if not HAS_GALLERY:
            log.info("No gallery of generated images: Airflow %s cannot show it, 3.1 and newer can", AIRFLOW_VERSION)

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Apps for the API server to mount."""
        if not HAS_GALLERY:
            return []
        from airflow_provider_gptimg.gallery.app import make_app

        return [{"app": make_app(), "url_prefix": _PREFIX, "name": "Generated Images"}]

    @cached_property
    def external_views(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Places in Airflow's UI that show the page."""
        if not HAS_GALLERY:
            return []
        page = urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/") + f"{_PREFIX}/"
        icons = {"icon": f"{page}icon.svg", "icon_dark_mode": f"{page}icon-dark.svg"}
        run = "of=run&dag_id={DAG_ID}&run_id={RUN_ID}"
        task_instance = "of=task&dag_id={DAG_ID}&run_id={RUN_ID}&task_id={TASK_ID}&map_index={MAP_INDEX}"
        return [
            {
                "name": "Generated Images",
                "href": page,
                "destination": "nav",
                "category": "browse",
                "url_route": "gptimg-gallery",
                **icons,
            },
            {
                "name": "Images",
                "href": f"{page}?{run}",
                "destination": "dag_run",
                "url_route": "gptimg-run-images",
                **icons,
            },
            {
                "name": "Images",
                "href": f"{page}?{task_instance}",
                "destination": "task_instance",
                "url_route": GALLERY_ROUTE,
                **icons,
            },
        ]
