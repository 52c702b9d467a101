# SPDX-License-Identifier: Apache-2.0
"""Where links lead, and what they never show."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from airflow_provider_gptimg.links.gptimg import FirstImageLink, S3ObjectsLink, first_image_url, images_url, s3_url


def finished(*urls: object) -> dict[str, object]:
    return {"task_id": "t1", "status": "completed", "images": [{"url": url} for url in urls]}


@pytest.mark.parametrize(
    ("result", "url"),
    [
        (finished("https://file.gptimg.co/a.png", "https://file.gptimg.co/b.png"), "https://file.gptimg.co/a.png"),
        ([finished("https://file.gptimg.co/a.png")], "https://file.gptimg.co/a.png"),
        (finished("https://file.gptimg.co/a.png?X-Amz-Signature=1"), ""),
        (finished("https://user:secret@file.gptimg.co/a.png"), ""),
        (finished("javascript:alert(1)"), ""),
        (finished("http://["), ""),
        (finished(None, 5), ""),
        ("t1", ""),
        (None, ""),
        ([], ""),
    ],
)
def test_first_image(result, url):
    assert first_image_url(result) == url


def test_images_of_a_mapped_task():
    assert images_url("a dag", "r/1", "t", 3).endswith("/dags/a%20dag/runs/r%2F1/tasks/t/mapped/3/plugin/gptimg-images")


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        (
            ("b", "a/0.png", "eu-west-1", None),
            "https://console.aws.amazon.com/s3/object/b?region=eu-west-1&prefix=a%2F0.png",
        ),
        (("b", "a/", None, None), "https://console.aws.amazon.com/s3/buckets/b?prefix=a%2F"),
        (("b", "", "us-west-1", None), "https://console.aws.amazon.com/s3/buckets/b?region=us-west-1&prefix="),
        (("b", "a.png", "us-gov-west-1", None), ""),
        (("b", "a.png", "cn-north-1", None), ""),
        (("b", "a b.png", None, "https://key:secret@s3.example.com:9000/"), "https://s3.example.com:9000/b/a%20b.png"),
        (("b", "a.png", None, "http://8.8.8.8/"), "http://8.8.8.8/b/a.png"),
    ],
)
def test_s3(arguments, url):
    assert s3_url(*arguments) == url


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:9000",
        "[::1]",
        "10.1.2.3",
        "192.168.0.9",
        "minio:9000",
        "localhost",
        "minio.storage.svc",
        "minio.storage.svc.cluster.local",
        "s3.corp.internal",
        "bucket.vpce-0a1b.s3.eu-west-1.vpce.amazonaws.com",
    ],
)
def test_no_link_leads_where_nobody_can_follow(host):
    assert s3_url("b", "a.png", None, f"http://{host}/") == ""


def test_a_link_never_fails_a_task():
    nowhere = SimpleNamespace()
    assert FirstImageLink().get_link(nowhere, ti_key=None) == ""
    assert S3ObjectsLink().get_link(nowhere, ti_key=None) == ""
