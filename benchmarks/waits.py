# SPDX-License-Identifier: Apache-2.0
"""Who waits in a benchmark of polling: the connection, class and arguments of each contestant's trigger."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

__all__ = ["CONTESTANTS", "KEY", "POLL_INTERVAL", "Contestant"]

KEY = "a-key-for-the-benchmark"
POLL_INTERVAL = 5
_FAR = 3600.0

Connection = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """One way to wait.

    :param classpath: The trigger's import path.
    :param arguments: Returns the trigger's arguments for base URL and number of the wait.
    :param connection: Returns the Airflow connection `bench` for base URL and CA bundle.
    :param imports: What the trigger imports when it runs, so that its memory is not counted as the waits'.
    """

    label: str
    classpath: str
    arguments: Callable[[str, int], dict[str, Any]]
    connection: Callable[[str, str], Connection] | None = None
    imports: tuple[str, ...] = ()


def _reference(name: str, label: str) -> Contestant:
    return Contestant(
        label=label,
        classpath=f"benchmarks.references.{name}",
        arguments=lambda url, number: {
            "url": f"{url}/api/v1/images/task/gpt-image-2-{number}",
            "key": KEY,
            "poll_interval": POLL_INTERVAL,
        },
    )


def _gptimg(label: str, first_poll_ago: float | None) -> Contestant:
    return Contestant(
        label=label,
        classpath="airflow_provider_gptimg.triggers.gptimg.GptImgTaskTrigger",
        arguments=lambda url, number: {
            "gptimg_task_id": f"gpt-image-2-{number}",
            "gptimg_conn_id": "bench",
            "poll_interval": POLL_INTERVAL,
            "first_poll_after": 0,
            "deadline": time.time() + _FAR,
            "first_poll_at": None if first_poll_ago is None else time.time() - first_poll_ago,
        },
        connection=lambda url, ca: {
            "conn_type": "gptimg",
            "host": url,
            "password": KEY,
            "extra": json.dumps({"verify": ca}),
        },
        imports=("airflow_provider_gptimg.hooks.shared_client",),
    )


def _http(name: str, arguments: dict[str, Any]) -> Contestant:
    return Contestant(
        label=f"official {name}",
        classpath=f"airflow.providers.http.triggers.http.{name}",
        arguments=lambda url, number: {
            "http_conn_id": "bench",
            "method": "GET",
            "headers": {"authorization": f"Bearer {KEY}"},
            **{key: value.format(number) if isinstance(value, str) else value for key, value in arguments.items()},
        },
        connection=lambda url, ca: {"conn_type": "http", "host": url},
    )


CONTESTANTS: dict[str, Contestant] = {
    "empty": _reference("EmptyWait", "no poll at all"),
    "hand-written": _reference("HandWrittenWait", "hand-written asyncio GET (limit)"),
    "aiohttp": _reference("AiohttpWait", "one bare aiohttp session (reference)"),
    "gptimg": _gptimg("GptImgTaskTrigger", 60.0),
    "gptimg-at-once": _gptimg("GptImgTaskTrigger, all due at once", None),
    "http-event": _http(
        "HttpEventTrigger",
        {
            "endpoint": "/api/v1/images/task/gpt-image-2-{}",
            "response_check_path": "benchmarks.references.always_false",
            "poll_interval": float(POLL_INTERVAL),
        },
    ),
    # It takes a 404 for "not yet".
    "http-sensor": _http("HttpSensorTrigger", {"endpoint": "/missing/{}", "poke_interval": float(POLL_INTERVAL)}),
    "databricks": Contestant(
        label="official DatabricksExecutionTrigger",
        classpath="airflow.providers.databricks.triggers.databricks.DatabricksExecutionTrigger",
        arguments=lambda url, number: {
            "run_id": number,
            "databricks_conn_id": "bench",
            "polling_period_seconds": POLL_INTERVAL,
        },
        connection=lambda url, ca: {
            "conn_type": "databricks",
            "schema": urlsplit(url).scheme,
            "host": urlsplit(url).hostname,
            "port": urlsplit(url).port,
            "password": KEY,
        },
    ),
    "openai": Contestant(
        label="official OpenAIBatchTrigger",
        classpath="airflow.providers.openai.triggers.openai.OpenAIBatchTrigger",
        arguments=lambda url, number: {
            "conn_id": "bench",
            "batch_id": f"batch_{number}",
            "poll_interval": float(POLL_INTERVAL),
            "timeout": _FAR,
        },
        connection=lambda url, ca: {"conn_type": "openai", "host": f"{url}/v1", "password": KEY},
    ),
    "common-ai": Contestant(
        label="official LLMBatchTrigger (Common AI)",
        classpath="airflow.providers.common.ai.triggers.llm_batch.LLMBatchTrigger",
        arguments=lambda url, number: {
            "llm_conn_id": "bench",
            "adapter": "openai",
            "batch_id": f"batch_{number}",
            "poll_interval": POLL_INTERVAL,
            "end_time": time.time() + _FAR,
            "cancel_on_kill": False,
            "cancel_on_timeout": False,
        },
        connection=lambda url, ca: {"conn_type": "pydanticai", "host": f"{url}/v1", "password": KEY},
        imports=("airflow.providers.common.ai.batch.openai", "openai"),
    ),
}
