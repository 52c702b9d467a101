# SPDX-License-Identifier: Apache-2.0
"""A server light enough not to be what a benchmark measures: each task is `processing`, for ever or until its end.

It speaks the poll of the gpt-image-2 API and, for the official triggers beside it, as much of OpenAI's batches and
Databricks' job runs as a poll needs. It is a bare asyncio protocol on a thread, and remembers when it answered.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import random
import ssl
import threading
import time
from email.utils import formatdate
from pathlib import Path
from types import TracebackType

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["LoopbackApi"]

HOST = "127.0.0.1"


class LoopbackApi:
    """Listens with TLS and without, each on a port of its own.

    :param folder: Where its certificate goes, and `ca_bundle`: all public authorities and its own, so that reading
        the bundle takes as long as reading a real one.
    :param latency: Seconds from a request to its answer, on average.
    :param spread: The share by which it varies: without, what was asked in step would be answered in step.
    """

    def __init__(self, folder: Path, latency: float = 0.1, spread: float = 0.5) -> None:
        self.latency = latency
        self.spread = spread
        self.ca_bundle = folder / "ca-bundle.pem"
        self.answered_at: list[float] = []
        self.asked: list[tuple[float, str]] = []
        """When each path was asked for, in Unix seconds."""
        self.connections: set[asyncio.Protocol] = set()
        self.most_connections = 0
        self._context = _make_certificate(folder, self.ca_bundle)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loopback-api", daemon=True)
        self.plain_port = self.tls_port = 0

    def __enter__(self) -> LoopbackApi:
        self._thread.start()
        self.plain_port = asyncio.run_coroutine_threadsafe(self._listen(None), self._loop).result()
        self.tls_port = asyncio.run_coroutine_threadsafe(self._listen(self._context), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def url(self, tls: bool) -> str:
        """Return the base URL."""
        return f"https://{HOST}:{self.tls_port}" if tls else f"http://{HOST}:{self.plain_port}"

    def forget(self) -> None:
        """Start counting again from 0. Connections that are there already do not count: their client may have ended."""
        self.answered_at.clear()
        self.asked.clear()
        self.connections = set()
        self.most_connections = 0

    def answers_between(self, start: float, end: float) -> int:
        """Return how many requests were answered from `start` to `end`, in Unix seconds."""
        return sum(start <= at < end for at in self.answered_at)

    async def _listen(self, context: ssl.SSLContext | None) -> int:
        server = await self._loop.create_server(lambda: _Connection(self), HOST, 0, ssl=context, backlog=8192)
        port: int = server.sockets[0].getsockname()[1]
        return port


class _Connection(asyncio.Protocol):
    def __init__(self, api: LoopbackApi) -> None:
        self.api = api
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.api.connections.add(self)
        self.api.most_connections = max(self.api.most_connections, len(self.api.connections))

    def connection_lost(self, error: Exception | None) -> None:
        self.api.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].lower()
            length = 0
            if (at := head.find(b"content-length:")) >= 0:
                length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self.received) < end + 4 + length:
                return
            path = self.received.split(b" ", 2)[1].decode()
            self.received = self.received[end + 4 + length :]
            self.api.asked.append((time.time(), path))
            varied = random.uniform(1 - self.api.spread, 1 + self.api.spread)
            asyncio.get_running_loop().call_later(self.api.latency * varied, self.answer, path)

    def answer(self, path: str) -> None:
        if not self.transport.is_closing():
            self.api.answered_at.append(time.time())
            self.transport.write(_response(path))


_CREATED_AT = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _response(path: str) -> bytes:
    status, body = "200 OK", _body(path)
    if body is None:
        status, body = "404 Not Found", {"success": False, "error": {"code": "NOT_FOUND", "message": "No such path."}}
    payload = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"HTTP/1.1 {status}\r\ndate: {formatdate(usegmt=True)}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


def _body(path: str) -> dict[str, object] | None:
    start, _, task_id = path.partition("?")[0].rpartition("/")
    if start == "/api/v1/images/task":
        data = {
            "id": task_id.removeprefix("gpt-image-2-"),
            "task_id": task_id,
            "status": "processing",
            "provider": "gpt-image-2",
            "model": "gpt-image-2",
            "type": "text-to-image",
            "media_url": None,
            "images": [],
            "created_at": _CREATED_AT,
        }
        ends = task_id.split("-")[3:]  # gpt-image-2-1780000000.123-…
        if len(ends) > 1 and time.time() >= float(ends[0]):
            data |= {"status": "completed", "images": [{"url": "https://127.0.0.1/x.png", "content_type": "image/png"}]}
        return {"success": True, "data": data}
    if start == "/v1/batches":
        return {
            "id": task_id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": "file-1",
            "completion_window": "24h",
            "status": "in_progress",
            "created_at": 1,
        }
    if path.startswith("/api/2") and "/jobs/runs/get" in path:
        return {"run_id": 1, "state": {"life_cycle_state": "RUNNING", "result_state": "", "state_message": ""}}
    return None


def _make_certificate(folder: Path, ca_bundle: Path) -> ssl.SSLContext:
    """Sign a certificate for loopback with a new authority, and return a server's context that has it."""
    now = datetime.datetime.now(datetime.UTC)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Benchmark authority")])

    def build(subject: str, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(authority_name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    authority = (
        build("Benchmark authority", authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))])
    certificate = build("localhost", key.public_key()).add_extension(names, critical=False)
    pem = serialization.Encoding.PEM
    chain = folder / "server.pem"
    chain.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.sign(authority_key, hashes.SHA256()).public_bytes(pem)
    )
    ca_bundle.write_bytes(Path(certifi.where()).read_bytes() + authority.public_bytes(pem))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain)
    return context
