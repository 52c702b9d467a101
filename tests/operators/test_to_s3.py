# SPDX-License-Identifier: Apache-2.0
"""GptImgToS3Operator: which objects it makes, where, and what it does where something is already."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time

import pytest
from airflow_names import execute
from attempts import fails_at_once, may_be_retried
from PIL import Image

from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgMediaError,
    GptImgRequestError,
    GptImgTaskFailedError,
    GptImgTimeoutError,
)
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator


def small(image_format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(file, image_format)
    return file.getvalue()


PNG, JPEG, WEBP = small("png"), small("jpeg"), small("webp")


@pytest.fixture
def emulator(emulator, monkeypatch):
    """The API with images that need no drawing, unless a test gives its own."""
    add_task = emulator.add_task

    def add(n: int = 1, image_bytes=None, **arguments) -> str:
        return add_task(image_bytes=image_bytes or [PNG] * n, **arguments)

    monkeypatch.setattr(emulator, "add_task", add)
    return emulator


def transfer(gptimg_task_id, **arguments) -> GptImgToS3Operator:
    own = {"task_id": "mirror", "gptimg_task_id": gptimg_task_id, "s3_bucket": "images", "timeout": 20}
    return GptImgToS3Operator(**own | arguments)


def in_bucket(s3, bucket: str = "images") -> dict[str, bytes]:
    listed = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {one["Key"]: s3.get_object(Bucket=bucket, Key=one["Key"])["Body"].read() for one in listed}


def image_calls(emulator) -> list:
    return [call for call in emulator.calls if "/gpt-image-2-outputs/" in call.path]


class TestObjects:
    def test_are_exactly_the_images(self, emulator, instance, s3, deferrable):
        task_id = emulator.add_task(polls=2, image_bytes=[PNG, JPEG, WEBP, PNG])
        result = instance.attempt(transfer(task_id, deferrable=deferrable))
        assert [in_bucket(s3)[one["key"]] for one in result] == emulator.task(task_id).images
        assert len(in_bucket(s3)) == 4

    def test_are_told_of_in_full(self, emulator, instance, s3):
        task_id = emulator.add_task()
        (result,) = instance.attempt(transfer(task_id))
        head = s3.head_object(Bucket="images", Key=f"gptimg/{task_id}/0.png")
        assert result == {
            "uri": f"s3://images/gptimg/{task_id}/0.png",
            "bucket": "images",
            "key": f"gptimg/{task_id}/0.png",
            "task_id": task_id,
            "index": 0,
            "source_url": emulator.base_url + image_calls(emulator)[0].path,
            "content_type": "image/png",
            "size": len(PNG),
            "sha256": hashlib.sha256(PNG).hexdigest(),
            "etag": head["ETag"].strip('"'),
            "skipped": False,
            "c2pa": False,
        }
        assert head["ContentType"] == "image/png"
        assert head["Metadata"]["gptimg-task-id"] == task_id
        assert head["Metadata"]["gptimg-index"] == "0"
        assert head["Metadata"]["gptimg-source-url"] == result["source_url"]
        assert head["Metadata"]["gptimg-sha256"] == result["sha256"]

    @pytest.mark.parametrize("declared", ["image/png", "image/jpeg", "image/avif", "text/html", ""])
    def test_are_what_their_bytes_say(self, emulator, instance, s3, declared):
        task_id = emulator.add_task(image_bytes=[PNG, JPEG, WEBP], content_type=declared or None)
        result = instance.attempt(transfer(task_id))
        assert [one["key"].rpartition("/")[2] for one in result] == ["0.png", "1.jpg", "2.webp"]
        assert [one["content_type"] for one in result] == ["image/png", "image/jpeg", "image/webp"]
        types = [s3.head_object(Bucket="images", Key=one["key"])["ContentType"] for one in result]
        assert types == ["image/png", "image/jpeg", "image/webp"]
        assert all(one["skipped"] for one in instance.attempt(transfer(task_id)))

    def test_of_a_list_come_in_its_order(self, emulator, instance, s3, deferrable):
        tasks = [emulator.add_task(n=n, polls=polls) for n, polls in [(2, 4), (1, 1), (3, 2)]]
        result = instance.attempt(transfer(tasks, deferrable=deferrable))
        places = [(one["task_id"], one["index"]) for one in result]
        assert places == [(tasks[0], 0), (tasks[0], 1), (tasks[1], 0), (tasks[2], 0), (tasks[2], 1), (tasks[2], 2)]

    def test_of_a_finished_task_need_one_poll_and_once_they_are_there_none(self, emulator, instance, s3):
        from airflow_provider_gptimg.hooks.gptimg import GptImgHook

        finished = GptImgHook().get_task(emulator.add_task(n=2)).as_dict()
        calls = len(emulator.calls)
        assert len(instance.attempt(transfer([finished], deferrable=True))) == 2
        assert len(emulator.calls) - calls == 1 + len(image_calls(emulator)) == 3
        assert all(one["skipped"] for one in instance.attempt(transfer([finished])))
        assert len(emulator.calls) - calls == 3

    def test_of_a_task_named_twice_are_made_once(self, emulator, instance, s3):
        task_id = emulator.add_task()
        instance.attempt(transfer([task_id, task_id]))
        assert len(image_calls(emulator)) == 1

    def test_reach_any_bucket_and_store_that_the_arguments_name(self, emulator, instance, s3, monkeypatch):
        s3.create_bucket(Bucket="elsewhere")
        monkeypatch.setenv("AIRFLOW_CONN_TEAM_AWS", os.environ["AIRFLOW_CONN_AWS_DEFAULT"])
        monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")
        operator = transfer(
            "{{ one }}",
            s3_bucket="{{ 'else' }}where",
            s3_key="{{ ds }}/{index}{ext}",
            aws_conn_id="{{ 'team' }}_aws",
            gptimg_conn_id="gptimg_{{ 'default' }}",
            extra_args={"CacheControl": "max-age={{ 60 }}"},
        )
        operator.render_template_fields({"one": emulator.add_task(), "ds": "2026-01-02"})
        instance.attempt(operator)
        assert list(in_bucket(s3, "elsewhere")) == ["2026-01-02/0.png"]
        head = s3.head_object(Bucket="elsewhere", Key="2026-01-02/0.png")
        assert head["CacheControl"] == "max-age=60"

    def test_are_encrypted_and_shared_as_told(self, emulator, instance, s3):
        (result,) = instance.attempt(transfer(emulator.add_task(), encrypt=True, acl_policy="public-read"))
        where = {"Bucket": "images", "Key": result["key"]}
        assert s3.head_object(**where)["ServerSideEncryption"] == "AES256"
        grants = s3.get_object_acl(**where)["Grants"]
        assert any("AllUsers" in grant["Grantee"].get("URI", "") for grant in grants)


class TestKeys:
    @pytest.mark.parametrize(
        ("pattern", "keys"),
        [
            ("{task_id}/{index}{ext}", ["ID/0.png", "ID/1.png"]),
            ("all-{index}-{task_id}", ["all-0-ID", "all-1-ID"]),
            ("{{braces}}/{index}{ext}", ["{braces}/0.png", "{braces}/1.png"]),
            ("ünï côde/{task_id}/{index}{ext}", ["ünï côde/ID/0.png", "ünï côde/ID/1.png"]),
            ("s3://images/deep/er/{index}{ext}", ["deep/er/0.png", "deep/er/1.png"]),
        ],
    )
    def test_follow_the_pattern(self, emulator, instance, s3, pattern, keys):
        task_id = emulator.add_task(n=2)
        instance.attempt(transfer(task_id, s3_key=pattern, s3_bucket=None if pattern.startswith("s3://") else "images"))
        assert sorted(in_bucket(s3)) == [key.replace("ID", task_id) for key in keys]
        again = instance.attempt(
            transfer(task_id, s3_key=pattern, s3_bucket=None if pattern.startswith("s3://") else "images")
        )
        assert [one["skipped"] for one in again] == [True, True]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"s3_key": "{prompt}{ext}"},
            {"s3_key": "{}"},
            {"s3_key": "{0}"},
            {"s3_key": "{task_id"},
            {"s3_key": "{task_id.__class__}"},
            {"s3_key": "{task_id[0]}"},
            {"s3_key": "{index:d}{task_id:d}"},
            {"s3_key": "{index:{ext}}"},
            {"s3_key": " "},
            {"s3_key": None},
            {"s3_bucket": None},
            {"s3_bucket": ""},
            {"s3_key": "s3://images/{index}"},
            {"s3_key": "s3://images", "s3_bucket": None},
            {"s3_key": "s3:///{index}", "s3_bucket": None},
            {"timeout": None},
            {"poll_interval": "often"},
            {"max_image_bytes": 0},
            {"max_image_bytes": 6 * 1024**3},
            {"max_image_bytes": None},
            {"max_image_bytes": "5"},
            {"max_image_bytes": 5.5},
            {"max_image_bytes": True},
            {"concurrency": 0},
            {"concurrency": None},
            {"concurrency": "4"},
            {"concurrency": 1.5},
            {"extra_args": ["x"]},
            {"extra_args": {"Key": "x"}},
            {"extra_args": {"Metadata": "x"}},
            {"extra_args": {"Metadata": {"campaign": 5}}},
            {"extra_args": {"Metadata": {"campaign": "été"}}},
            {"extra_args": {"Tagging": {"a": "b"}}},
            {"acl_policy": 5},
            {"acl_policy": ["private"]},
            {"s3_bucket": "Bad_Bucket!!"},
            {"s3_bucket": "a/b"},
            {"s3_bucket": 5},
            {"s3_key": "s3://Bad Bucket/{task_id}", "s3_bucket": None},
            {"manifest_key": "s3://Bad Bucket/run.jsonl"},
            {"manifest_key": "one.png", "s3_key": "one{ext}"},
            {"manifest_key": "s3://images/one.jpg", "s3_key": "one{ext}"},
            {"manifest_key": "one", "s3_key": "one", "replace": True},
            {"manifest_key": "a/3.webp", "s3_key": "a/{index}{ext}"},
            {"manifest_key": "a" * 1025},
            {"s3_key": "{index:02d}{ext}"},
            {"s3_key": "{ext:>2000000000}"},
            {"s3_key": "{task_id!r}"},
            {"s3_key": "{task_id.real}"},
            {"s3_key": "{index}" + "é" * 512},
            {"s3_bucket": "s3://images"},
            {"extra_args": {"Metadata": {"campaign": "x" * 1300}}},
            {"manifest_key": "gptimg/gpt-image-2-x/0.png"},
            {"s3_key": "a\n/{task_id}"},
            {"s3_key": "a\0/{task_id}"},
            {"s3_key": "a\ud800/{task_id}"},
            {"manifest_key": "run\n.jsonl"},
            {"manifest_key": "run\udfff.jsonl"},
            {"replace": "false"},
            {"replace": None},
            {"encrypt": "no"},
            {"verify": ""},
            {"verify": 5},
            {"verify": "/not/there.pem"},
            {"extra_args": {"CacheControl": "max-age=60\n"}},
            {"extra_args": {"Metadata": {"campaign": "spring\r\n"}}},
            {"extra_args": {"Metadata": {"two words": "x"}}},
            {"extra_args": {"Metadata": {"": "x"}}},
            {"extra_args": {"Metadata": {5: "x"}}},
            {"extra_args": {"Metadata": {"Gptimg-Sha256": "x"}}},
        ],
        ids=repr,
    )
    def test_that_cannot_be_are_refused_before_any_wait(self, emulator, instance, s3, deferrable, wrong):
        task_id = emulator.add_task(status="processing")
        with fails_at_once(GptImgRequestError) as caught:
            instance.attempt(transfer(task_id, deferrable=deferrable, **wrong))
        assert next(iter(wrong)) in str(caught.value)
        assert emulator.calls == []

    @pytest.mark.parametrize(
        ("pattern", "manifest_key"),
        [
            ("{task_id}", "run"),
            ("a/{index}-{task_id}", "a/run.jsonl"),
            ("one{ext}", "one.jsonl"),
            ("{index}{ext}", "one.png"),
            ("one{ext}", "s3://elsewhere/one.png"),
        ],
    )
    def test_that_no_image_gets_are_left_to_the_manifest(self, emulator, instance, s3, pattern, manifest_key):
        s3.create_bucket(Bucket="elsewhere")
        transfer(emulator.add_task(), s3_key=pattern, manifest_key=manifest_key).execute({})
        assert len(in_bucket(s3)) + len(in_bucket(s3, "elsewhere")) == 2

    @pytest.mark.parametrize(
        ("pattern", "n", "tasks"), [("same{ext}", 2, 1), ("{index}{ext}", 1, 2), ("{task_id}{ext}", 2, 1)]
    )
    def test_that_two_images_would_share_are_refused_before_any_download(
        self, emulator, instance, s3, pattern, n, tasks
    ):
        with fails_at_once(GptImgRequestError) as caught:
            instance.attempt(transfer([emulator.add_task(n=n) for _ in range(tasks)], s3_key=pattern))
        assert "the same key" in str(caught.value)
        assert image_calls(emulator) == []
        assert in_bucket(s3) == {}


PATTERNS = ["gptimg/{task_id}/{index}{ext}", "{index}{ext}", "{index}"]


@pytest.mark.parametrize("pattern", PATTERNS)
class TestWhatIsThereAlready:
    def test_own_objects_are_skipped_without_a_download(self, emulator, instance, s3, pattern):
        task_id = emulator.add_task(image_bytes=[PNG, JPEG, WEBP])
        first = instance.attempt(transfer(task_id, s3_key=pattern))
        downloads = len(image_calls(emulator))
        second = instance.attempt(transfer(task_id, s3_key=pattern))
        assert len(image_calls(emulator)) == downloads == 3
        assert second == [one | {"skipped": True} for one in first]

    def test_only_what_is_missing_is_mirrored(self, emulator, instance, s3, pattern):
        task_id = emulator.add_task(n=3)
        first = instance.attempt(transfer(task_id, s3_key=pattern))
        s3.delete_object(Bucket="images", Key=first[1]["key"])
        second = instance.attempt(transfer(task_id, s3_key=pattern))
        assert [one["skipped"] for one in second] == [True, False, True]
        assert len(image_calls(emulator)) == 4

    def put_foreign(self, s3, emulator, task_id, pattern, **more) -> str:
        key = pattern.format(task_id=task_id, index=0, ext=".png")
        s3.put_object(Bucket="images", Key=key, Body=b"somebody else's", **more)
        return key

    def test_a_foreign_object_is_refused(self, emulator, instance, s3, pattern):
        task_id = emulator.add_task(n=2)
        key = self.put_foreign(s3, emulator, task_id, pattern)
        with fails_at_once(GptImgRequestError) as caught:
            instance.attempt(transfer(task_id, s3_key=pattern))
        assert key in str(caught.value)
        assert "replace" in str(caught.value)
        objects = in_bucket(s3)
        assert objects.pop(key) == b"somebody else's"
        assert list(objects.values()) == emulator.task(task_id).images[1:]

    def test_a_foreign_object_is_replaced_if_told(self, emulator, instance, s3, pattern):
        task_id = emulator.add_task()
        key = self.put_foreign(s3, emulator, task_id, pattern)
        (result,) = instance.attempt(transfer(task_id, s3_key=pattern, replace=True))
        assert result["skipped"] is False
        assert in_bucket(s3) == {key: emulator.task(task_id).images[0]}
        assert instance.attempt(transfer(task_id, s3_key=pattern, replace=True))[0]["skipped"] is True

    def test_the_image_of_another_task_is_foreign(self, emulator, instance, s3, pattern):
        other, task_id = emulator.add_task(), emulator.add_task()
        key = pattern.format(task_id=task_id, index=0, ext=".png")
        instance.attempt(transfer(other, s3_key=key))
        with fails_at_once(GptImgRequestError):
            instance.attempt(transfer(task_id, s3_key=pattern))
        assert in_bucket(s3) == {key: emulator.task(other).images[0]}

    def test_an_object_of_ours_that_was_written_anew_is_foreign(self, emulator, instance, s3, pattern):
        """As by a tool that makes images smaller, and keeps their metadata."""
        task_id = emulator.add_task()
        (first,) = instance.attempt(transfer(task_id, s3_key=pattern))
        head = s3.head_object(Bucket="images", Key=first["key"])
        s3.put_object(Bucket="images", Key=first["key"], Body=b"smaller", Metadata=head["Metadata"])
        with fails_at_once(GptImgRequestError):
            instance.attempt(transfer(task_id, s3_key=pattern))
        assert in_bucket(s3) == {first["key"]: b"smaller"}

    def test_an_object_of_an_earlier_release_is_skipped(self, emulator, instance, s3, pattern):
        task_id = emulator.add_task()
        (first,) = instance.attempt(transfer(task_id, s3_key=pattern))
        metadata = s3.head_object(Bucket="images", Key=first["key"])["Metadata"]
        metadata.pop("gptimg-size", None)
        s3.put_object(Bucket="images", Key=first["key"], Body=PNG, Metadata=metadata, ContentType="image/png")
        assert instance.attempt(transfer(task_id, s3_key=pattern)) == [first | {"skipped": True}]
        assert len(image_calls(emulator)) == 1

    @pytest.mark.parametrize("checksum", [{}, {"ChecksumAlgorithm": "SHA256"}], ids=["md5", "sha256"])
    def test_an_identical_object_of_somebody_else_is_skipped(self, emulator, instance, s3, pattern, checksum):
        task_id = emulator.add_task()
        key = pattern.format(task_id=task_id, index=0, ext=".png")
        etag = s3.put_object(Bucket="images", Key=key, Body=PNG, **checksum)["ETag"].strip('"')
        (result,) = instance.attempt(transfer(task_id, s3_key=pattern))
        assert result["skipped"] is True
        assert (result["key"], result["etag"], result["size"]) == (key, etag, len(PNG))
        assert result["sha256"] == hashlib.sha256(PNG).hexdigest()
        assert result["content_type"] == "image/png"
        assert s3.head_object(Bucket="images", Key=key)["Metadata"] == {}

    @pytest.mark.parametrize("checksum", [{}, {"ChecksumAlgorithm": "SHA256"}], ids=["md5", "sha256"])
    def test_an_object_of_the_same_size_is_foreign(self, emulator, instance, s3, pattern, checksum):
        task_id = emulator.add_task()
        key = pattern.format(task_id=task_id, index=0, ext=".png")
        s3.put_object(Bucket="images", Key=key, Body=bytes(len(PNG)), **checksum)
        with fails_at_once(GptImgRequestError):
            instance.attempt(transfer(task_id, s3_key=pattern))
        assert in_bucket(s3) == {key: bytes(len(PNG))}

    @pytest.mark.parametrize(
        "sha256", ["", "no hex at all", "ab", "00" * 32], ids=["empty", "no hex", "short", "of something else"]
    )
    def test_an_object_that_only_claims_to_be_ours_is_foreign(self, emulator, instance, s3, pattern, sha256):
        task_id = emulator.add_task()
        metadata = {"gptimg-task-id": task_id, "gptimg-index": "0", "gptimg-sha256": sha256}
        key = self.put_foreign(s3, emulator, task_id, pattern, Metadata=metadata, ChecksumAlgorithm="SHA256")
        with fails_at_once(GptImgRequestError):
            instance.attempt(transfer(task_id, s3_key=pattern))
        assert in_bucket(s3) == {key: b"somebody else's"}


class TestRaces:
    def test_an_object_that_appears_during_the_download_is_not_overwritten(self, emulator, instance, s3):
        task_id = emulator.add_task()
        key = f"gptimg/{task_id}/0.png"
        emulator.fault("image", "hang_after")
        failure = in_thread(lambda: instance.attempt(transfer(task_id)))
        until(lambda: emulator.waiting("hang_after"))
        s3.put_object(Bucket="images", Key=key, Body=b"somebody was faster")
        emulator.release()
        with fails_at_once(GptImgRequestError):
            failure()
        assert in_bucket(s3) == {key: b"somebody was faster"}

    def test_two_runs_at_once_make_one_object_and_both_succeed(self, emulator, instance, s3):
        task_id = emulator.add_task()
        emulator.fault("image", "hang_after", times=2)
        runs = [in_thread(lambda: execute(transfer(task_id), {})) for _ in range(2)]
        until(lambda: emulator.waiting("hang_after") == 2)
        emulator.release()
        results = [run()[0] for run in runs]
        assert sorted(result["skipped"] for result in results) == [False, True]
        assert results[0] | {"skipped": None} == results[1] | {"skipped": None}
        assert list(in_bucket(s3).values()) == emulator.task(task_id).images


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)


def in_thread(function):
    """Start `function` on a thread, and return what waits for its result."""
    ended: list = []

    def run() -> None:
        try:
            ended.append((function(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()

    def join():
        thread.join(60)
        result, error = ended[0]
        if error is not None:
            raise error
        return result

    return join


class TestPartialFailure:
    def test_what_is_finished_is_mirrored_and_all_failed_are_named(self, emulator, instance, s3, deferrable):
        tasks = [
            emulator.add_task(polls=3, error="no cats today"),
            emulator.add_task(polls=2, n=2),
            "gpt-image-2-unknown",
            emulator.add_task(),
        ]
        with may_be_retried(GptImgTaskFailedError) as caught:
            instance.attempt(transfer(tasks, deferrable=deferrable))
        assert "no cats today" in str(caught.value)
        assert f"Of 4 image tasks 2 failed: {tasks[0]}, {tasks[2]}" in str(caught.value)
        assert len(in_bucket(s3)) == 3

    def test_a_rejected_key_keeps_no_finished_image_from_its_place(self, emulator, instance, s3):
        """The vendor's image host asks for no key."""
        waiting, done, other = (
            emulator.add_task(status="processing"),
            emulator.add_task(),
            emulator.add_task(status="processing"),
        )
        ended = in_thread(lambda: instance.attempt(transfer([waiting, done, other])))
        until(lambda: len(emulator.calls) >= 5)
        emulator.revoke_key(emulator.api_key)
        with fails_at_once(GptImgAuthError) as caught:
            ended()
        assert f"Of 3 image tasks 2 failed: {waiting}, {other}" in str(caught.value)
        assert len(in_bucket(s3)) == 1

    def test_a_rejected_first_poll_keeps_no_finished_image_from_its_place(self, emulator, instance, s3):
        emulator.fault("poll", 401)
        with fails_at_once(GptImgAuthError) as caught:
            instance.attempt(transfer([emulator.add_task(), emulator.add_task()]))
        assert "Of 2 image tasks 1 failed" in str(caught.value)
        assert len(in_bucket(s3)) == 1

    def test_what_is_late_is_named(self, emulator, instance, s3, deferrable):
        late, done = emulator.add_task(status="processing"), emulator.add_task()
        with may_be_retried(GptImgTimeoutError) as caught:
            instance.attempt(transfer([late, done], deferrable=deferrable, timeout=0.2))
        assert late in str(caught.value)
        assert len(in_bucket(s3)) == 1

    def test_an_image_that_is_bad_keeps_no_other_from_its_place(self, emulator, instance, s3):
        good = emulator.add_task(n=2)
        bad = emulator.add_task(image_bytes=[b"no image at all", PNG])
        failed = emulator.add_task(error="no")
        with may_be_retried(GptImgMediaError) as caught:
            instance.attempt(transfer([good, bad, failed]))
        assert f"Of 3 image tasks 2 failed: {bad}, {failed}" in str(caught.value)
        assert len(in_bucket(s3)) == 3

    def test_another_attempt_does_only_what_is_missing(self, emulator, instance, s3):
        tasks = [emulator.add_task(), emulator.add_task(status="processing")]
        with may_be_retried(GptImgTimeoutError):
            instance.attempt(transfer(tasks, timeout=0.05))
        emulator.finish(tasks[1])
        result = instance.attempt(transfer(tasks))
        assert [one["skipped"] for one in result] == [True, False]
        assert len(image_calls(emulator)) == 2


class TestWaiting:
    def test_what_is_finished_already_does_not_defer(self, emulator, instance, s3):
        instance.attempt(transfer([emulator.add_task(), emulator.add_task()], deferrable=True))
        assert instance.deferrals == []

    def test_defers_for_the_unfinished_and_keeps_the_deadline(self, emulator, instance, s3):
        created = time.time() - 50
        waiting = emulator.add_task(status="processing", created_at=created)
        operator = transfer([emulator.add_task(), waiting], deferrable=True, timeout=600)
        first = instance.defer(operator)
        assert first.trigger.gptimg_task_id == [waiting]
        assert first.trigger.deadline == pytest.approx(created + 600, abs=30)
        assert in_bucket(s3) == {}
        operator.execute = lambda context: operator.execute_complete(context, {"status": "finished"}, **first.kwargs)
        assert instance.defer(operator).trigger.deadline == first.trigger.deadline

    @pytest.mark.parametrize("event", [{"status": "finished"}, {"status": "unheard of"}, "success", None], ids=repr)
    def test_an_event_of_any_kind_resumes(self, emulator, instance, s3, event):
        operator = transfer(emulator.add_task(), deferrable=True)
        assert len(operator.execute_complete(instance.context, event)) == 1

    @pytest.mark.parametrize("wrong", ["", "a/b", None, [], [None], 7, {}], ids=repr)
    def test_what_is_no_task_is_refused(self, emulator, instance, s3, wrong):
        with fails_at_once(GptImgRequestError):
            instance.attempt(transfer(wrong))
        assert emulator.calls == []


def test_logs_what_was_made_and_where_it_went(emulator, instance, s3, log):
    task_id = emulator.add_task(n=2)
    result = instance.attempt(transfer(task_id))
    said = log()
    for one in result:
        assert one["uri"] in said
        assert one["sha256"] in said
    assert "Mirrored 2 images" in said
    assert "0 were there already" in said


def test_on_kill_says_that_the_images_are_paid_for(log):
    transfer("id").on_kill()
    assert "paid for" in log()
