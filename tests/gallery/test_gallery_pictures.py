# SPDX-License-Identifier: Apache-2.0
"""Which bytes the gallery fetches for a picture, and which it does not, whatever an XCom says."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from airflow_provider_gptimg.gallery import pictures
from airflow_provider_gptimg.gallery.fetch import HostError, Opened, Source
from airflow_provider_gptimg.gallery.pictures import NOT_HERE, PictureUnavailableError
from airflow_provider_gptimg.gallery.places import Places
from airflow_provider_gptimg.gallery.recorded import Picture, Record, Submission
from airflow_provider_gptimg.gallery.roles import Role
from airflow_provider_gptimg.mirroring.marks import dag_mark

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


def record(**fields: Any) -> Record:
    return Record("mirror", -1, "success", 1, Role.MIRROR, fields=fields)


async def open_picture(record: Record, picture: Picture, dag_id: str = "own") -> tuple[Opened, bytes]:
    """Return a picture as it is shown to who looks at the DAG `own`."""
    places = Places("test", total=1, per_dag=1, waiting=0, patience=1)
    async with places.take(dag_id) as place, pictures.open_picture(place, dag_id, record, picture) as opened:
        return opened, b"".join([chunk async for chunk in opened.chunks])


def hosted(url: str) -> Picture:
    return Picture("t1", 0, url=url)


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A web server that is not the vendor's: its address, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("content-length", str(len(PNG)))
            self.end_headers()
            self.wfile.write(PNG)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "url",
    [
        "http://{elsewhere}/a.png",
        "https://{elsewhere}/a.png",
        "http://{api}@{elsewhere}/a.png",
        "http://{elsewhere}\\@{api}/a.png",
        "http://{elsewhere}#@{api}/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost:1/a.png",
        "http://[::1]/a.png",
        "https://gptimg.co.example.com/a.png",
        "file:///etc/passwd",
        "//{elsewhere}/a.png",
        "",
    ],
)
async def test_no_xcom_makes_it_ask_a_host_that_the_connection_does_not_allow(emulator, elsewhere, url):
    host, asked = elsewhere
    url = url.format(elsewhere=host, api=emulator.base_url.removeprefix("http://"))
    with pytest.raises(PictureUnavailableError, match="not allowed") as refusal:
        await open_picture(record(), hosted(url))
    assert asked == []
    assert host not in str(refusal.value)


async def test_no_rendered_field_makes_it_use_a_connection_of_another_type(elsewhere, monkeypatch):
    host, asked = elsewhere
    fields = {"conn_type": "http", "host": f"http://{host}", "password": "secret"}
    monkeypatch.setenv("AIRFLOW_CONN_INTERNAL", json.dumps(fields))
    with pytest.raises(PictureUnavailableError):
        await open_picture(record(gptimg_conn_id="internal"), hosted(f"http://{host}/a.png"))
    assert asked == []


async def test_what_the_api_itself_serves_is_shown_only_if_it_is_an_image(emulator):
    with pytest.raises(PictureUnavailableError):
        await open_picture(record(), hosted(f"{emulator.base_url}/"))


def put(s3: Any, body: bytes, key: str = "a.png", **marks: str | None) -> Picture:
    own = {"task-id": "t1", "index": "0", "dag-id": dag_mark("own")}
    metadata = {f"gptimg-{name}": mark for name, mark in (own | marks).items() if mark is not None}
    s3.put_object(Bucket="images", Key=key, Body=body, Metadata=metadata, ContentType="text/html")
    return Picture("t1", 0, bucket="images", key=key, content_type="text/html")


async def test_the_bytes_decide_the_type(s3):
    opened, body = await open_picture(record(), put(s3, PNG))
    assert (opened.content_type, opened.extension, opened.size) == ("image/png", ".png", len(PNG))
    assert body == PNG


async def test_no_log_holds_the_signature_of_an_address(s3, caplog):
    picture = put(s3, PNG)
    caplog.set_level("INFO")
    await open_picture(record(), picture)
    told = [entry.getMessage() for entry in caplog.records if entry.name != "werkzeug"]  # which is the store
    assert not [line for line in told if "X-Amz" in line]


@pytest.mark.parametrize(
    "body",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"<!doctype html><script>alert(1)</script>",
        b"GIF89a/*<script>alert(1)</script>*/",
        b"\xef\xbb\xbf\x89PNG\r\n\x1a\n",
        b"",
    ],
    ids=["svg", "html", "gif", "byte order mark", "nothing"],
)
async def test_what_is_no_image_is_not_served(s3, body):
    with pytest.raises(PictureUnavailableError, match="not an image"):
        await open_picture(record(), put(s3, body))


async def _refusal(record: Record, picture: Picture) -> tuple[int, str]:
    with pytest.raises(PictureUnavailableError) as refusal:
        await open_picture(record, picture)
    return refusal.value.status, str(refusal.value)


async def test_absent_foreign_and_forbidden_are_told_alike(s3):
    """A difference would tell whoever may write XComs which buckets and keys exist."""
    s3.put_object(Bucket="images", Key="salaries.csv", Body=b"salaries")
    s3.put_object(Bucket="images", Key="unmarked.png", Body=PNG)
    foreign = [
        put(s3, PNG, "1.png", index="1"),
        put(s3, PNG, "2.png", **{"task-id": "t2"}),
        put(s3, PNG, "3.png", **{"task-id": None}),
        put(s3, PNG, "4.png", **{"dag-id": dag_mark("other")}),
        Picture("t1", 0, bucket="images", key="unmarked.png"),
        Picture("t1", 0, bucket="images", key="salaries.csv"),
        Picture("t1", 0, bucket="images", key="nowhere.png"),
        Picture("t1", 0, bucket="no-such-bucket", key="a.png"),
        Picture("t1", 0, bucket="BAD_B", key="a.png"),
        Picture("t1", 0, bucket="..", key="a.png"),
        Picture("t1", 0, bucket="arn:aws:s3:us-east-1:123456789012:accesspoint", key="x/k"),
        Picture("t1", 0, bucket="images", key="../../etc/passwd"),
    ]
    assert {await _refusal(record(), picture) for picture in foreign} == {(404, NOT_HERE)}


@pytest.mark.parametrize(
    ("fields", "is_shown"),
    [
        ({}, False),
        ({"gptimg_task_id": "t1", "s3_key": "old/{task_id}/{index}{ext}", "s3_bucket": "images"}, True),
        ({"gptimg_task_id": ["t0", {"task_id": "t1"}], "s3_key": "s3://images/old/{task_id}/{index}{ext}"}, True),
        ({"gptimg_task_id": "t1", "s3_key": "{task_id}/{index}{ext}", "s3_bucket": "images"}, False),
        ({"gptimg_task_id": "t2", "s3_key": "old/{task_id}/{index}{ext}", "s3_bucket": "images"}, False),
        ({"gptimg_task_id": "t1", "s3_key": "old/{task_id}/{index}{ext}", "s3_bucket": "other"}, False),
        ({"gptimg_task_id": "t1", "s3_key": "{", "s3_bucket": 5}, False),
    ],
)
async def test_an_object_of_an_older_release_is_shown_where_airflow_has_recorded_who_mirrored_it(s3, fields, is_shown):
    old = put(s3, PNG, "old/t1/0.png", **{"dag-id": None})
    if is_shown:
        assert (await open_picture(record(**fields), old))[1] == PNG
    else:
        status, text = await _refusal(record(**fields), old)
        assert status == 404
        assert "mirrored by a release before" in text


async def test_a_batch_vouches_for_the_objects_in_its_own_ledger(s3):
    old = put(s3, PNG, **{"dag-id": None})
    batch = replace(record(), submissions=(Submission("0.0", "t1", 1, pictures=(old,)),))
    assert (await open_picture(batch, old))[1] == PNG


async def test_a_journal_that_others_may_write_vouches_for_nothing(s3):
    old = put(s3, PNG, **{"dag-id": None})
    submissions = (Submission("0.0", "t1", 1, pictures=(old,)),)
    status, text = await _refusal(replace(record(), submissions=submissions, has_own_journal=False), old)
    assert status == 404
    assert "mirrored by a release before" in text


async def test_a_bucket_in_another_region_is_found(s3, monkeypatch):
    """As on AWS, where a bucket answers in its own region only."""
    picture = put(s3, PNG)
    asked = []
    moved = {"x-amz-bucket-region": "eu-west-1"}

    @asynccontextmanager
    async def fetch(source: Source, check: Any) -> AsyncIterator[Opened]:
        asked.append(source.url)
        if "eu-west-1" not in source.url:
            raise HostError("elsewhere", 301, moved)
        async with real_fetch(source, check) as opened:
            yield opened

    real_fetch = pictures.fetch
    monkeypatch.setattr(pictures, "fetch", fetch)
    assert (await open_picture(record(), picture))[1] == PNG
    assert len(asked) == 2


async def test_trouble_with_the_store_is_told_without_its_address(monkeypatch):
    extra = {"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"}
    fields = {"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_NOWHERE", json.dumps(fields))
    with pytest.raises(PictureUnavailableError, match="does not answer") as refusal:
        await open_picture(record(aws_conn_id="nowhere"), Picture("t1", 0, bucket="secret", key="secret.png"))
    assert refusal.value.status == 502
    assert "127.0.0.1" not in str(refusal.value)
    assert "secret" not in str(refusal.value)


async def test_a_picture_that_the_vendor_has_dropped_is_said_to_be_gone(emulator):
    with pytest.raises(PictureUnavailableError, match="does not host"):
        await open_picture(record(), hosted(f"{emulator.base_url}/file/nowhere.png"))
