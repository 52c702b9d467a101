# SPDX-License-Identifier: Apache-2.0
"""What the gallery serves: a static page to anyone; tiles and pictures to those who may read the DAG's XComs."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import MutableMapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Response, status
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.staticfiles import StaticFiles

from airflow_provider_gptimg.airflow_compat import DagAccessEntity, SessionDep, requires_access_dag
from airflow_provider_gptimg.gallery.pictures import PictureUnavailableError, open_picture
from airflow_provider_gptimg.gallery.records import last_connections, read_records
from airflow_provider_gptimg.gallery.tiles import MAX_TILES, Picture, Record, find_picture, make_tiles

__all__ = ["make_app"]

log = logging.getLogger(__name__)

_AT_ONCE = 8
"""Pictures fetched at a time: the rest of Airflow's threads stay with Airflow."""

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

# As Airflow's own routes for XComs and task instances ask.
_MAY_READ = [
    Depends(requires_access_dag("GET", DagAccessEntity.XCOM)),
    Depends(requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE)),
]


def make_app() -> FastAPI:
    """Return the app that Airflow's API server mounts."""
    app = FastAPI(title="gptimg gallery", docs_url=None, redoc_url=None, openapi_url=None)
    app.get("/dags/{dag_id}/tiles", dependencies=_MAY_READ)(_tiles)
    app.get("/dags/{dag_id}/picture", dependencies=_MAY_READ)(_picture)
    app.mount("/", StaticFiles(directory=Path(__file__).parent / "static", html=True))
    app.add_middleware(_Headers)
    return app


def _tiles(dag_id: str, run_id: Annotated[str, Query()], session: SessionDep) -> Response:
    """Return the tiles of a run."""
    tiles = make_tiles(read_records(session, dag_id, run_id))
    body = json.dumps({"tiles": tiles, "cut": len(tiles) == MAX_TILES})
    return Response(body, media_type="application/json", headers={"cache-control": "no-store"})


async def _picture(
    dag_id: str,
    run_id: Annotated[str, Query()],
    task_id: Annotated[str, Query()],
    image_task: Annotated[str, Query()],
    session: SessionDep,
    index: Annotated[int, Query(ge=0)] = 0,
    map_index: Annotated[int, Query(ge=-1)] = -1,
    download: Annotated[bool, Query()] = False,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Return the image that the XCom of a task instance names."""
    named = await run_in_threadpool(_find, session, (dag_id, run_id, task_id, map_index), image_task, index)
    if named is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "No XCom of this task instance names such an image")
    record, picture = named
    # Asked for each time, so that who may see it is checked each time; sent once.
    headers = {"cache-control": "private, no-cache", "etag": _etag(picture)}
    if if_none_match == headers["etag"]:
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    try:
        opened = await to_thread.run_sync(open_picture, record, picture, limiter=_limiter())
    except PictureUnavailableError as error:
        log.warning("No picture %r of %r in DAG %r, run %r: %s", image_task, task_id, dag_id, run_id, error)
        raise HTTPException(status.HTTP_502_BAD_GATEWAY, str(error)) from None
    # Images are compressed already: this keeps Airflow from compressing them again.
    headers["content-encoding"] = "identity"
    if opened.size is not None:
        headers["content-length"] = str(opened.size)
    name = re.sub(r"[^A-Za-z0-9._-]", "", image_task)[:100]
    kind = "attachment" if download else "inline"
    headers["content-disposition"] = f'{kind}; filename="{name}-{index}{opened.extension}"'
    return StreamingResponse(opened.chunks, media_type=opened.content_type, headers=headers)


def _find(session: Any, place: tuple[str, str, str, int], image_task: str, index: int) -> tuple[Record, Picture] | None:
    try:
        for record in read_records(session, *place):
            if picture := find_picture(record, image_task, index):
                fields = record.fields or last_connections(session, place[0], record.task_id)
                return replace(record, fields=fields), picture
        return None
    finally:
        session.close()  # Airflow's connections to its database are few, and S3 may be slow


def _etag(picture: Picture) -> str:
    said = picture.version or picture.url or f"{picture.bucket}/{picture.key}"
    return f'"{hashlib.sha256(said.encode()).hexdigest()[:32]}"'


@lru_cache(maxsize=1)
def _limiter() -> CapacityLimiter:
    return CapacityLimiter(_AT_ONCE)


class _Headers:
    """Adds the headers that keep a browser strict to every answer."""

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
