# SPDX-License-Identifier: Apache-2.0
"""Which bytes the gallery fetches for a picture, and which it does not, whatever an XCom says."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from airflow_provider_gptimg.gallery.pictures import PictureUnavailableError, open_picture
from airflow_provider_gptimg.gallery.tiles import Picture, Record

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


def record(**fields: Any) -> Record:
    return Record("mirror", -1, "success", 1, "GptImgToS3Operator", fields=fields)


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
def test_no_xcom_makes_it_ask_a_host_that_the_connection_does_not_allow(emulator, elsewhere, url):
    host, asked = elsewhere
    url = url.format(elsewhere=host, api=emulator.base_url.removeprefix("http://"))
    with pytest.raises(PictureUnavailableError, match="not allowed") as refusal:
        open_picture(record(), hosted(url))
    assert asked == []
    assert host not in str(refusal.value)


def test_no_rendered_field_makes_it_use_a_connection_of_another_type(elsewhere, monkeypatch):
    host, asked = elsewhere
    fields = {"conn_type": "http", "host": f"http://{host}", "password": "secret"}
    monkeypatch.setenv("AIRFLOW_CONN_INTERNAL", json.dumps(fields))
    with pytest.raises(PictureUnavailableError):
        open_picture(record(gptimg_conn_id="internal"), hosted(f"http://{host}/a.png"))
    assert asked == []


def test_what_the_api_itself_serves_is_shown_only_if_it_is_an_image(emulator):
    with pytest.raises(PictureUnavailableError):
        open_picture(record(), hosted(f"{emulator.base_url}/"))


def put(s3: Any, body: bytes, key: str = "a.png", **marks: str) -> Picture:
    metadata = {"gptimg-task-id": "t1", "gptimg-index": "0"} | {f"gptimg-{name}": mark for name, mark in marks.items()}
    s3.put_object(Bucket="images", Key=key, Body=body, Metadata=metadata, ContentType="text/html")
    return Picture("t1", 0, bucket="images", key=key, content_type="text/html")


def test_the_bytes_decide_the_type(s3):
    opened = open_picture(record(), put(s3, PNG))
    assert (opened.content_type, opened.extension, opened.size) == ("image/png", ".png", len(PNG))
    assert b"".join(opened.chunks) == PNG


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
def test_what_is_no_image_is_not_served(s3, body):
    with pytest.raises(PictureUnavailableError, match="no image"):
        open_picture(record(), put(s3, body))


@pytest.mark.parametrize("marks", [{"index": "1"}, {"task-id": "t2"}, {"task-id": ""}])
def test_an_object_without_the_mirrors_marks_is_not_served(s3, marks):
    with pytest.raises(PictureUnavailableError, match="not this image"):
        open_picture(record(), put(s3, PNG, **marks))


def test_a_missing_object_is_told_by_the_stores_code(s3):
    with pytest.raises(PictureUnavailableError, match="NoSuchKey"):
        open_picture(record(), Picture("t1", 0, bucket="images", key="nowhere.png"))


def test_trouble_with_the_store_is_told_without_its_address(monkeypatch):
    extra = {"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"}
    fields = {"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_NOWHERE", json.dumps(fields))
    with pytest.raises(PictureUnavailableError, match="EndpointConnectionError") as refusal:
        open_picture(record(aws_conn_id="nowhere"), Picture("t1", 0, bucket="secret", key="secret.png"))
    assert "127.0.0.1" not in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_a_picture_that_the_vendor_has_dropped_is_said_to_be_gone(emulator):
    with pytest.raises(PictureUnavailableError, match="does not host"):
        open_picture(record(), hosted(f"{emulator.base_url}/file/nowhere.png"))
