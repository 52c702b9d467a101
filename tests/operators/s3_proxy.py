# SPDX-License-Identifier: Apache-2.0
"""A way to S3 on which things go wrong: a proxy that answers for it, or loses its answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass
class S3Proxy:
    """What goes through, and what is to go wrong."""

    url: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path with query, and headers by lower-case name, of each request."""
    _faults: list[list] = field(default_factory=list)

    def fault(self, method: str, status: int, code: str, times: int | None = 1) -> None:
        """Answer the next requests (None: all) with an error of S3; status 0 loses S3's own answer instead."""
        self._faults.append([method, status, code, times])

    def seen(self, method: str) -> int:
        return sum(seen == method for seen, _, _ in self.requests)

    def take(self, method: str) -> tuple[int, str] | None:
        for fault in self._faults:
            if fault[0] == method and fault[3] != 0:
                if fault[3] is not None:
                    fault[3] -= 1
                return fault[1], fault[2]
        return None


@contextmanager
def s3_proxy(upstream: str) -> Iterator[S3Proxy]:
    """Serve a proxy of the S3 at `upstream` on a loopback port."""
    proxy, client, lock = S3Proxy(), httpx.Client(base_url=upstream, trust_env=False), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            if headers.pop("expect", None):
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = self.rfile.read(int(headers.get("content-length", 0)))
            with lock:
                proxy.requests.append((self.command, self.path, headers))
                fault = proxy.take(self.command)
            if fault and fault[0]:
                status, code = fault
                content = f"<Error><Code>{code}</Code><Message>as ordered</Message></Error>".encode()
                return self._answer(status, {"Content-Type": "application/xml"}, content)
            kept = {name: value for name, value in headers.items() if name not in _HOP_BY_HOP}
            answer = client.request(self.command, self.path, headers=kept, content=body)
            if fault:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return None
            told = {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP}
            return self._answer(answer.status_code, told, answer.content, answer.headers.get("content-length"))

        def _answer(self, status: int, headers: dict[str, str], content: bytes, length: str | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        client.close()
