# SPDX-License-Identifier: Apache-2.0
"""The ledger: what it knows again, what it keeps, and how a request stands by it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batch_instance import FileStore, Instance, prompts
from hypothesis import given, strategies as st

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import COMPLETED, Image, ImageTask
from airflow_provider_gptimg.batch.ledger import PAGE_SIZE, Entry, Ledger, Standing
from airflow_provider_gptimg.batch.report import mirrored_objects
from airflow_provider_gptimg.batch.requests import BatchRequest
from airflow_provider_gptimg.exceptions import GptImgSubmissionUnknownError, GptImgTaskFailedError
from airflow_provider_gptimg.mirroring.images import Pixels
from airflow_provider_gptimg.mirroring.mirror import MirroredObject
from airflow_provider_gptimg.submission import SubmissionRecord


def asked(texts: list[str], n: int = 1) -> list[BatchRequest]:
    return [BatchRequest(f"requests[{index}]", ImageRequest(text, n=n)) for index, text in enumerate(texts)]


def ledger(instance: Instance) -> Ledger:
    return Ledger(instance.context, "gptimg_default")


def submit_all(book: Ledger, entries: list[Entry]) -> None:
    for number, entry in enumerate(entries):
        book.intend(entry)
        book.accept(entry, f"task-{number}")
    book.write(entries)


def test_knows_requests_again_in_any_order(instance: Instance) -> None:
    texts = [*prompts(40), "Twice", "Twice"]
    book = ledger(instance)
    entries = book.enter(asked(texts))
    submit_all(book, entries)
    ids = {entry.name: entry.task_id for entry in entries}
    shuffled = list(enumerate(texts))
    random.Random(1).shuffle(shuffled)

    again = ledger(instance).enter(asked([text for _, text in shuffled]))

    for (index, text), entry in zip(shuffled, again, strict=True):
        if text != "Twice":
            assert entry.task_id == ids[f"requests[{index}]"]
    assert {entry.task_id for entry in again} == set(ids.values()), "equal requests keep an image task each"


def test_what_is_asked_for_no_more_is_kept(instance: Instance) -> None:
    book = ledger(instance)
    submit_all(book, book.enter(asked(["a", "b"])))

    shorter = ledger(instance)
    (entry,) = shorter.enter(asked(["b"]))
    assert [stray.task_id for stray in shorter.strays] == ["task-0"]
    shorter.write([entry])

    assert [entry.task_id for entry in ledger(instance).enter(asked(["a", "b"]))] == ["task-0", "task-1"]


def test_another_connection_is_another_request(instance: Instance) -> None:
    book = ledger(instance)
    submit_all(book, book.enter(asked(["a"])))
    assert Ledger(instance.context, "other").enter(asked(["a"]))[0].submission is None


def test_values_stay_below_what_airflow_warns_of(instance: Instance) -> None:
    """1,000 requests of four images each, with prompts, keys and URLs that are rather long."""
    book = ledger(instance)
    entries = book.enter(asked([f"{number} {'夕焼けの灯台' * 100}" for number in range(1000)], n=4))
    submit_all(book, entries)
    for entry in entries:
        images = (Image("https://file.gptimg.co/gpt-image-2-outputs/" + "0" * 120),) * 4
        task = ImageTask(entry.task_id, COMPLETED, images=images, created_at="2026-04-22T00:12:03.456Z")
        book.mirror(entry, task, [mirrored(entry.task_id, index, key="k" * 300) for index in range(4)])
    book.write(entries)

    values = instance.store.values  # type: ignore[union-attr]
    assert len(values) == 1 + -(-1000 // PAGE_SIZE)
    assert max(len(json.dumps(value)) for value in values.values()) < 65_535


def mirrored(task_id: str, index: int, key: str = "key.png") -> MirroredObject:
    return MirroredObject(
        bucket="images",
        key=key,
        task_id=task_id,
        index=index,
        source_url="https://file.gptimg.co/gpt-image-2-outputs/" + "0" * 120,
        content_type="image/png",
        size=123_456,
        sha256="0" * 64,
        etag="",
        skipped=False,
        pixels=Pixels(1024, 768),
    )


def test_keeps_how_a_prompt_begins(instance: Instance) -> None:
    texts = ["A cat", "A dog " * 100]
    book = ledger(instance)
    submit_all(book, book.enter(asked(texts)))

    ledger(instance).enter(asked([]))  # nobody asks for them any more: they are kept all the same
    assert [entry.prompt for entry in ledger(instance)._entries] == ["A cat", f"{texts[1][:150]}…"]


def test_tells_what_was_mirrored_as_it_was_told(instance: Instance) -> None:
    book = ledger(instance)
    entries = book.enter(asked(["a"], n=2))
    submit_all(book, entries)
    task = ImageTask("task-0", COMPLETED, created_at="2026-04-22T00:12:03Z", updated_at="2026-04-22T00:13:03Z")
    objects = [mirrored("task-0", 0), mirrored("task-0", 1)]
    book.mirror(entries[0], task, objects)
    book.write(entries)

    assert mirrored_objects(ledger(instance).enter(asked(["a"], n=2))) == (objects, {"task-0": task})


SUBMITTED = SubmissionRecord("f", credits=2, submitted_at=1.0, max_tries=0)
ACCEPTED = replace(SUBMITTED, task_id="t")
DONE: dict[str, Any] = {"mirrored": {"objects": [{}]}}
FAILED: dict[str, Any] = {"error": {"type": "GptImgTaskFailedError"}}


@pytest.mark.parametrize(
    ("facts", "policy", "expected"),
    [
        ({}, "fail", Standing.PENDING),
        ({**FAILED, "failed_by": 2}, "fail", Standing.FAILED),
        ({**FAILED, "failed_by": 1}, "fail", Standing.PENDING),
        ({"submission": SUBMITTED, "submitted_by": 1}, "fail", Standing.UNKNOWN),
        ({"submission": SUBMITTED, "submitted_by": 2}, "fail", Standing.UNKNOWN),
        ({"submission": SUBMITTED, "submitted_by": 1}, "resubmit", Standing.PENDING),
        ({"submission": SUBMITTED, "submitted_by": 2}, "resubmit", Standing.UNKNOWN),
        ({"submission": ACCEPTED, "submitted_by": 1}, "fail", Standing.IN_FLIGHT),
        ({"submission": ACCEPTED, "submitted_by": 2}, "fail", Standing.IN_FLIGHT),
        ({"submission": ACCEPTED, "submitted_by": 1, **FAILED, "failed_by": 1}, "fail", Standing.IN_FLIGHT),
        ({"submission": ACCEPTED, "submitted_by": 1, **FAILED, "failed_by": 2}, "fail", Standing.FAILED),
        ({"submission": ACCEPTED, "submitted_by": 1, **DONE}, "fail", Standing.MIRRORED),
        ({"submission": replace(ACCEPTED, delivered_max_tries=0), **DONE}, "fail", Standing.MIRRORED),
    ],
)
def test_standing_in_the_second_attempt(facts: dict[str, Any], policy: str, expected: Standing) -> None:
    entry = Entry("f", 0, page=0, **facts)
    assert entry.standing(max_tries=0, try_number=2, on_unknown=policy) is expected
    assert Entry.from_json(json.loads(json.dumps(entry.to_json())), 0, None).to_json() == entry.to_json()


PROGRESS: list[dict[str, Any]] = [
    {"submission": ACCEPTED, **DONE},
    {"submission": ACCEPTED, "error": {"type": "GptImgTimeoutError"}},
    {"submission": SUBMITTED},
    {"submission": ACCEPTED, **FAILED},
]


@pytest.mark.parametrize("further", range(len(PROGRESS) - 1))
@pytest.mark.parametrize("is_first", [True, False])
def test_of_equal_requests_fewer_are_wanted(instance: Instance, further: int, is_first: bool) -> None:
    """Then those are taken for which most is paid, or may be: another submit would be one too many."""
    book = ledger(instance)
    entries = book.enter(asked(["a", "a"]))
    for entry, facts in zip(entries if is_first else reversed(entries), PROGRESS[further:], strict=False):
        entry.submission = replace(facts["submission"], fingerprint=entry.fingerprint)
        entry.mirrored, entry.error = facts.get("mirrored"), facts.get("error")
    book.write(entries)
    (taken,) = ledger(instance).enter(asked(["a"]))
    assert (taken.occurrence, taken.submission is not None) == (0 if is_first else 1, True)


@pytest.mark.parametrize(
    ("delivered", "submitted_under", "is_mirrored", "expected"),
    [
        (None, 0, True, Standing.MIRRORED),
        (0, 0, True, Standing.PENDING),
        (0, 0, False, Standing.IN_FLIGHT),
        (0, 1, True, Standing.MIRRORED),
        (1, 0, True, Standing.MIRRORED),
    ],
    ids=["no success", "cleared success", "not delivered", "made anew since", "success after the clear"],
)
def test_a_clear_after_a_success(
    delivered: int | None, submitted_under: int, is_mirrored: bool, expected: Standing
) -> None:
    """The task instance has `max_tries` 1 now, since a person has cleared it once."""
    record = replace(ACCEPTED, max_tries=submitted_under)
    value = Entry("f", 0, 0, record, submitted_by=1, mirrored={"objects": []} if is_mirrored else None).to_json()
    assert Entry.from_json(value, 0, delivered).standing(1, 2, "fail") is expected


@pytest.mark.parametrize("key", ["gptimg_batch", "gptimg_batch_0"])
@pytest.mark.parametrize("value", ["text", {"pages": "many"}, [1]])
def test_a_record_that_cannot_be_read_stops_it(instance: Instance, key: str, value: Any) -> None:
    book = ledger(instance)
    submit_all(book, book.enter(asked(["a"])))
    assert instance.store
    instance.store.set(key, value)
    with pytest.raises(GptImgSubmissionUnknownError, match=key):
        ledger(instance)


@given(value=st.dictionaries(st.sampled_from(["task_id", "credits", "submitted_at", "max_tries"]), st.integers()))
def test_an_entry_that_cannot_be_read_counts_as_an_intent(value: dict[str, Any]) -> None:
    """It is never submitted as if nothing had been."""
    entry = Entry.from_json({"submitted_at": 1.0, **value}, 0, None)
    assert entry.standing(0, 2, "fail") is Standing.UNKNOWN


def test_an_error_is_kept_short(instance: Instance) -> None:
    book = ledger(instance)
    entries = book.enter(asked(["a"]))
    book.fail(entries[0], GptImgTaskFailedError("x" * 10_000))
    book.write(entries)
    assert len(json.dumps(ledger(instance).enter(asked(["a"]))[0].error)) < 1000


def test_records_never_expire(tmp_path: Path) -> None:
    from airflow.sdk.execution_time.context import NEVER_EXPIRE

    retentions = []

    class Store(FileStore):
        def set(self, key: str, value: Any, *, retention: Any = None) -> None:
            retentions.append(retention)

    book = ledger(Instance(Store(tmp_path / "store")))
    submit_all(book, book.enter(asked(["a"])))
    book.deliver()
    assert retentions == [NEVER_EXPIRE] * 3
