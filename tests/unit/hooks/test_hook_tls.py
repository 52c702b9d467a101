# SPDX-License-Identifier: Apache-2.0
"""TLS: whose certificates are believed, in a worker's calls and in the triggerer's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from ssl import Purpose, create_default_context
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
import trustme

from airflow_provider_gptimg.api import protocol
from airflow_provider_gptimg.exceptions import GptImgServerError
from airflow_provider_gptimg.hooks import shared_client as module
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.hooks.http import sync_client
from airflow_provider_gptimg.hooks.network import tls_context
from airflow_provider_gptimg.hooks.shared_client import shared_client


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch) -> None:
    monkeypatch.setattr(protocol, "backoff", lambda *told: 0.001)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(authority, tmp_path) -> str:
    """The authority's CA bundle."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def other_bundle(tmp_path) -> str:
    """A CA bundle of somebody else."""
    path = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def https(emulator, authority) -> Iterator[str]:
    """The base URL of the emulator behind TLS."""
    backend = urlsplit(emulator.base_url)
    context = create_default_context(Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(backend.hostname, backend.port)
        await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer), return_exceptions=True)

    async def listen() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            end = asyncio.Event()
            listening.put((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), end))
            await end.wait()

    listening: Queue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Queue()
    thread = threading.Thread(target=asyncio.run, args=(listen(),))
    thread.start()
    port, loop, end = listening.get()
    yield f"https://127.0.0.1:{port}"
    loop.call_soon_threadsafe(end.set)
    thread.join()


def held(task_id: str) -> str:
    return GptImgHook().get_task(task_id).task_id


def deferred(task_id: str) -> str:
    return asyncio.run(GptImgHook().aget_task(task_id)).task_id


@pytest.mark.parametrize("ask", [held, deferred])
class TestCertificates:
    def test_of_the_bundle_are_believed(self, emulator, https, connect, bundle, ask):
        task_id = emulator.add_task()
        connect(emulator, host=https, verify=bundle)
        assert ask(task_id) == task_id

    @pytest.mark.parametrize("whose", ["the machine", "somebody else"])
    def test_of_others_are_not(self, emulator, https, connect, other_bundle, whose, ask):
        connect(emulator, host=https, **({} if whose == "the machine" else {"verify": other_bundle}))
        with pytest.raises(GptImgServerError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(emulator.add_task())
        assert emulator.calls == []

    def test_are_not_looked_at_if_the_connection_says_so(self, emulator, https, connect, ask):
        task_id = emulator.add_task()
        connect(emulator, host=https, verify=False)
        assert ask(task_id) == task_id


def test_plain_http_needs_no_certificates_and_trusts_none(emulator, https, connect, bundle, monkeypatch):
    """Reading them takes longer than a poll."""
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/bundle.pem")
    task_id = emulator.add_task()
    assert held(task_id) == task_id
    monkeypatch.setenv("SSL_CERT_FILE", bundle)
    with (
        sync_client(GptImgHook().settings) as client,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.get(https)


async def test_a_mended_bundle_serves_waits_that_go_on(emulator, https, connect, bundle, other_bundle, monkeypatch):
    """They share a client for as long as there is one."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    task_id = emulator.add_task()
    connect(emulator, host=https, verify=other_bundle)
    async with shared_client("gptimg_default") as client:
        with pytest.raises(GptImgServerError):
            await client.get_task(task_id, max_attempts=1)
        connect(emulator, host=https, verify=bundle)
        clock.now += 3600
        async with shared_client("gptimg_default") as later:
            await later.settings()
        assert (await client.get_task(task_id)).task_id == task_id
        inner = [way.session for way in client._ways]
    assert [one.closed for one in inner] == [True, True]


def test_threads_that_start_together_read_a_bundle_once(bundle):
    together = threading.Barrier(8)

    def context(_):
        together.wait()
        return tls_context(bundle)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(context, range(8)))) == 1
