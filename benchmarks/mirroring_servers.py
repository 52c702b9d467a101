# SPDX-License-Identifier: Apache-2.0
"""An image host and an S3 that cost next to nothing, so that what is measured is the client.

The S3 takes object bodies and forgets them; it remembers their headers, and so knows PUT with `If-None-Match`, HEAD,
ListObjectsV2 and multipart uploads. As a script it serves both until its input ends.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bench"

Answer = tuple[str, dict[str, str], bytes | memoryview]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR = b"\x00\x00\x00\x0dIHDR" + (1024).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00" + bytes(4)
_IEND = b"\x00\x00\x00\x00IEND\xae\x42\x60\x82"


def image(size: int) -> bytes:
    """Return what looks like a PNG of `size` bytes to whoever follows its chunks."""
    length = size - len(_SIGNATURE) - len(_IHDR) - 12 - len(_IEND)
    return b"".join((_SIGNATURE, _IHDR, length.to_bytes(4, "big"), b"IDAT", bytes(length), bytes(4), _IEND))


def images_of(host: str, size: int | str, first: int) -> list[dict[str, str]]:
    """Return the images of a task as the API tells of them."""
    return [{"url": f"{host}/{size}/{first + n}.png", "content_type": "image/png"} for n in range(4)]


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body_size: int


class Server:
    """HTTP/1.1 with a thread for each connection; bodies of requests are read and dropped."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        scratch = memoryview(bytearray(1024 * 1024))
        kept = b""
        with connection:
            try:
                while True:
                    while b"\r\n\r\n" not in kept:
                        data = connection.recv(65536)
                        if not data:
                            return
                        kept += data
                    head, _, kept = kept.partition(b"\r\n\r\n")
                    request = _parse(head)
                    if request.headers.get("expect"):
                        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    missing = request.body_size - len(kept)
                    while missing > 0:
                        missing -= connection.recv_into(scratch, min(missing, len(scratch))) or missing
                    kept = kept[request.body_size :]
                    status, headers, body = self._answer(request)
                    headers.setdefault("Content-Length", str(len(body)))
                    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
                    connection.sendall("\r\n".join(lines).encode())
                    connection.sendall(body)
            except ConnectionError:
                return


def _parse(head: bytes) -> Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding"):
        raise ValueError("this server needs a Content-Length")
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    return Request(method, unquote(parts.path), query, headers, int(headers.get("content-length", 0)))


class ImageHost:
    """`GET /<bytes>/<number>.png` is an image of so many bytes; `task-<bytes>-<number>` is a task of four of them."""

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._images: dict[int, memoryview] = {}
        self._lock = threading.Lock()
        self.sent = 0

    def answer(self, request: Request) -> Answer:
        if request.path.startswith("/api/"):
            return self._task(request)
        size = int(request.path.split("/")[1])
        with self._lock:
            if size not in self._images:
                self._images[size] = memoryview(image(size))
            self.sent += size
        time.sleep(self._latency)
        return "200 OK", {"Content-Type": "image/png"}, self._images[size]

    def _task(self, request: Request) -> Answer:
        time.sleep(self._latency)
        task_id = request.path.rpartition("/")[2]
        _, size, first = task_id.split("-")
        data = {
            "task_id": task_id,
            "status": "completed",
            "images": images_of(f"http://{request.headers['host']}", size, int(first)),
        }
        return "200 OK", {"Content-Type": "application/json"}, json.dumps({"success": True, "data": data}).encode()


@dataclass
class Stored:
    size: int
    headers: dict[str, str]


@dataclass
class S3:
    """One S3 for all buckets there may be."""

    latency: float
    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: Request) -> Answer:
        time.sleep(self.latency)
        with self.lock:
            return self._answer(request)

    def _answer(self, request: Request) -> Answer:
        path, etag = request.path, '"d41d8cd98f00b204e9800998ecf8427e"'
        if "uploads" in request.query:
            self.uploads[path] = 0
            return _xml("<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
        if "uploadId" in request.query:
            if request.method == "PUT":
                self.uploads[path] += request.body_size
                return "200 OK", {"ETag": etag}, b""
            self.objects[path] = Stored(self.uploads.pop(path), {})
            return _xml(f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>")
        if "list-type" in request.query:
            return self._list(path.strip("/"), request.query.get("prefix", [""])[0])
        if request.method == "PUT":
            if path in self.objects and request.headers.get("if-none-match") == "*":
                return _xml("<Error><Code>PreconditionFailed</Code></Error>", "412 Precondition Failed")
            kept = {
                name: value
                for name, value in request.headers.items()
                if name.startswith(("x-amz-meta-", "x-amz-checksum-")) or name == "content-type"
            }
            size = int(request.headers.get("x-amz-decoded-content-length", request.body_size))
            self.objects[path] = Stored(size, kept)
            return "200 OK", {"ETag": etag}, b""
        stored = self.objects.get(path)
        if stored is None:
            return "404 Not Found", {}, b""
        return "200 OK", {**stored.headers, "ETag": etag, "Content-Length": str(stored.size)}, b""

    def _list(self, bucket: str, prefix: str) -> Answer:
        start = f"/{bucket}/"
        keys = sorted(path[len(start) :] for path in self.objects if path.startswith(start + prefix))
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{self.objects[start + key].size}</Size></Contents>"
            for key in keys
        )
        return _xml(f"<ListBucketResult><KeyCount>{len(keys)}</KeyCount>{found}</ListBucketResult>")


def _xml(body: str, status: str = "200 OK") -> Answer:
    return status, {"Content-Type": "application/xml"}, f'<?xml version="1.0"?>{body}'.encode()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0, help="seconds to the first byte, on either side")
    parser.add_argument("--moto", action="store_true", help="moto's S3 in place of the one that forgets bodies")
    arguments = parser.parse_args()
    host, s3 = ImageHost(arguments.latency), S3(arguments.latency)

    def answer_or_tell(request: Request) -> Answer:
        return ("200 OK", {}, str(host.sent).encode()) if request.path == "/sent" else host.answer(request)

    port = _moto() if arguments.moto else Server(s3.answer).port
    print(json.dumps({"images": Server(answer_or_tell).port, "s3": port}), flush=True)
    sys.stdin.read()


def _moto() -> int:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3_client(f"http://{host}:{port}").create_bucket(Bucket=BUCKET)
    return int(port)


def s3_client(url: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="bench",
        aws_secret_access_key="benchbench",
        config=Config(proxies={}),
    )


if __name__ == "__main__":
    main()
