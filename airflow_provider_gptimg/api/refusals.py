# SPDX-License-Identifier: Apache-2.0
"""Tell a generation that was refused for what its prompt asks from one that failed by chance, by the error's code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.exceptions import GptImgContentPolicyError, GptImgTaskFailedError

__all__ = ["DEFAULT_FINAL_FAILURE_CODES", "failure_of", "read_failure_codes"]

# The vendor documents no codes. Image APIs write content_policy_violation, content_filter, moderation_blocked,
# content_moderated, IMAGE_SAFETY, nsfw_content, PROHIBITED_CONTENT, sensitiveContentDetected and the like.
DEFAULT_FINAL_FAILURE_CODES = (
    "*content*policy*",
    "*content*filter*",
    "*policy*violation*",
    "*moderat*",
    "*safety*",
    "*nsfw*",
    "*prohibited*content*",
    "*sensitive*content*",
)


def read_failure_codes(value: Any) -> tuple[str, ...]:
    """Return patterns of codes from a list, or from a text that separates them by commas; None or an empty text: the
    default.

    :raises ValueError: It is neither, or one of them is empty or not a text; the message goes on after the value.
    """
    if value is None or value == "":
        return DEFAULT_FINAL_FAILURE_CODES
    patterns = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    is_list = isinstance(patterns, list | tuple) and all(isinstance(each, str) and each.strip() for each in patterns)
    if not is_list or (isinstance(value, str) and not patterns):
        raise ValueError("is not a list of patterns of error codes, such as ['*content_policy*', 'moderation_*']")
    return tuple(pattern.strip().lower() for pattern in patterns)


def failure_of(task: ImageTask, final_codes: Sequence[str]) -> GptImgTaskFailedError:
    """Build the error for a failed image task.

    :param final_codes: Patterns, in lower case, of codes by which another attempt would be refused again.
    """
    reason = (task.error or "").rstrip(".")
    code = task.error_code
    if code is None and re.fullmatch(r"\S+", reason):  # an error of one word is a code
        code = reason
    if code is not None and any(fnmatchcase(code.lower(), pattern) for pattern in final_codes):
        return GptImgContentPolicyError(
            f"Image task {task.task_id} was refused for what it asks for: {reason}. Its credits were refunded, and the "
            "same request would be refused again: change the prompt or the reference images",
            code=code,
        )
    return GptImgTaskFailedError(
        f"Image task {task.task_id} failed: {reason}. Its credits were refunded", code=task.error_code
    )
