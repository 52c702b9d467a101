# SPDX-License-Identifier: Apache-2.0
"""Metrics through Airflow's Stats, traces through OpenTelemetry.

Both are Airflow's own: where Airflow has them off, nothing is sent. A span is a child of the span of the task, or
of the trigger, that it is opened in.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_gptimg.api.tasks import ImageTask
    from airflow_provider_gptimg.exceptions import GptImgError

__all__ = ["count", "count_poll", "span"]

_OUTCOMES = ("processing", "completed", "failed", "error")


def count(name: str, number: int = 1, **tags: str) -> None:
    """Add to the metric `gptimg.<name>`."""
    _stats().incr(f"gptimg.{name}", number, tags=tags)


def count_poll(outcome: ImageTask | GptImgError, *, waited: bool = True, in_triggerer: bool = False) -> None:
    """Count a poll, and where it ended a wait, time the generation by the API's own clock.

    :param waited: Whether the task was unfinished before; what was finished already, another wait has timed.
    """
    stats = _stats(in_triggerer)
    status = getattr(outcome, "status", "error")
    if status not in _OUTCOMES:  # each unknown status would make a time series
        status = "other"
    stats.incr("gptimg.polls", 1, tags={"outcome": status})
    seconds = getattr(outcome, "seconds", None)
    if waited and seconds is not None:
        stats.timing("gptimg.completion_time", timedelta(seconds=seconds), tags={"outcome": status})


def span(name: str, **attributes: str | int) -> AbstractContextManager[Any]:
    """Trace the block as the span `gptimg.<name>`, and yield the span for further attributes."""
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # nobody takes spans
        return _no_span()
    prefixed = {f"gptimg.{key}": value for key, value in attributes.items()}
    return trace.get_tracer("airflow_provider_gptimg").start_as_current_span(f"gptimg.{name}", attributes=prefixed)


@cache
def _no_span() -> AbstractContextManager[Any]:
    from opentelemetry import trace

    return nullcontext(trace.INVALID_SPAN)


@cache
def _stats(in_triggerer: bool = False) -> Any:
    from airflow_provider_gptimg.airflow_compat import get_stats

    return get_stats(in_triggerer)
