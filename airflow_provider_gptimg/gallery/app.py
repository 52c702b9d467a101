# SPDX-License-Identifier: Apache-2.0
"""The gallery's routes: a static page for anyone; tiles, pictures and zips for those who may read the Dag's XComs."""

from __future__ import annotations

import json
import logging
from collections.abc import MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Response
from starlette.datastructures import MutableHeaders
from starlette.staticfiles import StaticFiles

from airflow_provider_gptimg.airflow_compat import DagAccessEntity, requires_access_dag
from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.gallery.places import Places
from airflow_provider_gptimg.gallery.runs import load_run
from airflow_provider_gptimg.gallery.sending import Pick, PictureResponse, ZipResponse, bounded
from airflow_provider_gptimg.gallery.spent import spending
from airflow_provider_gptimg.gallery.tiles import MAX_TILES, Gallery

__all__ = ["make_app"]

log: logging.Logger = logging.getLogger(__name__)

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

# Airflow's own routes for XComs and task instances require the same.
_MAY_READ = [
    Depends(requires_access_dag("GET", DagAccessEntity.XCOM)),
    Depends(requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE)),
]


def make_app() -> FastAPI:
    """Return the app that Airflow's API server mounts."""
    app = FastAPI(title="gptimg gallery", docs_url=None, redoc_url=None, openapi_url=None)
    routes = _Routes()
    app.get("/dags/{dag_id}/tiles", dependencies=_MAY_READ)(routes.tiles)
    app.get("/dags/{dag_id}/picture", dependencies=_MAY_READ)(routes.picture)
    app.get("/dags/{dag_id}/spending", dependencies=_MAY_READ)(routes.spending)
    app.get("/dags/{dag_id}/zip", dependencies=_MAY_READ)(routes.zip)
    app.mount("/", StaticFiles(directory=Path(__file__).parent / "static", html=True))
    app.add_middleware(_Headers)
    return app


class _Routes:
    """The routes with data, and a limited number of places for each.

    A page asks for some six pictures at a time; a reader of tiles parses megabytes of JSON at worst.
    """

    def __init__(self) -> None:
        self._reading = Places("tiles", total=4, per_dag=2, waiting=32, patience=10.0)
        self._pictures = Places("pictures", total=12, per_dag=4, waiting=48, patience=8.0)
        self._zips = Places("zips", total=2, per_dag=1, waiting=0, patience=0.0)
        self._spending = Places("spending", total=2, per_dag=1, waiting=8, patience=10.0)

    async def tiles(
        self,
        dag_id: str,
        run_id: Annotated[str, Query()],
        task_id: Annotated[str | None, Query()] = None,
        map_index: Annotated[int, Query(ge=-1)] = -1,
    ) -> Response:
        """Return the tiles of a run.

        :param task_id: Only those of images that this task handled.
        :param map_index: Of that task; -1: all its instances, or the only one.
        """
        async with bounded(self._reading, dag_id) as place:
            body = await place.run(_read_tiles, dag_id, run_id, task_id, map_index)
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    async def picture(
        self,
        dag_id: str,
        run_id: Annotated[str, Query()],
        task_id: Annotated[str, Query()],
        image_task: Annotated[str, Query()],
        index: Annotated[int, Query(ge=0)] = 0,
        map_index: Annotated[int, Query(ge=-1)] = -1,
        download: Annotated[bool, Query()] = False,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Return an image that a task instance recorded."""
        pick = Pick(dag_id, run_id, task_id, map_index, image_task, index)
        return PictureResponse(self._pictures, pick, is_download=download, known=if_none_match)

    async def zip(self, dag_id: str, run_id: Annotated[str, Query()], pick: Annotated[list[str], Query()]) -> Response:
        """Return some images in one file.

        :param pick: For each image `task_id/map_index/image_task/index`.
        """
        return ZipResponse(self._zips, [Pick.read(dag_id, run_id, text) for text in pick])

    async def spending(self, dag_id: str, run_id: Annotated[str | None, Query()] = None) -> Response:
        """Return the credits of a run by task; without `run_id` those of the Dag's latest runs by day."""
        async with bounded(self._spending, dag_id) as place:
            body = await place.run(_read_spending, dag_id, run_id)
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})


def _read_spending(dag_id: str, run_id: str | None) -> bytes:
    try:
        return json.dumps(spending(dag_id, run_id)).encode()
    except GptImgError as error:
        log.warning("The spending of Dag %r cannot be shown: %s", dag_id, error)
        raise HTTPException(502, "The journal in S3 cannot be read; the API server's log says why") from None


def _read_tiles(dag_id: str, run_id: str, task_id: str | None, map_index: int) -> bytes:
    run = load_run(dag_id, run_id)
    gallery = Gallery(run.records, run.graph, run.failed)
    tiles = gallery.tiles(task_id, map_index)
    body = {
        "tiles": tiles,
        "cut": run.is_cut or len(tiles) == MAX_TILES,
        "credits": asdict(gallery.credits(task_id, map_index)),
        "lacks_journal": run.lacks_journal,
        "makes_images": bool(run.graph.roles) if task_id is None else task_id in run.graph.roles,
    }
    return json.dumps(body).encode()


class _Headers:
    """Adds security headers to every answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def send_strictly(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", "no-cache")
            await send(message)

        await self._app(scope, receive, send_strictly)
