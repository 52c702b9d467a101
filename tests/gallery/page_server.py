# SPDX-License-Identifier: Apache-2.0
"""The gallery's page with runs that a test writes down, in a frame as Airflow shows it, without a whole Airflow."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from gallery_server import running
from PIL import Image, ImageDraw

from airflow_provider_gptimg.gallery import app as gallery_app, sending
from airflow_provider_gptimg.gallery.fetch import Opened
from airflow_provider_gptimg.gallery.pictures import PictureUnavailableError
from airflow_provider_gptimg.gallery.recorded import Picture, Record
from airflow_provider_gptimg.gallery.records import Run
from airflow_provider_gptimg.gallery.roles import Graph, Role

_FRAME = """<!doctype html><html lang=en style="--chakra-colors-brand-solid: rgb(1, 2, 3)"><title>Airflow</title>
<body style="margin:0;background:{background}"><main><iframe title=Images src="{source}"
style="border:0;width:100vw;height:100vh"
sandbox="allow-scripts allow-same-origin allow-forms allow-downloads"></iframe></main></body></html>"""


@dataclass
class Page:
    """A gallery whose run is what `run` says."""

    url: str = ""
    run: Run = field(default_factory=Run)
    state: str = "success"
    logs: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    spending: dict[str, Any] = field(default_factory=dict)
    shapes: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)

    def show(self, *records: Record, roles: dict[str, Role] | None = None, failed: tuple[Record, ...] = ()) -> None:
        """Have the run made of these records."""
        known = {record.task_id: record.role for record in records}
        self.run = Run(Graph(known if roles is None else roles), list(records), list(failed))

    @property
    def address(self) -> str:
        return f"{self.url}/gptimg/?dag_id=posters&run_id=r1"

    def tab(self, of: str = "run", **place: Any) -> str:
        """The page as a tab of a run or of a task instance, without Airflow's page around it."""
        more = "".join(f"&{name}={value}" for name, value in place.items())
        return f"{self.url}/gptimg/?of={of}&dag_id=posters&run_id=r1{more}"


def mirrored(task_id: str, image_task: str, n: int = 1, **known: Any) -> Record:
    """A transfer that has mirrored `n` images."""
    objects = [
        {
            "uri": f"s3://posters/gptimg/{image_task}/{index}.png",
            "task_id": image_task,
            "index": index,
            "size": 1_712_345,
            "content_type": "image/png",
            "sha256": "ab" * 32,
        }
        for index in range(n)
    ]
    return Record(task_id, known.pop("map_index", -1), "success", 1, Role.MIRROR, result=objects, **known)


@contextmanager
def serve_page(patch: Any) -> Iterator[Page]:
    page = Page()

    @contextmanager
    def no_session(*, scoped: bool) -> Iterator[None]:
        yield None

    @asynccontextmanager
    async def open_picture(place: Any, dag_id: str, record: Record, picture: Picture) -> AsyncIterator[Opened]:
        if page.problem:
            raise PictureUnavailableError(page.problem, 404)
        body = _draw(picture, page.shapes.get((picture.image_task, picture.index), (300, 300)))

        async def chunks() -> AsyncIterator[bytes]:
            yield body

        yield Opened("image/png", ".png", len(body), {}, chunks())

    def read_run(session: Any, dag_id: str, run_id: str, task_id: str | None = None, map_index: Any = None) -> Run:
        records = [record for record in page.run.records if task_id in (None, record.task_id)]
        return Run(page.run.graph, records, page.run.failed)

    patch.setattr(gallery_app, "load_run", lambda dag_id, run_id: read_run(None, dag_id, run_id))
    patch.setattr(gallery_app, "spending", lambda dag_id, run_id: page.spending["run" if run_id else "dag"])
    patch.setattr(sending, "read_run", read_run)
    patch.setattr(sending, "create_session", no_session)
    patch.setattr(sending, "open_picture", open_picture)
    outer = FastAPI()
    run = {"dag_run_id": "r1", "run_after": "2026-11-28T09:30:00Z"}
    tasks = "/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
    outer.get("/api/v2/dags")(lambda: {"dags": [{"dag_id": "posters"}], "total_entries": 1})
    outer.get(tasks)(lambda: {"task_instances": []})
    outer.get("/api/v2/dags/{dag_id}/dagRuns")(lambda: {"dag_runs": [run | {"state": page.state}], "total_entries": 1})
    outer.get("/api/v2/dags/{dag_id}/dagRuns/{run_id}")(lambda: run | {"state": page.state})
    outer.get(tasks + "/{task_id}/logs/{attempt}")(
        lambda task_id: {"content": [{"level": "error", "event": page.logs.get(task_id, "")}]}
    )

    @outer.get("/frame")
    def frame(source: str, background: str = "white") -> HTMLResponse:
        return HTMLResponse(_FRAME.format(source=source.replace("&", "&amp;"), background=background))

    @outer.get("/dags/{path:path}")
    def page_of_airflow(path: str) -> HTMLResponse:
        return HTMLResponse(f"<title>Airflow</title><main>{len(path)}</main>")

    gallery = gallery_app.make_app()
    for dependency in gallery_app._MAY_READ:
        gallery.dependency_overrides[dependency.dependency] = lambda: None
    outer.mount("/gptimg", gallery)
    with running(outer) as page.url:
        yield page


def _draw(picture: Picture, shape: tuple[int, int]) -> bytes:
    hue = (sum(map(ord, picture.image_task)) * 37 + picture.index * 60) % 360
    image = Image.new("RGB", shape, f"hsl({hue}, 60%, 55%)")
    pen = ImageDraw.Draw(image)
    width, height = shape
    pen.ellipse((width * 0.2, height * 0.2, width * 0.8, height * 0.8), fill=f"hsl({(hue + 140) % 360}, 70%, 70%)")
    pen.rectangle((0, 0, width - 1, height - 1), outline="black", width=3)
    encoded = io.BytesIO()
    image.save(encoded, "png")
    return encoded.getvalue()
