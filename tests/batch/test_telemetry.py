# SPDX-License-Identifier: Apache-2.0
"""Metrics and spans, told through Airflow's own Stats and OpenTelemetry's own tracer."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.observability.stats import Stats as TriggererStats
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
from airflow.sdk.observability.stats import Stats
from batch_instance import Instance, batch, prompts
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from airflow_provider_gptimg.airflow_compat import HAS_TASK_STATE_STORE, AirflowFailException
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.journal.attempt import FIRST_RELEASE_KEY
from airflow_provider_gptimg.operators.gptimg import GptImgSubmitOperator
from airflow_provider_gptimg.telemetry import count_poll
from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger


class Backend(NoStatsLogger):
    """Where Airflow sends metrics."""

    def __init__(self) -> None:
        self.counters: Counter[tuple[str, str | None]] = Counter()
        self.timings: dict[tuple[str, str | None], list[float]] = defaultdict(list)

    def incr(self, stat: str, count: int = 1, rate: float = 1, *, tags: Any = None) -> None:
        self.counters[stat, (tags or {}).get("outcome")] += count

    def timing(self, stat: str, dt: Any, *, tags: Any = None) -> None:
        self.timings[stat, (tags or {}).get("outcome")].append(dt.total_seconds())


def _backend_of(stats: Any) -> Iterator[Backend]:
    backend = Backend()
    options = {"export_legacy_names": False} if HAS_TASK_STATE_STORE else {}  # Airflow 3.3 and newer know it
    stats.initialize(factory=lambda: backend, **options)
    yield backend
    stats.initialize(factory=NoStatsLogger, **options)


@pytest.fixture
def metrics() -> Iterator[Backend]:
    """What a task tells."""
    yield from _backend_of(Stats)


@pytest.fixture
def triggerer_metrics() -> Iterator[Backend]:
    """What the triggerer tells."""
    yield from _backend_of(TriggererStats)


@pytest.fixture(scope="session")
def _exporter() -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(_exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    _exporter.clear()
    return _exporter


def test_a_batch_counts_what_it_does(emulator: Any, instance: Instance, s3: Any, metrics: Backend) -> None:
    emulator.fault("submit", "fail")
    emulator.fault("submit", 422)
    emulator.fault("submit", "lost_after")
    emulator.fault("image", "wrong_type")
    instance.run(batch([*prompts(8)], on_partial_failure="succeed", max_in_flight=8))

    assert metrics.counters["gptimg.submissions", "accepted"] == 6
    assert metrics.counters["gptimg.submissions", "refused"] == 1
    assert metrics.counters["gptimg.submissions", "unknown"] == 1
    assert metrics.counters["gptimg.credits", "charged"] == 12
    assert metrics.counters["gptimg.mirrored_images", "mirrored"] == 4
    assert metrics.counters["gptimg.mirrored_images", "failed"] == 1
    listed = s3.list_objects_v2(Bucket="images")["Contents"]
    assert metrics.counters["gptimg.mirrored_bytes", None] == sum(found["Size"] for found in listed)
    polls = sum(number for (name, _), number in metrics.counters.items() if name == "gptimg.polls")
    assert polls == sum(task.polls for task in emulator.tasks)
    assert len(metrics.timings["gptimg.completion_time", "completed"]) == 5
    assert len(metrics.timings["gptimg.completion_time", "failed"]) == 1
    assert all(0.1 < seconds < 0.3 for seconds in metrics.timings["gptimg.completion_time", "completed"])


def test_each_attempt_that_stops_at_an_unknown_submission_counts_it(
    emulator: Any, instance: Instance, s3: Any, metrics: Backend
) -> None:
    """An attempt that was killed before it had an answer could not."""
    emulator.fault("submit", "lost_after")
    killed = instance.run(batch([*prompts(3)], on_partial_failure="succeed"))
    metrics.counters.clear()
    again = instance.retry().run(batch([*prompts(3)], on_partial_failure="succeed"))
    assert (killed["unknown"], again["unknown"]) == (1, 1)
    assert metrics.counters["gptimg.submissions", "unknown"] == 1
    assert metrics.counters["gptimg.submissions", "accepted"] == 0

    intent = {"fingerprint": "f", "credits": 2, "submitted_at": 1_776_816_723.0, "max_tries": 0}
    instance.store.set(FIRST_RELEASE_KEY, intent)
    with pytest.raises(AirflowFailException, match="up to 2 credits"):
        GptImgSubmitOperator(task_id="submit", prompt="A fox").execute(instance.context)
    assert metrics.counters["gptimg.submissions", "unknown"] == 2


def test_a_wait_in_the_triggerer_tells_it_there(emulator: Any, metrics: Backend, triggerer_metrics: Backend) -> None:
    task_id = emulator.add_task(polls=3)
    assert asyncio.run(_fire(GptImgTaskTrigger(task_id))) == "finished"
    assert triggerer_metrics.counters["gptimg.polls", "processing"] == 2
    assert triggerer_metrics.counters["gptimg.polls", "completed"] == 1
    assert len(triggerer_metrics.timings["gptimg.completion_time", "completed"]) == 1
    assert not metrics.counters


def test_what_was_finished_before_is_not_timed_again(emulator: Any, metrics: Backend) -> None:
    GptImgHook().wait(emulator.add_task())
    assert metrics.counters["gptimg.polls", "completed"] == 1
    assert not metrics.timings


def test_spans_are_children_of_the_task_s_span(
    emulator: Any, instance: Instance, s3: Any, spans: InMemorySpanExporter
) -> None:
    with trace.get_tracer("airflow").start_as_current_span("worker.batch") as parent:
        instance.run(batch(prompts(3)))

    ours = [span for span in spans.get_finished_spans() if span.name.startswith("gptimg.")]
    assert {span.name for span in ours} == {"gptimg.submit", "gptimg.wait", "gptimg.mirror"}
    assert {span.parent.span_id for span in ours if span.parent} == {parent.get_span_context().span_id}
    (submit,) = [span for span in ours if span.name == "gptimg.submit"]
    assert submit.attributes == {"gptimg.requests": 3}


def test_a_trigger_s_wait_is_a_child_of_the_trigger_s_span(emulator: Any, spans: InMemorySpanExporter) -> None:
    async def run() -> str:
        with trace.get_tracer("airflow").start_as_current_span("trigger.wait"):
            return await _fire(GptImgTaskTrigger([emulator.add_task(), emulator.add_task()]))

    asyncio.run(run())
    wait, parent = spans.get_finished_spans()
    assert (wait.name, wait.attributes) == ("gptimg.wait", {"gptimg.tasks": 2})
    assert wait.parent
    assert wait.parent.span_id == parent.context.span_id


async def _fire(trigger: GptImgTaskTrigger) -> str:
    (event,) = [event async for event in trigger.run()]
    return str(event.payload["status"])


def test_statuses_in_the_servers_own_words_are_one_series(metrics: Backend) -> None:
    for status in ("processing", "completed", "queued", "dreaming|x", "träumt"):
        count_poll(ImageTask(task_id="t", status=status))
    assert {tag for _, tag in metrics.counters} == {"processing", "completed", "other"}
    assert metrics.counters["gptimg.polls", "other"] == 3
