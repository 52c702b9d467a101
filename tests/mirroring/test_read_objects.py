# SPDX-License-Identifier: Apache-2.0
"""What is read from S3: the object that holds a batch's requests, and the URIs that name objects."""

from __future__ import annotations

import gzip
import logging
from typing import Any

import pytest

from airflow_provider_gptimg.api.s3_uri import split_s3_uri
from airflow_provider_gptimg.exceptions import GptImgRequestError
from airflow_provider_gptimg.mirroring.store import S3Store

ACCESS_POINT = "arn:aws:s3:us-east-1:123456789012:accesspoint"


def read(s3: Any, body: bytes, **arguments: str) -> str:
    s3.put_object(Bucket="images", Key="r.csv", Body=body)
    return S3Store(s3, arguments, logging.getLogger()).read_text("images", "r.csv")


@pytest.mark.parametrize(
    "body",
    [b"prompt\nA lamp\n", b"\xef\xbb\xbfprompt\nA lamp\n", gzip.compress(b"prompt\nA lamp\n")],
    ids=["plain", "with a byte order mark", "gzip"],
)
def test_a_text_may_be_compressed(s3, body):
    assert read(s3, body) == "prompt\nA lamp\n"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (gzip.compress(b"prompt")[:-4], "not a whole gzip file"),
        (gzip.compress(bytes(65 * 1024 * 1024)), "larger than 64 MiB"),
        (b"\xff\xfe", "not text in UTF-8"),
    ],
    ids=["cut", "a bomb", "UTF-16"],
)
def test_another_body_is_refused(s3, body, why):
    with pytest.raises(GptImgRequestError, match=why):
        read(s3, body)


def test_a_bucket_whose_owner_wants_the_reader_to_pay_is_read(s3):
    sent: list[dict[str, Any]] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        sent.append(params)

    s3.meta.events.register("provide-client-params.s3.GetObject", note)
    read(s3, b"x", RequestPayer="requester", ExpectedBucketOwner="123456789012", StorageClass="STANDARD_IA")
    s3.meta.events.unregister("provide-client-params.s3.GetObject", note)
    (params,) = sent
    assert (params["RequestPayer"], params["ExpectedBucketOwner"]) == ("requester", "123456789012")
    assert "StorageClass" not in params


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("s3://images/a/b.png", "images", "a/b.png"),
        ("s3://images", "images", ""),
        (f"s3://{ACCESS_POINT}/posters/a/b.png", f"{ACCESS_POINT}/posters", "a/b.png"),
        (f"s3://{ACCESS_POINT}:posters/a.png", f"{ACCESS_POINT}:posters", "a.png"),
        (
            "s3://arn:aws:s3-outposts:us-east-1:123456789012:outpost/op-1/accesspoint/posters/a.png",
            "arn:aws:s3-outposts:us-east-1:123456789012:outpost/op-1/accesspoint/posters",
            "a.png",
        ),
        (
            "s3://arn:aws:s3::123456789012:accesspoint/m.mrap/a.png",
            "arn:aws:s3::123456789012:accesspoint/m.mrap",
            "a.png",
        ),
    ],
)
def test_the_arn_of_an_access_point_stands_in_a_buckets_place(uri, bucket, key):
    assert split_s3_uri(uri) == (bucket, key)
