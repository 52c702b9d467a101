# SPDX-License-Identifier: Apache-2.0
"""The transfer as a worker calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from s3_proxy import S3Proxy, proxied_s3


@pytest.fixture
def mirror() -> Callable[..., list[dict[str, Any]]]:
    """Run the transfer to bucket `images`: `mirror(task_id, replace=True)` returns its mirrored objects."""
    from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

    def run(gptimg_task_id: Any, context: dict[str, Any] | None = None, **arguments: Any) -> list[dict[str, Any]]:
        arguments = {"task_id": "mirror", "s3_bucket": "images"} | arguments
        operator = GptImgToS3Operator(gptimg_task_id=gptimg_task_id, **arguments)
        objects: list[dict[str, Any]] = operator.execute(context or {})  # type: ignore[arg-type]
        return objects

    return run


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again without a pause."""
    for module in ("mirror", "store"):
        monkeypatch.setattr(f"airflow_provider_gptimg.mirroring.{module}.backoff", lambda *_: 0.0)


@pytest.fixture
def proxy(s3: Any) -> Iterator[S3Proxy]:
    """The S3 of the connection, through a proxy."""
    with proxied_s3() as proxy:
        yield proxy
