# SPDX-License-Identifier: Apache-2.0
"""One client for all waits of an event loop: shared, bounded, and closed when the last wait is over."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import socket
import subprocess
import sys
import textwrap
from inspect import signature
from types import SimpleNamespace

import aiohttp
import pytest
import trustme
from raw_server import raw_server

from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgError,
    GptImgProtocolError,
    GptImgRequestError,
    GptImgServerError,
)
from airflow_provider_gptimg.hooks import network, shared_client as module
from airflow_provider_gptimg.hooks.connection import DEFAULT_MAX_CONNECTIONS
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.hooks.shared_client import SharedClient, shared_client


async def ask(task_id: str, conn_id: str = "gptimg_default"):
    """What one trigger does."""
    async with shared_client(conn_id) as client:
        await client.settings()
        return await client.get_task(task_id)


def run_alone(script: str):
    """What `script` prints in a process of its own, as JSON."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The ids of the connections that were read, in order."""
    from airflow_provider_gptimg import airflow_compat as connection

    read, ids = connection.get_async_connection, []

    async def get_async_connection(conn_id):
        ids.append(conn_id)
        return await read(conn_id)

    monkeypatch.setattr(connection, "get_async_connection", get_async_connection)
    return ids


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The clock by which the client knows how old its settings are; `now` can be set."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


async def test_all_waits_of_a_connection_share_it(emulator):
    async with shared_client("gptimg_default") as first, shared_client("gptimg_default") as second:
        assert first is second


async def test_each_connection_has_its_own(emulator, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", emulator.connection_json)
    async with shared_client("gptimg_default") as one, shared_client("other") as other:
        assert one is not other


async def test_the_last_wait_closes_it(emulator):
    task_id = emulator.add_task()
    async with shared_client("gptimg_default") as client:
        await ask(task_id)
        await client.get_task(task_id)
        inner = client._ways[-1].session
        assert not inner.closed
    assert inner.closed
    async with shared_client("gptimg_default") as anew:
        assert anew is not client
        await anew.get_task(task_id)


async def test_a_failed_wait_lets_go_of_it_too(emulator):
    with pytest.raises(GptImgError):
        await ask("gpt-image-2-unknown")
    assert module._clients[asyncio.get_running_loop()] == {}


async def test_a_cancelled_wait_lets_go_of_it_too(emulator, until):
    emulator.fault("poll", "hang_before")
    waiting = asyncio.create_task(ask(emulator.add_task()))
    await until(lambda: emulator.waiting())
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert module._clients[asyncio.get_running_loop()] == {}
    await until(lambda: not emulator.waiting())


def test_an_event_loop_leaves_nothing_behind(emulator):
    task_id = emulator.add_task()
    gc.collect()
    before = len(module._clients)
    for _ in range(3):
        asyncio.run(ask(task_id))
    gc.collect()
    assert len(module._clients) <= before


def test_the_garbage_collector_of_the_process_is_left_alone():
    """Whoever runs a triggerer decides on that."""
    assert run_alone("""
        import asyncio, gc
        from airflow_provider_gptimg.hooks.shared_client import shared_client

        async def wait():
            async with shared_client("one"):
                return gc.get_freeze_count(), gc.isenabled(), gc.get_threshold()

        before = gc.get_freeze_count(), gc.isenabled(), gc.get_threshold()
        print("true" if asyncio.run(wait()) == before else "false")
    """)


async def test_a_thousand_waits_use_a_bounded_number_of_sockets(emulator):
    emulator.latency = 0.02
    task_ids = [emulator.add_task() for _ in range(300)]
    tasks = await asyncio.gather(*map(ask, task_ids))
    assert [task.task_id for task in tasks] == task_ids
    connections = {call.connection for call in emulator.calls}
    assert 1 < len(connections) <= DEFAULT_MAX_CONNECTIONS


async def test_polls_one_after_another_use_one_socket(emulator):
    task_id = emulator.add_task()
    async with shared_client("gptimg_default") as client:
        for _ in range(5):
            await client.get_task(task_id)
    assert len({call.connection for call in emulator.calls}) == 1


async def test_the_connection_is_read_once_for_all_waits_that_start_together(emulator, reads):
    task_id = emulator.add_task()
    await asyncio.gather(*(ask(task_id) for _ in range(50)))
    assert reads == ["gptimg_default"]


async def test_asking_without_reading_the_settings_before_is_as_good(emulator, reads):
    """As `aget_task` does, many at once."""
    network._context.cache_clear()  # to make one takes a moment, in which others begin to ask
    task_id = emulator.add_task()
    asking = []
    for _ in range(50):
        asking.append(asyncio.create_task(GptImgHook().aget_task(task_id)))
        await asyncio.sleep(0)
    assert {task.task_id for task in await asyncio.gather(*asking)} == {task_id}
    assert reads == ["gptimg_default"]


async def test_the_connection_is_read_anew_for_waits_that_start_later(emulator, reads, clock):
    task_id = emulator.add_task()
    async with shared_client("gptimg_default"):
        for _ in range(3):
            await ask(task_id)
            clock.now += 40
    assert len(reads) == 2


async def test_a_rotated_key_is_picked_up_by_waits_under_way(emulator, reads, clock, connect):
    task_id = emulator.add_task()
    async with shared_client("gptimg_default") as client:
        await client.get_task(task_id)
        emulator.revoke_key(emulator.api_key)
        emulator.add_key("the-rotated-key", user="default")
        connect(emulator, password="the-rotated-key")
        clock.now += 5
        tasks = await asyncio.gather(*(client.get_task(task_id) for _ in range(20)))
        assert len(tasks) == 20
    assert len(reads) == 2, "one wait that was refused has read it for all"


async def test_a_key_that_stays_rejected_is_an_error(emulator, reads, clock, connect):
    connect(emulator, password="no-such-key-anywhere")
    async with shared_client("gptimg_default") as client:
        await client.settings()
        clock.now += 5
        with pytest.raises(GptImgAuthError) as error:
            await client.get_task("gpt-image-2-x")
    assert "no-such-key-anywhere" not in str(error.value)
    assert (len(emulator.calls), len(reads)) == (1, 2)


@pytest.mark.parametrize(("fault", "error"), [("html", GptImgProtocolError), (403, GptImgAuthError)])
async def test_a_connection_that_is_away_leaves_the_error_as_it_is(emulator, clock, monkeypatch, fault, error):
    """A wait outlives a gateway's page; that of a missing connection would end it."""
    async with shared_client("gptimg_default") as client:
        await client.settings()
        clock.now += 5
        monkeypatch.delenv("AIRFLOW_CONN_GPTIMG_DEFAULT")
        emulator.fault("poll", fault, **({"status": 403} if fault == "html" else {}))
        with pytest.raises(error):
            await client.get_task("gpt-image-2-x", max_attempts=1)


async def test_a_wrong_connection_is_the_same_error_for_each_wait(emulator, connect):
    connect(emulator, verify="/no/such/bundle.pem")
    async with shared_client("gptimg_default") as client:
        for _ in range(2):
            with pytest.raises(GptImgRequestError, match="verify"):
                await client.get_task("gpt-image-2-x")


async def test_a_connection_that_was_mended_is_used(emulator, connect):
    task_id = emulator.add_task()
    connect(emulator, verify="/no/such/bundle.pem")
    async with shared_client("gptimg_default") as client:
        with pytest.raises(GptImgRequestError, match="verify"):
            await client.get_task(task_id)
        connect(emulator)
        assert (await client.get_task(task_id)).is_final


async def test_waiting_in_line_counts_against_no_timeout(emulator, connect):
    """More polls than connections, and each takes a fifth of a call's time."""
    connect(emulator, timeout=1.5, max_connections=2)
    emulator.latency = 0.3
    task_id = emulator.add_task()
    client = SharedClient("gptimg_default")
    try:
        await client.settings()
        outcomes = await asyncio.gather(*(client.get_task(task_id, max_attempts=1) for _ in range(12)))
        assert len(outcomes) == 12
    finally:
        await client.aclose()


async def test_the_event_loop_stays_free(emulator):
    """A call that blocks would leave one or two beats."""
    emulator.latency = 1
    waiting, beats = asyncio.create_task(ask(emulator.add_task())), 0
    while not waiting.done():
        await asyncio.sleep(0.005)
        beats += 1
    assert beats > 10


@pytest.mark.skipif("socket_factory" not in signature(aiohttp.TCPConnector).parameters, reason="an older aiohttp")
async def test_a_flood_of_informational_answers_is_parsed_in_small_pieces(monkeypatch):
    """The loop gets its turn between two pieces; the call ends when its time is up."""
    sizes: list[int] = []
    for name in ("recv", "recv_into"):
        read = getattr(socket.socket, name)

        def note(self, *arguments, read=read):
            got = read(self, *arguments)
            if isinstance(self, module._SmallReads):
                sizes.append(len(got) if isinstance(got, bytes) else got)
            return got

        monkeypatch.setattr(socket.socket, name, note, raising=False)

    def flood(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    with raw_server(flood) as server:
        fields = {"conn_type": "gptimg", "host": server.base_url, "password": "a-key", "extra": {"timeout": 0.3}}
        monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", json.dumps(fields))
        with pytest.raises(GptImgServerError, match=r"longer than 0\.3 s"):
            async with shared_client("gptimg_default") as client:
                await client.get_task("t", max_attempts=1)
    assert sum(sizes) > 100_000
    assert max(sizes) <= 4096


async def test_keeps_no_cookies(emulator):
    task_id = emulator.add_task()
    body = json.dumps({"success": True, "data": {"task_id": task_id, "status": "processing"}})
    emulator.fault("poll", "body", body=body, headers={"Set-Cookie": "session=1; Path=/"})
    async with shared_client("gptimg_default") as client:
        await client.get_task(task_id)
        await client.get_task(task_id)
    assert not any("cookie" in call.headers for call in emulator.calls)


async def test_reads_a_compressed_answer(emulator):
    """As a proxy may send."""
    task_id = emulator.add_task()
    body = gzip.compress(json.dumps({"success": True, "data": {"task_id": task_id, "status": "dreaming"}}).encode())
    emulator.fault("poll", "body", body=body, headers={"Content-Encoding": "gzip"})
    async with shared_client("gptimg_default") as client:
        assert (await client.get_task(task_id)).status == "dreaming"


async def test_waits_that_go_on_read_the_connection_again_each_minute(emulator, reads, clock):
    task_id = emulator.add_task()
    async with shared_client("gptimg_default") as client:
        for _ in range(3):
            await client.get_task(task_id)
            clock.now += 40
    assert len(reads) == 2


async def test_waits_go_on_while_the_connection_cannot_be_read(emulator, clock, monkeypatch):
    task_id = emulator.add_task()
    async with shared_client("gptimg_default") as client:
        await client.get_task(task_id)
        monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", "{")
        clock.now += 70
        assert (await client.get_task(task_id)).task_id == task_id
        clock.now += 70
        with pytest.raises(GptImgError):
            await client.settings()


async def test_a_bundle_that_is_renewed_in_place_serves_waits_that_go_on(emulator, connect, clock, tmp_path):
    bundle = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(bundle)
    connect(emulator, verify=str(bundle))
    async with shared_client("gptimg_default") as client:
        await client.get_task(emulator.add_task())
        trustme.CA().cert_pem.write_to_path(bundle)
        clock.now += 70
        await client.get_task(emulator.add_task())
        assert len({way.context for way in client._ways}) == 2


async def test_sockets_are_opened_as_they_are_needed(emulator, connect):
    connect(emulator, max_connections=100)
    emulator.latency = 1
    task_id = emulator.add_task()
    async with shared_client("gptimg_default") as client:
        await asyncio.gather(*(client.get_task(task_id) for _ in range(3)))
        assert len({call.connection for call in emulator.calls}) == 3
        await asyncio.gather(*(client.get_task(task_id) for _ in range(60)))
        assert 36 < len({call.connection for call in emulator.calls}) <= 60
