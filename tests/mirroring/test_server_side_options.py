# SPDX-License-Identifier: Apache-2.0
"""What teams ask of S3 reaches it with each object: encryption, ACL, tags, storage class, headers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_gptimg.airflow_compat import AirflowFailException
from airflow_provider_gptimg.mirroring.destination import Destination

KMS_KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def head(*names: str) -> Callable[[Any, str], tuple[Any, ...]]:
    return lambda s3, key: tuple(s3.head_object(Bucket="images", Key=key).get(name) for name in names)


def grants(s3: Any, key: str) -> tuple[Any, ...]:
    found = s3.get_object_acl(Bucket="images", Key=key)["Grants"]
    return tuple(sorted(grant["Permission"] for grant in found if grant["Grantee"]["Type"] == "Group"))


def tags(s3: Any, key: str) -> tuple[Any, ...]:
    found = s3.get_object_tagging(Bucket="images", Key=key)["TagSet"]
    return tuple((tag["Key"], tag["Value"]) for tag in found)


ENCRYPTION = head("ServerSideEncryption", "SSEKMSKeyId")
KMS = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": KMS_KEY}

OPTIONS = {
    "nothing": ({}, ENCRYPTION, (None, None)),
    "encrypt": ({"encrypt": True}, ENCRYPTION, ("AES256", None)),
    "kms": ({"extra_args": KMS}, ENCRYPTION, ("aws:kms", KMS_KEY)),
    "kms wins over encrypt": ({"encrypt": True, "extra_args": KMS}, ENCRYPTION, ("aws:kms", KMS_KEY)),
    "acl": ({"acl_policy": "public-read"}, grants, ("READ",)),
    "tags": (
        {"extra_args": {"Tagging": "team=brand&year=2026"}},
        tags,
        (("team", "brand"), ("year", "2026")),
    ),
    "storage class": ({"extra_args": {"StorageClass": "STANDARD_IA"}}, head("StorageClass"), ("STANDARD_IA",)),
    "headers": (
        {"extra_args": {"CacheControl": "max-age=60", "ContentDisposition": "inline"}},
        head("CacheControl", "ContentDisposition"),
        ("max-age=60", "inline"),
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_option_reaches_image_and_manifest(emulator, s3, mirror, option):
    arguments, look, expected = OPTIONS[option]
    context = {"ti": SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1)}
    (mirrored,) = mirror(emulator.add_task(), context, manifest_key="manifest.jsonl", **arguments)
    assert look(s3, mirrored["key"]) == expected
    assert look(s3, "manifest.jsonl") == expected


def test_own_metadata_joins_the_transfers(emulator, s3, mirror):
    task_id = emulator.add_task()
    arguments = {"extra_args": {"Metadata": {"campaign": "spring"}}}
    (mirrored,) = mirror(task_id, **arguments)
    metadata = s3.head_object(Bucket="images", Key=mirrored["key"])["Metadata"]
    assert metadata["campaign"] == "spring"
    assert metadata["gptimg-sha256"] == mirrored["sha256"]
    assert mirror(task_id, **arguments)[0]["skipped"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Storageclass", "did you mean 'StorageClass'"),
        ("storage_class", "did you mean 'StorageClass'"),
        ("SSEKMSKeyID", "did you mean 'SSEKMSKeyId'"),
        ("CacheControl ", "did you mean 'CacheControl'"),
        (5, "it knows ACL,.*StorageClass"),
    ],
)
def test_argument_that_s3_does_not_know_is_refused_before_any_call(emulator, s3, mirror, name, hint):
    with pytest.raises(AirflowFailException, match=f"does not know; {hint}"):
        mirror(emulator.add_task(), extra_args={name: "x"})
    assert not emulator.calls


@pytest.mark.parametrize(
    "name", ["Bucket", "Key", "Body", "ContentType", "ContentLength", "ContentMD5", "IfMatch", "ChecksumCRC32"]
)
def test_argument_that_differs_for_each_object_is_refused(emulator, s3, mirror, name):
    with pytest.raises(AirflowFailException, match=f"'{name}', which the transfer sets itself"):
        mirror(emulator.add_task(), extra_args={name: "x"})
    assert not emulator.calls


def test_argument_of_a_wrong_type_is_refused_before_any_call(emulator, s3, mirror):
    with pytest.raises(AirflowFailException, match=r"extra_args.*StorageClass"):
        mirror(emulator.add_task(), extra_args={"StorageClass": 5})
    assert not emulator.calls


@pytest.mark.parametrize("key", ["k" * 32, b"k" * 32], ids=["text", "bytes"])
def test_a_customers_key_may_be_what_boto3_takes(key):
    """The S3 of the tests knows no such keys."""
    extra_args = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}
    destination = Destination.check(
        s3_key="{task_id}",
        s3_bucket="images",
        manifest_key=None,
        encrypt=False,
        acl_policy=None,
        extra_args=extra_args,
    )
    assert destination.put_arguments == extra_args
