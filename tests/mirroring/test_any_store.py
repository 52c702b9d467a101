# SPDX-License-Identifier: Apache-2.0
"""The exact image or nothing on every store that speaks S3: behind a proxy that behaves, and on real servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from mirroring_images import picture
from real_stores import KEY, SECRET, STORES, running
from s3_proxy import BEHAVIOURS, proxied_s3

from airflow_provider_gptimg.airflow_compat import AirflowFailException
from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError
from airflow_provider_gptimg.mirroring.download import Downloader
from airflow_provider_gptimg.mirroring.marks import DAG_ID, dag_mark, metadata_size

FOREIGN = b"somebody else's"


def context_of(try_number: int = 1, map_index: int = -1) -> dict[str, Any]:
    ti = SimpleNamespace(dag_id="d/é", run_id="r", task_id="t", map_index=map_index, try_number=try_number)
    return {"ti": ti}


def downloads(emulator: Any) -> int:
    return sum("outputs" in call.path for call in emulator.calls)


@pytest.fixture(scope="module")
def real_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Start a real store when it is first asked for; returns its URL."""
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(running(name, tmp_path_factory.mktemp(name))))


@pytest.fixture(params=["moto", *BEHAVIOURS, *STORES])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A boto3 client of a store of some kind, behind the connection `aws_default`."""
    if request.param in STORES:
        yield connect(request.getfixturevalue("real_stores")(request.param), monkeypatch)
        return
    s3 = request.getfixturevalue("s3")
    if request.param == "moto":
        yield s3
        return
    checksums = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    with proxied_s3(**(checksums if request.param == "no-checksums" else {})) as proxy:
        proxy.behave(request.param)
        yield s3


def connect(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the connection `aws_default` to a real store, whose bucket is emptied; returns a client."""
    extra = {"endpoint_url": url, "region_name": "us-east-1"}
    fields = {"conn_type": "aws", "login": KEY, "password": SECRET, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(fields))
    client = boto3.client("s3", aws_access_key_id=KEY, aws_secret_access_key=SECRET, **extra)
    for found in client.list_objects_v2(Bucket="images").get("Contents", ()):
        client.delete_object(Bucket="images", Key=found["Key"])
    return client


class TestOnAnyStore:
    def test_images_are_exact_and_a_second_run_downloads_nothing(self, emulator, store, mirror):
        contents = [picture(), picture((9, 9), "JPEG"), picture((7, 5), "WEBP")]
        task_ids = [emulator.add_task(image_bytes=contents), emulator.add_task(image_bytes=picture())]
        first = mirror(task_ids, context_of())
        stored = [store.get_object(Bucket="images", Key=one["key"])["Body"].read() for one in first]
        assert stored == [*contents, picture()]
        before = downloads(emulator)
        assert mirror(task_ids, context_of(2)) == [{**one, "skipped": True} for one in first]
        assert downloads(emulator) == before

    def test_a_foreign_object_is_never_overwritten(self, emulator, store, mirror):
        task_id = emulator.add_task(n=2)
        key = f"gptimg/{task_id}/0.png"
        store.put_object(Bucket="images", Key=key, Body=FOREIGN)
        with pytest.raises(AirflowFailException, match="exists and is not this image"):
            mirror(task_id)
        assert store.get_object(Bucket="images", Key=key)["Body"].read() == FOREIGN
        assert store.head_object(Bucket="images", Key=f"gptimg/{task_id}/1.png")["ContentLength"] > 0
        mirror(task_id, replace=True)
        assert store.get_object(Bucket="images", Key=key)["Body"].read() != FOREIGN

    def test_of_two_writers_of_one_key_the_second_one_notices_where_the_store_can(
        self, emulator, store, mirror, monkeypatch, request
    ):
        task_id = emulator.add_task()
        key = f"gptimg/{task_id}/0.png"
        download = Downloader.download

        def overtaken(*arguments: Any) -> Any:
            store.put_object(Bucket="images", Key=key, Body=FOREIGN)
            return download(*arguments)

        monkeypatch.setattr(Downloader, "download", overtaken)
        if request.node.callspec.params["store"] in ("no-conditions", "s3rver"):
            mirror(task_id)
        else:
            with pytest.raises(AirflowFailException, match="exists and is not this image"):
                mirror(task_id)
            assert store.get_object(Bucket="images", Key=key)["Body"].read() == FOREIGN

    def test_a_second_attempt_writes_its_manifest_and_nobody_else_does(self, emulator, store, mirror):
        task_id = emulator.add_task()
        mirror(task_id, context_of(), manifest_key="m.jsonl")
        mirror(task_id, context_of(2), manifest_key="m.jsonl")
        (row,) = store.get_object(Bucket="images", Key="m.jsonl")["Body"].read().splitlines()
        assert json.loads(row)["skipped"] is True
        with pytest.raises(AirflowFailException, match="not by this task instance"):
            mirror(task_id, context_of(map_index=1), manifest_key="m.jsonl")


@pytest.mark.parametrize(
    ("behaviours", "warns"), [((), False), (("no-conditions",), True), (("501",), True), (("304",), False)], ids=str
)
def test_a_store_without_conditions_is_found_out_where_that_is_cheap(
    emulator, s3, proxy, mirror, capfd, behaviours, warns
):
    proxy.behave(*behaviours)
    mirror(emulator.add_task(n=3), context_of(), manifest_key="m.jsonl")
    assert ("no conditional writes" in "".join(capfd.readouterr())) is warns
    # Each object once, the manifest twice; all of them once more where each condition is refused.
    assert proxy.seen("PUT") <= (10 if "501" in behaviours else 5)


@pytest.mark.parametrize("key", ["flat-{task_id}{ext}", "{index}{ext}", "{index}"])
def test_a_key_that_was_seen_as_taken_is_not_put_at_all(emulator, s3, proxy, mirror, key):
    proxy.behave("no-conditions")
    task_id = emulator.add_task()
    taken = key.format(task_id=task_id, index=0, ext=".png")
    s3.put_object(Bucket="images", Key=taken, Body=FOREIGN)
    with pytest.raises(AirflowFailException, match="exists and is not this image"):
        mirror(task_id, s3_key=key)
    assert proxy.seen("PUT") == 0


@pytest.mark.parametrize("arguments", [{}, {"manifest_key": "m.jsonl"}], ids=["images", "manifest"])
def test_an_expired_token_is_worth_another_attempt(emulator, s3, proxy, mirror, hasty, arguments):
    """Its answer to HEAD is a bare 400."""
    proxy.rule = lambda request: (400, "ExpiredToken")
    with pytest.raises(GptImgError) as caught:
        mirror(emulator.add_task(), context_of(), s3_key="{index}{ext}", **arguments)
    assert not isinstance(caught.value, GptImgRequestError)


def test_a_payload_is_signed_unless_the_connection_says_otherwise(emulator, s3, mirror):
    with proxied_s3() as proxy:
        mirror(emulator.add_task())
    with proxied_s3(s3={"payload_signing_enabled": False}) as unsigned:
        mirror(emulator.add_task())
    for one, expected in ((proxy, False), (unsigned, True)):
        (put,) = [request for request in one.requests if request.method == "PUT"]
        assert (put.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD") is expected


def test_without_checksums_an_md5_goes_out(emulator, s3, mirror):
    with proxied_s3(request_checksum_calculation="when_required") as proxy:
        mirror(emulator.add_task())
    (put,) = [request for request in proxy.requests if request.method == "PUT"]
    assert "content-md5" in put.headers
    assert not [name for name in put.headers if "checksum" in name]


def test_a_refused_checksum_says_how_to_turn_it_off(emulator, s3, proxy, mirror):
    proxy.rule = lambda request: (400, "InvalidChecksum") if request.method == "PUT" else None
    with pytest.raises(AirflowFailException, match="request_checksum_calculation"):
        mirror(emulator.add_task())


class TestAFinishedTaskInAnXCom:
    """Whoever can write XComs could otherwise have an image of theirs stored as that of another's task."""

    def planted(self, emulator: Any, task_id: str, status: str = "completed") -> dict[str, Any]:
        mine = emulator.add_task(image_bytes=picture((3, 3)))
        from airflow_provider_gptimg.hooks.gptimg import GptImgHook

        return {**GptImgHook().get_task(mine).as_dict(), "task_id": task_id, "status": status}

    def test_stores_the_images_that_the_api_knows(self, emulator, s3, mirror):
        content = picture((30, 20))
        task_id = emulator.add_task(image_bytes=content)
        (mirrored,) = mirror(self.planted(emulator, task_id))
        assert s3.get_object(Bucket="images", Key=mirrored["key"])["Body"].read() == content

    def test_stores_nothing_before_the_api_has_it(self, emulator, s3, mirror):
        task_id = emulator.add_task(status="processing")
        with pytest.raises(GptImgError, match="not known to the API"):
            mirror(self.planted(emulator, task_id))
        assert "Contents" not in s3.list_objects_v2(Bucket="images")

    def test_has_its_images_in_the_order_of_the_api(self, emulator, s3, mirror):
        from airflow_provider_gptimg.hooks.gptimg import GptImgHook

        finished = GptImgHook().get_task(emulator.add_task(n=2)).as_dict()
        with pytest.raises(AirflowFailException, match=r"image 0 of finished task .* is image 1"):
            mirror({**finished, "images": finished["images"][::-1]})

    def test_is_asked_over_few_connections_and_costs_no_other_its_place(self, emulator, s3, mirror):
        from airflow_provider_gptimg.hooks.gptimg import GptImgHook

        finished = [GptImgHook().get_task(emulator.add_task()).as_dict() for _ in range(20)]
        planted = self.planted(emulator, emulator.add_task(status="processing"))
        before = len(emulator.calls)
        with pytest.raises(GptImgError, match="not known to the API"):
            mirror([planted, *finished])
        polls = [call for call in emulator.calls[before:] if "/images/task/" in call.path]
        assert len(polls) == 21
        assert len({call.connection for call in polls}) <= 8
        assert s3.list_objects_v2(Bucket="images")["KeyCount"] == 20


@pytest.mark.parametrize(
    "dag_id", ["posters", "été/плакаты", "d" * 250, "щ" * 250], ids=["plain", "text", "long", "longer"]
)
def test_an_object_says_which_dag_it_is_of(emulator, s3, mirror, dag_id):
    own = {"Metadata": {"campaign": "x" * 1200}}
    context = {"ti": SimpleNamespace(dag_id=dag_id, run_id="r", task_id="t", map_index=-1)}
    (mirrored,) = mirror(emulator.add_task(), context, extra_args=own)
    metadata = s3.head_object(Bucket="images", Key=mirrored["key"])["Metadata"]
    assert metadata[DAG_ID] == dag_mark(dag_id)
    assert metadata_size(metadata) <= 2048


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"s3_bucket": "missing"}, "s3_bucket='missing' names a bucket that does not exist"),
        ({"manifest_key": "s3://missing/m.jsonl"}, "manifest_key='s3://missing/m.jsonl' names a bucket"),
        ({"s3_bucket": "s3://images"}, r"s3_bucket='s3://images' is a URI: use the bucket's name, 'images'"),
    ],
    ids=["bucket", "manifest's bucket", "URI"],
)
def test_a_wrong_bucket_is_told_before_the_wait(emulator, s3, mirror, wrong, said):
    with pytest.raises(AirflowFailException, match=said):
        mirror(emulator.add_task(status="processing"), context_of(), deferrable=True, **wrong)


@pytest.mark.parametrize(
    "refusal",
    [(403, "InvalidAccessKeyId"), (403, "SignatureDoesNotMatch"), (401, "Unauthorized")],
    ids=lambda one: one[1],
)
def test_wrong_credentials_are_told_before_the_wait_and_before_any_download(emulator, s3, proxy, mirror, refusal):
    proxy.rule = lambda request: refusal
    for task_id, deferrable in ((emulator.add_task(status="processing"), True), (emulator.add_task(), False)):
        with pytest.raises(AirflowFailException, match=f"takes no objects from us: .*{refusal[1]}.*credentials"):
            mirror(task_id, deferrable=deferrable)
    assert downloads(emulator) == 0
