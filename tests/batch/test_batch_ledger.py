# SPDX-License-Identifier: Apache-2.0
"""The ledger: what it knows again, what it writes and how often, and how a request stands by it, in each store."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_instance import Instance, prompts
from hypothesis import given, strategies as st
from journals import KINDS, use_s3, use_variables

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import COMPLETED, Image, ImageTask
from airflow_provider_gptimg.batch import facts
from airflow_provider_gptimg.batch.entries import Entry, Standing
from airflow_provider_gptimg.batch.ledger import Ledger, read_entries
from airflow_provider_gptimg.batch.report import mirrored_objects
from airflow_provider_gptimg.batch.requests import BatchRequest
from airflow_provider_gptimg.exceptions import GptImgError, GptImgSubmissionUnknownError, GptImgTaskFailedError
from airflow_provider_gptimg.journal.attempt import Attempt
from airflow_provider_gptimg.journal.stores import open_store
from airflow_provider_gptimg.mirroring.images import Pixels
from airflow_provider_gptimg.mirroring.mirror import MirroredObject

FROZEN = json.loads((Path(__file__).parent / "frozen/ledger-0.1.json").read_text())

pytestmark = pytest.mark.usefixtures("kept_in")


@pytest.fixture(params=KINDS)
def kept_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the journal lives."""
    if request.param == "S3":
        use_s3(monkeypatch, request.getfixturevalue("s3"))
    elif request.param == "Variables":
        use_variables(monkeypatch)
    return str(request.param)


def asked(texts: list[str], n: int = 1) -> list[BatchRequest]:
    return [BatchRequest(f"requests[{index}]", ImageRequest(text, n=n)) for index, text in enumerate(texts)]


def ledger(instance: Instance) -> Ledger:
    return Ledger.of(Attempt.of(instance.context, None), "gptimg_default", instance.context)


def submit(book: Ledger, entries: list[Entry], chunk: int = 8, prefix: str = "task") -> None:
    for start in range(0, len(entries), chunk):
        for entry, number in book.intend(entries[start : start + chunk]).items():
            book.accept(number, f"{prefix}-{entries.index(entry)}")
    book.write()


def mirror(book: Ledger, entries: list[Entry]) -> None:
    for entry in entries:
        book.mirror(entry, ImageTask(entry.task_id, COMPLETED), [mirrored(entry.task_id, 0)])
    book.write()


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


def test_knows_requests_again_in_any_order(instance: Instance) -> None:
    texts = [*prompts(40), "Twice", "Twice"]
    book = ledger(instance)
    entries = book.enter(asked(texts))
    submit(book, entries)
    ids = {entry.name: entry.task_id for entry in entries}
    shuffled = list(enumerate(texts))
    random.Random(1).shuffle(shuffled)

    again = ledger(instance.retry()).enter(asked([text for _, text in shuffled]))

    for (index, text), entry in zip(shuffled, again, strict=True):
        if text != "Twice":
            assert entry.task_id == ids[f"requests[{index}]"]
    assert {entry.task_id for entry in again} == set(ids.values()), "equal requests keep an image task each"


def test_what_is_asked_for_no_more_is_kept(instance: Instance) -> None:
    book = ledger(instance)
    submit(book, book.enter(asked(["a", "b"])))

    shorter = ledger(instance.retry())
    (entry,) = shorter.enter(asked(["b"]))
    assert [stray.task_id for stray in shorter.strays] == ["task-0"]
    mirror(shorter, [entry])

    entries = ledger(instance.retry().retry()).enter(asked(["a", "b"]))
    assert [entry.task_id for entry in entries] == ["task-0", "task-1"]
    assert [entry.objects is None for entry in entries] == [True, False]


def test_another_connection_is_another_request(instance: Instance) -> None:
    book = ledger(instance)
    submit(book, book.enter(asked(["a"])))
    attempt = Attempt.of(instance.context, None)
    other = Ledger.of(attempt, "other", instance.context)
    assert other.enter(asked(["a"]))[0].current is None


def test_a_batch_of_a_thousand_takes_few_reads_writes_and_bytes(
    instance: Instance, kept_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of four images each, with prompts, keys and URLs that are rather long, by legs of twenty."""
    if kept_in == "S3":
        pytest.skip("The same numbers, with a server behind them")
    store = open_store(instance.context)
    writes, reads, sizes = [], [], []

    def count(name: str, calls: list[str]) -> None:
        method = getattr(type(store), name)

        def counted(self: Any, key: str, *values: Any) -> Any:
            calls.append(key)
            sizes.extend(len(json.dumps(value)) for value in values)
            return method(self, key, *values)

        monkeypatch.setattr(type(store), name, counted)

    count("get", reads)
    count("put", writes)
    requests = asked([f"{number} {'夕焼けの灯台' * 100}" for number in range(1000)], n=4)
    for leg in range(50):
        book = ledger(instance)
        entries = book.enter(requests)
        submit(book, entries[leg * 20 : leg * 20 + 20], prefix=str(leg))
        for entry in entries[leg * 20 : leg * 20 + 20]:
            images = (Image("https://file.gptimg.co/gpt-image-2-outputs/" + "0" * 120),) * 4
            task = ImageTask(entry.task_id, COMPLETED, images=images, created_at="2026-04-22T00:12:03.456Z")
            book.mirror(entry, task, [mirrored(entry.task_id, index, key="k" * 300) for index in range(4)])
        book.write()

    assert all(entry.objects for entry in ledger(instance).enter(requests))
    assert max(sizes) * 4 / 3 < 65_535, "Airflow warns of more; MySQL takes no more of a Variable, encrypted"
    assert len(writes) < 650
    reads.clear()
    ledger(instance)
    assert len(reads) < 200


def test_a_value_that_is_written_twice_or_late_changes_nothing(instance: Instance) -> None:
    class Recording:
        """Also executes each write again, later."""

        lasts, forgets = True, False

        def __init__(self) -> None:
            self.values: dict[str, Any] = {}
            self.calls: list[tuple[str, Any]] = []

        def get(self, key: str) -> Any:
            return self.values.get(key)

        def put(self, key: str, value: Any) -> bool:
            self.values[key] = json.loads(json.dumps(value))
            self.calls.append((key, self.values[key]))
            return True

    store: Any = Recording()
    book = Ledger(store, "gptimg_default", 1, 0)
    entries = book.enter(asked(prompts(100)))
    submit(book, entries)
    mirror(book, entries[:50])
    known = {entry.fingerprint: (entry.task_id, entry.objects) for entry in read_entries(store.get, 1)}

    calls = random.Random(1).sample(store.calls, len(store.calls))
    for key, value in calls:
        store.put(key, value)
        assert known == {entry.fingerprint: (entry.task_id, entry.objects) for entry in read_entries(store.get, 1)}


def test_keeps_how_a_prompt_begins(instance: Instance) -> None:
    texts = ["A cat", "A dog " * 100]
    book = ledger(instance)
    submit(book, book.enter(asked(texts)))

    entries = read_entries(open_store(instance.context).get, attempts=1)
    assert [entry.prompt for entry in entries] == ["A cat", f"{texts[1][:150]}…"]


def test_tells_what_was_mirrored_as_it_was_told(instance: Instance) -> None:
    book = ledger(instance)
    entries = book.enter(asked(["a"], n=2))
    submit(book, entries)
    task = ImageTask("task-0", COMPLETED, created_at="2026-04-22T00:12:03Z", updated_at="2026-04-22T00:13:03Z")
    objects = [mirrored("task-0", 0), mirrored("task-0", 1)]
    book.mirror(entries[0], task, objects)
    book.write()

    assert mirrored_objects(ledger(instance).enter(asked(["a"], n=2))) == (objects, {"task-0": task})


Step = Callable[[Ledger, Entry], object]


def sent(book: Ledger, entry: Entry) -> int:
    return book.intend([entry])[entry]


def accepted(book: Ledger, entry: Entry) -> None:
    number = sent(book, entry)
    book.accept(number, f"task-{book.try_number}-{number}")


def refused(book: Ledger, entry: Entry) -> None:
    book.refuse(sent(book, entry), "429")


def refunded(book: Ledger, entry: Entry) -> None:
    accepted(book, entry)
    book.fail([entry], GptImgTaskFailedError("It failed"))


def failed(book: Ledger, entry: Entry) -> None:
    accepted(book, entry)
    book.fail([entry], GptImgError("Not an image"))


def in_s3(book: Ledger, entry: Entry) -> None:
    accepted(book, entry)
    mirror(book, [entry])


def nothing(book: Ledger, entry: Entry) -> None:
    pass


def delivered(book: Ledger, entry: Entry) -> None:
    in_s3(book, entry)
    book.deliver()


@pytest.mark.parametrize(
    ("first", "second", "policy", "expected"),
    [
        (nothing, nothing, "fail", Standing.PENDING),
        (refused, nothing, "fail", Standing.PENDING),
        (refused, refused, "fail", Standing.PENDING),
        (sent, nothing, "fail", Standing.UNKNOWN),
        (nothing, sent, "fail", Standing.UNKNOWN),
        (sent, nothing, "resubmit", Standing.PENDING),
        (nothing, sent, "resubmit", Standing.UNKNOWN),
        (sent, refused, "resubmit", Standing.PENDING),
        (sent, refused, "fail", Standing.UNKNOWN),
        (sent, accepted, "fail", Standing.IN_FLIGHT),
        (accepted, nothing, "fail", Standing.IN_FLIGHT),
        (accepted, sent, "fail", Standing.IN_FLIGHT),
        (failed, nothing, "fail", Standing.IN_FLIGHT),
        (nothing, failed, "fail", Standing.FAILED),
        (refunded, nothing, "fail", Standing.PENDING),
        (nothing, refunded, "fail", Standing.FAILED),
        (sent, refunded, "fail", Standing.FAILED),
        (in_s3, nothing, "fail", Standing.MIRRORED),
    ],
)
def test_standing_in_the_second_attempt(
    instance: Instance, first: Step, second: Step, policy: str, expected: Standing
) -> None:
    for attempt, step in ((instance, first), (instance.retry(), second)):
        book = ledger(attempt)
        (entry,) = book.enter(asked(["a"]))
        step(book, entry)
        book.write()
        assert ledger(attempt).enter(asked(["a"]))[0].standing(attempt.try_number, policy) is book.standing(
            entry, policy
        ), "another leg knows the same"
    assert book.standing(entry, policy) is expected


def test_what_a_later_attempt_replaced_on_purpose_is_settled(instance: Instance) -> None:
    for attempt, step in ((instance, sent), (instance.clear(), refunded)):
        book = ledger(attempt)
        (entry,) = book.enter(asked(["a"]))
        step(book, entry)
        book.write()
    (entry,) = ledger(instance.clear().retry()).enter(asked(["a"]))
    assert entry.standing(3, "fail") is Standing.PENDING


@pytest.mark.parametrize("further", range(3))
@pytest.mark.parametrize("is_first", [True, False])
def test_of_equal_requests_fewer_are_wanted(instance: Instance, further: int, is_first: bool) -> None:
    """Then those are taken for which most is paid, or may be: another submit would be one too many."""
    book = ledger(instance)
    entries = book.enter(asked(["a", "a"]))
    progress: list[Step] = [in_s3, failed, sent, refunded]
    for entry, step in zip(entries if is_first else reversed(entries), progress[further:], strict=False):
        step(book, entry)
    book.write()
    (taken,) = ledger(instance.retry()).enter(asked(["a"]))
    assert (taken.occurrence, taken.current is not None) == (0 if is_first else 1, True)


@pytest.mark.parametrize(
    ("step", "then", "expected"),
    [
        (in_s3, Instance.clear, Standing.MIRRORED),
        (delivered, Instance.retry, Standing.MIRRORED),
        (delivered, Instance.clear, Standing.PENDING),
        (accepted, Instance.clear, Standing.IN_FLIGHT),
    ],
)
def test_a_clear_after_a_success(
    instance: Instance, kept_in: str, step: Step, then: Callable[[Instance], Instance], expected: Standing
) -> None:
    book = ledger(instance)
    (entry,) = book.enter(asked(["a"]))
    step(book, entry)
    book.write()
    if kept_in == "Variables" and step is delivered:
        assert open_store(instance.context).get("1.batch.0.0") is None, "nothing is left of what was delivered"
        return
    assert ledger(then(instance)).enter(asked(["a"]))[0].standing(2, "fail") is expected


def test_what_is_mirrored_after_a_partial_success_was_not_delivered_by_it(instance: Instance) -> None:
    book = ledger(instance)
    first, second = book.enter(asked(["a", "b"]))
    in_s3(book, first)
    failed(book, second)
    book.write()
    book.deliver()

    cleared = instance.clear()
    book = ledger(cleared)
    again = book.enter(asked(["a", "b"]))
    assert [entry.standing(2, "fail") for entry in again] == [Standing.PENDING, Standing.IN_FLIGHT]
    mirror(book, again[1:])

    again = ledger(cleared.retry()).enter(asked(["a", "b"]))
    assert [entry.standing(3, "fail") for entry in again] == [Standing.PENDING, Standing.MIRRORED]


def test_what_was_mirrored_and_not_asked_for_was_not_delivered(instance: Instance) -> None:
    book = ledger(instance)
    for entry in book.enter(asked(["a", "b"])):
        number = book.intend([entry])[entry]
        book.accept(number, f"task-{number}")
        mirror(book, [entry])
    book = ledger(instance.retry())
    book.enter(asked(["a"]))
    book.deliver()

    entries = ledger(instance.retry().clear()).enter(asked(["a", "b"]))
    assert [entry.standing(3, "fail") for entry in entries] == [Standing.PENDING, Standing.MIRRORED]


def test_what_was_not_submitted_is_kept_with_the_reason(instance: Instance) -> None:
    book = ledger(instance)
    entries = book.enter(asked(prompts(40)))
    submit(book, entries[:10])
    book.fail(entries[10:], GptImgError("Not submitted: the balance is too low"))
    book.write()

    known = read_entries(open_store(instance.context).get, attempts=1)
    not_submitted = [entry for entry in known if entry.current is None]
    assert [entry.prompt for entry in not_submitted] == prompts(40)[10:]
    assert {entry.error["message"] for entry in not_submitted if entry.error} == {
        "Not submitted: the balance is too low"
    }
    assert {entry.standing(2, "fail") for entry in not_submitted} == {Standing.PENDING}


@pytest.mark.parametrize("value", [{}, {"version": 3, "facts": []}, {"version": 2, "facts": "x"}])
def test_a_value_that_cannot_be_read_stops_it(instance: Instance, value: Any) -> None:
    book = ledger(instance)
    submit(book, book.enter(asked(["a"])))
    open_store(instance.context).put("2.batch.0", value)
    with pytest.raises(GptImgSubmissionUnknownError, match=r"2\.batch\.0"):
        ledger(instance.retry())


@given(
    fact=st.dictionaries(
        st.sampled_from(["sent", "outcome", "occurrence", "task_id", "objects", "failed", "requests", "refunded"]),
        st.one_of(st.none(), st.integers(), st.text(), st.lists(st.integers())),
    )
)
def test_a_fact_that_cannot_be_read_is_never_nothing(fact: dict[str, Any]) -> None:
    values = {"1.batch.0": {"version": 2, "facts": [fact]}}
    try:
        entries = read_entries(values.get, attempts=1)
    except GptImgSubmissionUnknownError:
        return
    assert entries or not {"sent", "outcome"} & fact.keys()


def test_an_error_is_kept_short(instance: Instance) -> None:
    book = ledger(instance)
    entries = book.enter(asked(["a"]))
    book.fail(entries, GptImgTaskFailedError("x" * 10_000))
    book.write()
    assert len(json.dumps(ledger(instance).enter(asked(["a"]))[0].error)) < 1000


TEXTS = ["Pending", "Lost", "In flight", "Mirrored", "Failed", "Refunded", "Twice", "Twice"]
PICTURES = [f"Picture {number}" for number in range(12)]


@pytest.mark.parametrize("is_cleared", [False, True])
@pytest.mark.parametrize("what", ["failed", "delivered"])
def test_what_release_0_1_wrote_is_decided_on_as_before(instance: Instance, what: str, is_cleared: bool) -> None:
    assert instance.store
    for key, value in FROZEN[what].items():
        instance.store.set(key, value)

    attempt = instance.clear() if is_cleared else instance.retry()
    entries = ledger(attempt).enter(asked([*TEXTS, *PICTURES], n=2))

    done = Standing.PENDING if is_cleared and what == "delivered" else Standing.MIRRORED
    assert [entry.standing(2, "fail") for entry in entries[:8]] == [
        Standing.PENDING,
        Standing.UNKNOWN,
        Standing.IN_FLIGHT,
        done,
        Standing.IN_FLIGHT,
        Standing.PENDING,
        done,
        Standing.IN_FLIGHT,
    ]
    passed_over, *others = (entry.standing(2, "fail") for entry in entries[8:])
    assert passed_over is Standing.MIRRORED
    assert set(others) == {done}
    assert entries[2].task_id == "gpt-image-2-inflight"
    assert [entry.prompt for entry in entries[:3]] == ["Pending", "Lost", "In flight"]


@pytest.mark.parametrize("key", ["gptimg_batch", "gptimg_batch_0"])
@pytest.mark.parametrize("value", ["text", {"pages": "many"}, [1]])
def test_a_page_of_release_0_1_that_cannot_be_read_stops_it(instance: Instance, key: str, value: Any) -> None:
    assert instance.store
    for known, page in FROZEN["failed"].items():
        instance.store.set(known, page)
    instance.store.set(key, value)
    with pytest.raises(GptImgSubmissionUnknownError, match=key):
        ledger(instance)


def test_values_are_merged_so_that_later_legs_read_few(instance: Instance, kept_in: str) -> None:
    if kept_in == "S3":
        pytest.skip("The same numbers, with a server behind them")
    for leg in range(40):
        book = ledger(instance)
        submit(book, book.enter(asked([f"Picture {leg}"])), prefix=f"{leg}")
    log = facts.FactLog(open_store(instance.context).get, 1)
    assert len(log.keys) < 20
    assert sum("sent" in fact for fact in log.facts) == 40
