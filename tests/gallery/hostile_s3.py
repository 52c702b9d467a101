# SPDX-License-Identifier: Apache-2.0
"""An S3 that means no good."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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
    def connection_json(self) -> str:
        extra = {"endpoint_url": f"http://127.0.0.1:{self.server_address[1]}", "region_name": "us-east-1"}
        return json.dumps({"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra})

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[HostileS3]:
        """Run one."""
        with cls() as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server
            server.stopped.set()
            server.shutdown()


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
