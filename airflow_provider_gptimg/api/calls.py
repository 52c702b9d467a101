# SPDX-License-Identifier: Apache-2.0
"""The API's two calls: submit and poll."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import check_task_id

__all__ = ["Call", "poll_call", "probe_call", "submit_call"]

_PROBE_TASK_ID = "gpt-image-2-connection-test"


@dataclass(frozen=True)
class Call:
    """One HTTP request to the API; `path` is relative to the connection's base URL."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    task_id: str | None = None

    @property
    def is_submit(self) -> bool:
        """True if an accepted call costs credits."""
        return self.method == "POST"


def submit_call(request: ImageRequest, reference_images_field: str) -> Call:
    """Return the call that submits `request`. An `s3://` reference must be presigned before."""
    return Call("POST", "/api/v1/images/generate", request.body(reference_images_field))


def poll_call(task_id: str) -> Call:
    """Return the call that asks for an image task.

    :raises GptImgRequestError: `task_id` cannot be part of a URL.
    """
    return Call("GET", f"/api/v1/images/task/{check_task_id(task_id)}", task_id=task_id)


def probe_call() -> Call:
    """Return a call that costs nothing and shows whether the key is accepted."""
    return poll_call(_PROBE_TASK_ID)
