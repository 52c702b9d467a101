# SPDX-License-Identifier: Apache-2.0
"""Checks of the function below a decorator."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from airflow_provider_gptimg.exceptions import GptImgRequestError

__all__ = ["check_function"]


def check_function(python_callable: Callable[..., Any], decorator: str) -> Callable[..., Any]:
    """Return `python_callable` if a task can call it.

    :param decorator: The decorator's name, for the error.
    :raises GptImgRequestError: It is an `async def`, whose call would return nothing to submit.
    """
    if inspect.iscoroutinefunction(python_callable) or inspect.isasyncgenfunction(python_callable):
        raise GptImgRequestError(
            f"{decorator} takes a plain function, and {python_callable.__name__!r} is an async def: write it as a def "
            "that calls asyncio.run() for what it awaits, or await in a @task of its own, and pass its result on"
        )
    return python_callable
