# SPDX-License-Identifier: Apache-2.0
"""A worker's client and the triggerer's behave alike: bounds, encodings, certificates and proxies."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import socket
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from ssl import Purpose, create_default_context
from typing import Any, ClassVar

import pytest
import trustme
from raw_server import raw_server

from airflow_provider_gptimg.api import protocol
from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgProtocolError,
    GptImgRateLimitError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
)
from airflow_provider_gptimg.hooks import network
from airflow_provider_gptimg.hooks.gptimg import GptImgHook

KEY = "sk-a-key-of-mine"
TASK = {"success": True, "data": {"task_id": "gpt-image-2-x", "status": "processing"}}
BODY = json.dumps(TASK).encode()


def worker(hook: GptImgHook) -> Any:
    return hook.get_task("gpt-image-2-x")


def triggerer(hook: GptImgHook) -> Any:
    return asyncio.run(hook.aget_task("gpt-image-2-x"))


BOTH = pytest.mark.parametrize("poll", [worker, triggerer])


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says nothing of certificates."""
    for name in network._CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send each call once, else the slow ones take five times as long."""
    monkeypatch.setattr(protocol, "MAX_WAIT", 0.0)
    monkeypatch.setattr(protocol.converse, "__kwdefaults__", {**protocol.converse.__kwdefaults__, "max_wait": 0.0})


@pytest.fixture
def connect_to(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def connect(host: str, **extra: Any) -> None:
        fields = {"conn_type": "gptimg", "host": host, "password": KEY, "extra": {"timeout": 20, **extra}}
        monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", json.dumps(fields))

    return connect


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", "content-type: application/json", *headers])
    return f"{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


class TestEncodings:
    @BOTH
    @pytest.mark.parametrize(
        ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)]
    )
    def test_of_the_usual_kind_are_read(self, connect_to, poll, encoding, pack):
        with raw_server(lambda to: to.sendall(answer(pack(BODY), f"content-encoding: {encoding}"))) as server:
            connect_to(server.base_url)
            assert poll(GptImgHook()).task_id == "gpt-image-2-x"
            assert b"accept-encoding: gzip, deflate\r\n" in server.requests[0].lower()

    @BOTH
    @pytest.mark.parametrize(
        ("encoding", "pack"),
        [
            ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
            ("br", bytes),
            ("zstd", bytes),
            ("gzip", lambda body: gzip.compress(body)[:-4]),
            ("gzip", lambda body: gzip.compress(body + bytes(1 << 20))),
        ],
        ids=["stacked", "br", "zstd", "cut", "bomb"],
    )
    def test_of_another_kind_are_not(self, connect_to, poll, encoding, pack):
        with raw_server(lambda to: to.sendall(answer(pack(BODY), f"content-encoding: {encoding}"))) as server:
            connect_to(server.base_url)
            with pytest.raises(GptImgProtocolError, match="the body"):
                poll(GptImgHook())
            with pytest.raises(GptImgSubmissionUnknownError, match="the body"):
                GptImgHook().submit("a cat")

    @BOTH
    def test_named_twice_count_as_stacked(self, connect_to, poll):
        body = gzip.compress(gzip.compress(BODY))
        twice = ("content-encoding: gzip", "content-encoding: gzip")
        with raw_server(lambda to: to.sendall(answer(body, *twice))) as server:
            connect_to(server.base_url)
            with pytest.raises(GptImgProtocolError, match="2 times"):
                poll(GptImgHook())

    @BOTH
    def test_do_not_matter_where_the_headers_say_all(self, connect_to, poll):
        refusal = answer(b"", "content-encoding: br", "retry-after: 7", status="429 Slow Down")
        with raw_server(lambda to: to.sendall(refusal)) as server:
            connect_to(server.base_url)
            with pytest.raises(GptImgRateLimitError) as limited:
                poll(GptImgHook())
            assert limited.value.retry_after == 7


class TestBounds:
    @BOTH
    def test_a_body_may_have_64_kib(self, connect_to, poll):
        body = BODY + b" " * (64 * 1024 - len(BODY))
        with raw_server(lambda to: to.sendall(answer(body))) as server:
            connect_to(server.base_url)
            assert poll(GptImgHook()).task_id == "gpt-image-2-x"

    @BOTH
    @pytest.mark.parametrize("chunked", [False, True])
    def test_and_no_more(self, connect_to, poll, chunked):
        body = BODY + b" " * (64 * 1024 + 1 - len(BODY))
        plain = answer(body)
        piecewise = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        with raw_server(lambda to: to.sendall(piecewise if chunked else plain)) as server:
            connect_to(server.base_url)
            with pytest.raises(GptImgProtocolError, match="more than 65536 bytes"):
                poll(GptImgHook())
            with pytest.raises(GptImgSubmissionUnknownError, match="more than 65536 bytes"):
                GptImgHook().submit("a cat")

    HEAD: ClassVar = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    ENDLESS: ClassVar = {
        "header-line": (HEAD + b"x: ", b"y" * 65536),
        "header-lines": (HEAD, b"".join(b"x-%d: %s\r\n" % (n, b"y" * 60) for n in range(500))),
        "interim-answers": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
        "body": (HEAD + b"\r\n", b" " * 65536),
        "tiny-chunks": (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 1000),
        "chunk-extension": (HEAD + b"transfer-encoding: chunked\r\n\r\n1;", b"y" * 65536),
        "trailers": (HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"x: y\r\n" * 1000),
        "gzip-name": (
            HEAD + b"content-encoding: gzip\r\n\r\n\x1f\x8b\x08\x08\0\0\0\0\0\xff",
            b"A" * 65536,
        ),
        "empty-blocks": (HEAD + b"content-encoding: deflate\r\n\r\n\x78\x9c", b"\0\0\0\xff\xff" * 10_000),
    }

    @BOTH
    @pytest.mark.parametrize("kind", ENDLESS)
    def test_what_never_ends_is_ended(self, connect_to, poll, kind):
        start, rest = self.ENDLESS[kind]

        def stream(to: socket.socket) -> None:
            to.sendall(start)
            while True:
                to.sendall(rest)

        with raw_server(stream) as server:
            connect_to(server.base_url, timeout=1)
            with pytest.raises(GptImgError):
                poll(GptImgHook())
            with pytest.raises(GptImgSubmissionUnknownError):
                GptImgHook().submit("a cat")

    @BOTH
    def test_a_bomb_is_never_held(self, connect_to, poll):
        bomb = answer(gzip.compress(bytes(64 << 20)), "content-encoding: gzip")
        with raw_server(lambda to: to.sendall(bomb)) as server:
            connect_to(server.base_url)
            with pytest.raises(GptImgProtocolError):
                poll(GptImgHook())  # imports, before memory is measured
            tracemalloc.start()
            try:
                with pytest.raises(GptImgProtocolError):
                    poll(GptImgHook())
                assert tracemalloc.get_traced_memory()[1] < 8 << 20
            finally:
                tracemalloc.stop()


class TestLogs:
    @BOTH
    @pytest.mark.parametrize(
        "head",
        [
            f"HTTP/1.1 200 OK\r\nx-echo: Bearer {KEY}\r\ncontent-length: {len(BODY)}",
            f"HTTP/1.1 200 {KEY} \x1b[31m\r\ncontent-length: {len(BODY)}",
            f"HTTP/1.1 200 OK\r\nauthorization  Bearer {KEY}\r\ncontent-length: {len(BODY)}",
            f"HTTP/1.1 {KEY}\r\ncontent-length: {len(BODY)}",
            f"HTTP/1.1 200 OK\r\ncontent-length: {KEY}",
            f"HTTP/1.1 101 Switching\r\nx-echo: {KEY}",
        ],
        ids=["header", "reason", "no-header", "no-status", "length", "upgrade"],
    )
    def test_at_any_level_show_no_key_that_a_server_echoes(self, connect_to, poll, head, caplog):
        for name in ("", "httpx", "httpcore", "httpcore.http11", "httpcore.connection", "aiohttp", "asyncio"):
            caplog.set_level(logging.DEBUG, logger=name)
        with raw_server(lambda to: to.sendall(f"{head}\r\n\r\n".encode() + BODY)) as server:
            connect_to(server.base_url)
            for call in (poll, lambda hook: hook.submit("a cat"), lambda hook: hook.test_connection()):
                try:
                    seen = repr(call(GptImgHook()))
                except GptImgError as error:
                    seen = f"{error!r} {error}"
                assert KEY not in seen
                assert "\x1b" not in seen
        assert KEY not in caplog.text
        assert "\x1b" not in caplog.text


@contextmanager
def tls_server(authority: trustme.CA, body: bytes = BODY) -> Iterator[int]:
    """The port of a server whose certificate is for `api.example` and is issued by `authority`."""
    context = create_default_context(Purpose.CLIENT_AUTH)
    authority.issue_cert("api.example").configure_cert(context)

    def serve(plain: socket.socket) -> None:
        plain.settimeout(20)
        try:
            with context.wrap_socket(plain, server_side=True) as connection:
                while b"\r\n\r\n" not in connection.recv(65536):
                    pass
                connection.sendall(answer(body, "connection: close"))
        except OSError:
            plain.close()

    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(plain,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


@contextmanager
def proxy_to(port: int, tls: Any = None) -> Iterator[tuple[int, list[bytes]]]:
    """The port of a proxy that leads all to `port`, and the heads of what it was asked; with `tls`, itself over TLS."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(one: Any, other: Any) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(client: Any) -> None:
        client.settimeout(20)
        try:
            if tls:
                client = tls.wrap_socket(client, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(65536)
            asked.append(head)
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            server = socket.create_connection(("127.0.0.1", port))
        except OSError:
            return
        threading.Thread(target=pump, args=(client, server), daemon=True).start()
        pump(server, client)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], asked
    finally:
        listener.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other() -> trustme.CA:
    return trustme.CA()


class TestTheWay:
    """To an API behind a proxy, with a certificate of a company's own authority."""

    @pytest.fixture
    def bundle(self, authority: trustme.CA, tmp_path: Path) -> Path:
        path = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(path)
        return path

    @pytest.fixture
    def asked(self, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
        """What the environment's proxy was asked on the way to `https://api.example`."""
        with tls_server(authority) as port, proxy_to(port) as (proxy, asked):
            monkeypatch.setenv("HTTPS_PROXY", f"http://jo%40corp:p%40ss%3Aw@127.0.0.1:{proxy}")
            yield asked

    @BOTH
    def test_credentials_of_the_proxy_reach_it(self, connect_to, bundle, asked, poll):
        connect_to("https://api.example", verify=str(bundle))
        assert poll(GptImgHook()).task_id == "gpt-image-2-x"
        assert base64.b64encode(b"jo@corp:p@ss:w") in asked[0]
        assert KEY.encode() not in b"".join(asked)

    @BOTH
    def test_all_that_the_environment_names_is_trusted(
        self, connect_to, bundle, asked, poll, other, tmp_path, monkeypatch
    ):
        other.cert_pem.write_to_path(tmp_path / "other.pem")
        connect_to("https://api.example")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "other.pem"))
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
        assert poll(GptImgHook()).task_id == "gpt-image-2-x"

    @BOTH
    @pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
    def test_the_environment_names_whom_to_trust(self, connect_to, bundle, asked, poll, monkeypatch, variable):
        connect_to("https://api.example")
        with pytest.raises(GptImgServerError, match="CERTIFICATE_VERIFY_FAILED"):
            poll(GptImgHook())
        monkeypatch.setenv(variable, str(bundle))
        assert poll(GptImgHook()).task_id == "gpt-image-2-x"

    @BOTH
    def test_a_bundle_that_is_renewed_in_place_is_read_again(self, connect_to, bundle, asked, poll, other, authority):
        other.cert_pem.write_to_path(bundle)
        connect_to("https://api.example", verify=str(bundle))
        with pytest.raises(GptImgServerError, match="CERTIFICATE_VERIFY_FAILED"):
            poll(GptImgHook())
        authority.cert_pem.write_to_path(bundle, append=True)
        assert poll(GptImgHook()).task_id == "gpt-image-2-x"

    @BOTH
    def test_a_bundle_that_is_missing_is_named(self, connect_to, poll, monkeypatch):
        connect_to("https://api.example")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
        with pytest.raises(GptImgError, match=r"REQUESTS_CA_BUNDLE='/no/such/bundle\.pem'"):
            poll(GptImgHook())

    @BOTH
    def test_a_proxy_over_tls_is_verified_as_the_host_is(self, connect_to, bundle, authority, poll, monkeypatch):
        context = create_default_context(Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(context)
        with tls_server(authority) as port, proxy_to(port, context) as (proxy, asked):
            monkeypatch.setenv("HTTPS_PROXY", f"https://localhost:{proxy}")
            connect_to("https://api.example", verify=str(bundle))
            assert poll(GptImgHook()).task_id == "gpt-image-2-x"
            assert asked
