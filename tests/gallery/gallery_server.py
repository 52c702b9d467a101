# SPDX-License-Identifier: Apache-2.0
"""The gallery behind a real socket without a whole Airflow, and an S3 that means no good."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI

from airflow_provider_gptimg.gallery import app as gallery_app, sending
from airflow_provider_gptimg.gallery.recorded import Record
from airflow_provider_gptimg.gallery.records import Run
from airflow_provider_gptimg.gallery.roles import Graph, Role
from airflow_provider_gptimg.mirroring.marks import dag_mark

PNG = b"\x89PNG\r\n\x1a\n" + bytes(1000)


class HostileS3(socketserver.ThreadingTCPServer):
    """Answers GET /images/DAG/KIND/INDEX.png; what it sends depends on the kind."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        self.under_way = 0
        """Connections that trickle."""
        self.sending = 0
        """Connections that send without end."""
        self.stopped = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(socketserver.BaseRequestHandler):
    server: HostileS3

    def handle(self) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += self.request.recv(65536)
        _, dag_id, kind, file = request.split(b" ")[1].decode().split("?")[0].strip("/").split("/")
        marks = {"task-id": "t1", "index": file.partition(".")[0], "dag-id": dag_mark(dag_id)}
        head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n"
        head += b"".join(f"x-amz-meta-gptimg-{name}: {mark}\r\n".encode() for name, mark in marks.items())
        with suppress(OSError):
            getattr(self, kind)(head)

    def good(self, head: bytes) -> None:
        self.request.sendall(head + f"content-length: {len(PNG)}\r\n\r\n".encode() + PNG)

    def hang(self, head: bytes) -> None:
        self.request.sendall(head + b"content-length: 1000000\r\n\r\n" + PNG)
        self._trickle(b"\0")

    def slow_head(self, head: bytes) -> None:
        self.request.sendall(b"HTTP/1.1 200 OK\r\n")
        self._trickle(b"x")

    def large(self, head: bytes) -> None:
        self.request.sendall(head + b"content-length: 9999999999\r\n\r\n" + PNG)
        self._trickle(b"\0")

    def endless(self, head: bytes) -> None:
        self.request.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        self.server.sending += 1
        try:
            while not self.server.stopped.is_set():
                self.request.sendall(f"{len(PNG):x}\r\n".encode() + PNG + b"\r\n")
        finally:
            self.server.sending -= 1

    def bomb(self, head: bytes) -> None:
        self.request.sendall(head + b"content-encoding: gzip, gzip\r\ncontent-length: 20\r\n\r\n" + bytes(20))

    def cut(self, head: bytes) -> None:
        self.request.sendall(head + b"content-length: 1000000\r\n\r\n" + PNG)

    def _trickle(self, piece: bytes) -> None:
        self.server.under_way += 1
        try:
            self.request.settimeout(0.05)
            while not self.server.stopped.is_set():
                self.request.sendall(piece)
                with suppress(TimeoutError):
                    if not self.request.recv(1):
                        return
        finally:
            self.server.under_way -= 1


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

    for module in (sending, gallery_app):
        patch.setattr(module, "read_run", read_run)
        patch.setattr(module, "create_session", no_session)
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
