# SPDX-License-Identifier: Apache-2.0
"""The gallery behind a real socket without a whole Airflow."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from airflow_provider_gptimg.gallery import app as gallery_app, sending
from airflow_provider_gptimg.gallery.recorded import Record
from airflow_provider_gptimg.gallery.records import Run
from airflow_provider_gptimg.gallery.roles import Graph, Role


@contextmanager
def serve(patch: Any) -> Iterator[str]:
    """Serve the gallery to whoever asks; of each DAG, a task instance `KIND` names pictures of that kind."""

    def read_run(session: Any, dag_id: str, run_id: str, task_id: str, map_index: int) -> Run:
        objects = [
            {"uri": f"s3://images/{dag_id}/{task_id}/{index}.png", "task_id": "t1", "index": index}
            for index in range(100)
        ]
        record = Record(task_id, map_index, "success", 1, Role.MIRROR, {"aws_conn_id": "hostile"}, objects)
        return Run(Graph({task_id: Role.MIRROR}), [record])

    @contextmanager
    def no_session(*, scoped: bool) -> Iterator[None]:
        yield None

    patch.setattr(sending, "read_run", read_run)
    patch.setattr(sending, "create_session", no_session)
    outer = FastAPI()
    outer.get("/api/v2/version")(lambda: {"version": "3"})  # in the server's shared threads, as Airflow's own
    gallery = gallery_app.make_app()
    for dependency in gallery_app._MAY_READ:
        gallery.dependency_overrides[dependency.dependency] = lambda: None
    outer.mount("/gptimg", gallery)
    with running(outer) as url:
        yield url


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Run an app on a socket of its own, and give its address."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listening.close()
