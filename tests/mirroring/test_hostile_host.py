# SPDX-License-Identifier: Apache-2.0
"""An image host that sends bombs, trickles, heads and bodies without an end: a download ends, and cheaply."""

from __future__ import annotations

import gzip
import io
import socket
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import pytest
from mirroring_images import picture

from airflow_provider_gptimg.exceptions import GptImgMediaError
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.mirroring.download import Downloader, TransientError

MIB = 1024 * 1024
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n"


class Host:
    """Answers each connection with what `script` yields, a piece at a time, until the client hangs up."""

    def __init__(self) -> None:
        self.script: Callable[[], Iterator[bytes]] = lambda: iter(())
        self.sent = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/image.png"
        self._stop = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while connection.recv(65536):
                for piece in self.script():
                    connection.sendall(piece)
                    self.sent += len(piece)

    def trickle(self, start: bytes, piece: bytes) -> Iterator[bytes]:
        """Yield `start`, then `piece` again and again, each well within any timeout of a read."""
        yield start
        while not self._stop.wait(0.01):
            yield piece

    def close(self) -> None:
        self._stop.set()
        self._listener.close()


@pytest.fixture
def host() -> Iterator[Host]:
    with closing(Host()) as host:
        yield host


@pytest.fixture
def download(emulator: Any, host: Host) -> Iterator[Callable[..., Any]]:
    settings = replace(GptImgHook().settings, call_timeout=0.3)
    with closing(Downloader(settings, 4 * MIB)) as downloader:
        yield lambda: downloader.download(host.url, io.BytesIO(), "The image")


def flood(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (OK, b"X-More: and more\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK + b"Content-Length: 99999\r\n\r\n", b"x"),
        (CHUNKED + b"\r\n10; extension=", b"x"),
        (CHUNKED + b"Content-Encoding: deflate\r\n\r\n", b"5\r\n\x00\x00\x00\xff\xff\r\n"),
    ],
    ids=["header", "headers", "1xx", "body", "chunk extension", "empty blocks"],
)
def test_what_trickles_ends(host, download, start, piece, kept):
    if kept:
        content = picture()
        host.script = lambda: iter([OK + b"Content-Length: %d\r\n\r\n" % len(content) + content])
        download()
    host.script = lambda: host.trickle(start, piece)
    with pytest.raises((TransientError, GptImgMediaError)):
        download()
    assert host.sent < 4 * MIB


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b"x" * 65536),
        (b"Content-Encoding: gzip\r\n", b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"n" * 65536),
        (b"Content-Encoding: deflate\r\n", b"\x00\x00\x00\xff\xff" * 10000),
    ],
    ids=["image", "gzip name", "empty blocks"],
)
def test_a_flood_ends_at_the_limit(host, download, head, piece):
    host.script = lambda: flood_after(OK + head + b"\r\n", piece)
    with pytest.raises((TransientError, GptImgMediaError)):
        download()
    assert host.sent < 16 * MIB


def flood_after(head: bytes, piece: bytes) -> Iterator[bytes]:
    yield head
    yield from flood(piece)


def answer(coding: str, body: bytes) -> bytes:
    return OK + f"Content-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


BOMB = gzip.compress(picture() + bytes(256 * MIB))


@pytest.mark.parametrize(
    ("coding", "body", "said"),
    [
        ("gzip", BOMB, "max_image_bytes"),
        ("gzip, gzip", gzip.compress(BOMB), "encoded 2 times over"),
        ("br", b"\x0b\x02\x80abc\x03", "not asked for"),
        ("gzip", picture(), "is not gzip"),
    ],
    ids=["bomb", "stacked bomb", "br", "not gzip"],
)
def test_an_encoding_costs_no_more_than_the_limit(host, download, coding, body, said):
    host.script = lambda: iter([answer(coding, body)])
    tracemalloc.start()
    try:
        with pytest.raises(GptImgMediaError, match=said):
            download()
        assert tracemalloc.get_traced_memory()[1] < 12 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("coding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_an_image_that_was_encoded_unasked_is_decoded_once(host, download, coding, encode):
    content = picture()
    host.script = lambda: iter([answer(coding, encode(content))])
    assert download().size == len(content)
    host.script = lambda: iter([answer(coding, encode(content)[:-6])])
    with pytest.raises(TransientError, match="cut"):
        download()


def test_control_characters_and_queries_of_a_url_stay_out_of_messages(host, download):
    host.url += "?Signature=secret"
    host.script = lambda: iter([OK + b"Content-Length: 20\r\n\r\nnot an image at all!"])
    with pytest.raises(GptImgMediaError) as caught:
        download()
    assert "secret" not in str(caught.value)
