# SPDX-License-Identifier: Apache-2.0
"""What a picture may cost the server that shows it, whatever its host does and however many people look."""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from gallery_server import serve
from hostile_s3 import PNG, HostileS3

from airflow_provider_gptimg.gallery import app, fetch, pictures, sending
from airflow_provider_gptimg.gallery.places import BusyError, Places

pytestmark = pytest.mark.timeout(300)


def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileS3]:
    with HostileS3.running() as server:
        monkeypatch.setenv("AIRFLOW_CONN_HOSTILE", server.connection_json)
        pictures._s3.cache_clear()
        yield server


@pytest.fixture
def url(hostile: HostileS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serve(monkeypatch) as served:
        yield served


def _query(kind: str, index: int = 0) -> dict[str, Any]:
    return {"run_id": "r", "task_id": kind, "image_task": "t1", "index": index}


def _get(url: str, kind: str, *, dag_id: str = "own", index: int = 0) -> httpx.Response:
    path = f"{url}/gptimg/dags/{dag_id}/picture"
    return httpx.get(path, params=_query(kind, index), timeout=100, trust_env=False)


@contextmanager
def _viewer(url: str, kind: str, *, dag_id: str = "own", index: int = 0) -> Iterator[httpx.Response]:
    """Somebody who has the beginning of a picture and waits for more; who leaves the block has left the page."""
    path = f"{url}/gptimg/dags/{dag_id}/picture"
    with (
        httpx.Client(timeout=100, trust_env=False) as client,
        client.stream("GET", path, params=_query(kind, index)) as answer,
    ):
        yield answer


def test_each_route_with_data_asks_for_airflows_permissions():
    asked = {
        route.path: {each.dependency for each in route.dependencies}
        for route in app.make_app().routes
        if isinstance(route, APIRoute)
    }
    assert set(asked) == {f"/dags/{{dag_id}}/{what}" for what in ("tiles", "picture", "zip", "spending")}
    for path, dependencies in asked.items():
        assert dependencies == {each.dependency for each in app._MAY_READ}, path


def test_a_picture_comes_as_it_is(url):
    answer = _get(url, "good")
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"] == 'inline; filename="t1-0.png"'


def test_a_hundred_viewers_of_a_trickling_store_stop_nobody_else(url, hostile, monkeypatch):
    """Each of the answers that is asserted comes while the others hang."""
    monkeypatch.setattr(fetch, "_HOST_MAY_TAKE", 1000.0)
    monkeypatch.setattr(sending.PictureResponse, "seconds", 1000.0)
    gone = Event()

    def look(index: int) -> int:
        with _viewer(url, "hang", dag_id="slow", index=index) as answer:
            if answer.status_code == 200:
                gone.wait()
            else:
                assert answer.headers["retry-after"].isdigit()
            return answer.status_code

    with ThreadPoolExecutor(100) as pool:
        viewers = [pool.submit(look, index) for index in range(100)]
        until(lambda: hostile.under_way == 4, "the first four pictures")
        until(lambda: sum(viewer.done() for viewer in viewers) >= 100 - 4 - 24, "the refusals")
        assert {viewer.result() for viewer in viewers if viewer.done()} == {503}
        for _ in range(20):
            assert httpx.get(f"{url}/api/v2/version", timeout=60, trust_env=False).status_code == 200
            assert httpx.get(f"{url}/gptimg/", timeout=60, trust_env=False).status_code == 200
            assert _get(url, "good", dag_id="other").content == PNG
        assert hostile.under_way == 4
        gone.set()
        assert [viewer.result() for viewer in viewers].count(200) >= 4
    until(lambda: hostile.under_way == 0, "the end of all")
    assert _get(url, "good", dag_id="slow").content == PNG


def test_a_picture_whose_viewer_has_left_is_let_go(url, hostile):
    for _ in range(3):
        with _viewer(url, "hang") as answer:
            assert answer.status_code == 200
            until(lambda: hostile.under_way == 1, "the store to be asked")
        until(lambda: hostile.under_way == 0, "the end of the connection to the store")


def test_a_viewer_who_leaves_before_the_first_byte_is_let_go_too(url, hostile):
    with httpx.Client(timeout=0.5, trust_env=False) as client, pytest.raises(httpx.ReadTimeout):
        client.get(f"{url}/gptimg/dags/own/picture", params=_query("slow_head"))
    until(lambda: hostile.under_way == 0, "the end of the connection to the store")


@pytest.mark.parametrize("kind", ["hang", "slow_head"])
def test_no_store_makes_a_picture_take_for_ever(url, hostile, monkeypatch, kind):
    monkeypatch.setattr(fetch, "_HOST_MAY_TAKE", 1.0)
    if kind == "slow_head":
        answer = _get(url, kind)
        assert (answer.status_code, answer.json()["detail"]) == (502, "The host is too slow")
    else:
        with pytest.raises(httpx.RemoteProtocolError):
            _get(url, kind)
    until(lambda: hostile.under_way == 0, "the end of the connection to the store")


def test_a_viewer_who_does_not_read_is_cut_off(url, hostile, monkeypatch):
    assert _get(url, "good").status_code == 200, "by now all is imported"
    monkeypatch.setattr(sending.PictureResponse, "seconds", 2.0)
    monkeypatch.setattr(fetch, "LARGEST", 1 << 40)
    with _viewer(url, "endless") as answer:
        assert answer.status_code == 200
        until(lambda: not hostile.sending, "the end of the connection to the store")
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()
    with _viewer(url, "slow_head") as answer:
        assert answer.status_code == 504


def test_no_picture_is_larger_than_the_limit(url, hostile, monkeypatch):
    answer = _get(url, "large")
    assert (answer.status_code, answer.json()["detail"]) == (502, "The image is larger than 64 MiB")
    monkeypatch.setattr(fetch, "LARGEST", 1 << 20)
    with pytest.raises(httpx.RemoteProtocolError):
        _get(url, "endless")


def test_nothing_is_unpacked(url):
    answer = _get(url, "bomb")
    assert (answer.status_code, answer.json()["detail"]) == (502, "The file is not an image")


def test_a_cut_picture_does_not_look_whole(url):
    with pytest.raises(httpx.RemoteProtocolError):
        _get(url, "cut")


def _zip(url: str, *picks: str, dag_id: str = "own") -> httpx.Response:
    path = f"{url}/gptimg/dags/{dag_id}/zip"
    return httpx.get(path, params={"run_id": "r", "pick": picks}, timeout=100, trust_env=False)


def test_picked_images_come_as_one_zip(url):
    answer = _zip(url, *(f"good/-1/t1/{index}" for index in (3, 1)), "good/0/t1/1", "large/-1/t1/0", "bomb/-1/t9/0")
    assert answer.headers["content-disposition"] == 'attachment; filename="images.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["t1-3.png", "t1-1.png", "t1-1-2.png", "not-included.txt"]
        assert archive.read("t1-3.png") == PNG
        missing = archive.read("not-included.txt").decode().splitlines()
    assert missing[0] == "t1-0: The image is larger than 64 MiB"
    assert missing[1].startswith("t9-0: There is no such image")


@pytest.mark.parametrize(
    ("picks", "status"),
    [
        ([], 422),
        (["good/-1/t1"], 422),
        (["good/x/t1/0"], 422),
        ([f"good/-1/t1/{index}" for index in range(41)], 422),
        (["good/-1/t9/0"], 404),
        (["bomb/-1/t1/0"], 502),
    ],
)
def test_a_zip_of_nothing_is_refused(url, picks, status):
    assert _zip(url, *picks).status_code == status


def test_a_zip_that_is_cut_does_not_look_whole(url, monkeypatch):
    monkeypatch.setattr(sending, "_LARGEST_ZIP", 1500)
    with pytest.raises(httpx.RemoteProtocolError):
        _zip(url, "good/-1/t1/0", "good/-1/t1/1")


def test_one_zip_at_a_time_of_a_dag(url, hostile):
    path = f"{url}/gptimg/dags/own/zip"
    with (
        httpx.Client(timeout=100, trust_env=False) as client,
        client.stream("GET", path, params={"run_id": "r", "pick": ["hang/-1/t1/0"]}) as first,
    ):
        assert first.status_code == 200
        busy = _zip(url, "good/-1/t1/0")
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "5")
        assert _zip(url, "good/-1/t1/0", dag_id="other").status_code == 200
        assert _get(url, "good").status_code == 200
    until(lambda: hostile.under_way == 0, "the end of the connection to the store")
    assert _zip(url, "good/-1/t1/0").status_code == 200


async def test_places_are_shared_fairly():
    places = Places("test", total=3, per_dag=2, waiting=4, patience=60)
    order: list[str] = []
    leave = asyncio.Event()

    async def hold(dag_id: str) -> None:
        async with places.take(dag_id):
            order.append(dag_id)
            await leave.wait()

    holders = [asyncio.create_task(hold(dag_id)) for dag_id in ("a", "a", "a", "a", "b", "c")]
    await asyncio.sleep(0)
    assert order == ["a", "a", "b"], "a third of one DAG does not keep out another's first"
    with pytest.raises(BusyError):  # half of those who may wait are of that DAG already
        async with places.take("a"):
            pass
    leave.set()
    await asyncio.gather(*holders)
    assert sorted(order) == ["a", "a", "a", "a", "b", "c"]
    assert places.taken == 0


async def test_nobody_waits_longer_than_patience_lasts():
    places = Places("test", total=1, per_dag=1, waiting=2, patience=0.01)
    async with places.take("a"):
        with pytest.raises(BusyError):
            async with places.take("b"):
                pass
    async with places.take("b"):
        pass
    assert places.taken == 0


def places_free(places: Places) -> Any:
    """Wait for a place."""
    places._waiting, places._patience = 2, 60
    return places.take("b")


async def test_a_place_is_taken_until_its_thread_has_ended():
    """A thread cannot be interrupted, so giving its place away would start one more."""
    places = Places("test", total=1, per_dag=1, waiting=0, patience=0)
    end: Future[None] = Future()

    async def hold() -> None:
        async with places.take("a") as place:
            await place.run(end.result)

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)
    assert places.taken == 1
    end.set_result(None)
    async with places_free(places):
        assert places.taken == 1
