# SPDX-License-Identifier: Apache-2.0
"""The metadata by which objects in S3 are recognized: their writer, and their image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

__all__ = [
    "C2PA",
    "DAG_ID",
    "HEIGHT",
    "INDEX",
    "LARGEST_METADATA",
    "SHA256",
    "SIZE",
    "SOURCE_URL",
    "TASK_ID",
    "WIDTH",
    "WRITER",
    "dag_mark",
    "metadata_size",
    "read_marks",
    "short_mark",
]

TASK_ID = "gptimg-task-id"
INDEX = "gptimg-index"
SHA256 = "gptimg-sha256"
SIZE = "gptimg-size"
WIDTH = "gptimg-width"
HEIGHT = "gptimg-height"
SOURCE_URL = "gptimg-source-url"
DAG_ID = "gptimg-dag-id"
C2PA = "gptimg-c2pa"
"""`true` or `false`."""
WRITER = "gptimg-task-instance"
"""On a manifest: the task instance that wrote it."""

LARGEST_METADATA = 2048
"""Most bytes of an object's metadata that S3 accepts, names and values together."""

_LONGEST_MARK = 512


def read_marks(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return an object's metadata with names in lower case: stores written in Go answer with `Gptimg-Task-Id`.

    :param metadata: As boto3 has it in the answer to HEAD or GET.
    """
    return {name.lower(): value for name, value in (metadata or {}).items()}


def dag_mark(dag_id: str) -> str:
    """Return the value of :data:`DAG_ID` for a DAG."""
    return short_mark(quote(dag_id, safe=""))


def short_mark(text: str) -> str:
    """Return `text` if it is short enough for metadata, else its digest."""
    return text if len(text) <= _LONGEST_MARK else f"sha256-{hashlib.sha256(text.encode()).hexdigest()}"


def metadata_size(metadata: Mapping[str, Any]) -> int:
    """Return the size of metadata in bytes, as S3 counts it."""
    return sum(len(f"{name}{value}".encode()) for name, value in metadata.items())
