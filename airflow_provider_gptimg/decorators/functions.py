# SPDX-License-Identifier: Apache-2.0
"""Checks of the function below a decorator, and of what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_gptimg.exceptions import GptImgRequestError
from airflow_provider_gptimg.verdicts import operator_arguments

__all__ = ["check_function", "refuse_none", "refuse_operator_arguments"]


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


def refuse_none(returned: Any, decorator: str, expected: str) -> None:
    """Refuse None, which a function without a return returns.

    :param decorator: The decorator's name, for the error.
    :param expected: What the function should return, for the error.
    :raises GptImgRequestError: It is None.
    """
    if returned is None:
        raise GptImgRequestError(f"the function of {decorator} returned None: return {expected} (is a return missing?)")


def refuse_operator_arguments(returned: Mapping[Any, Any], operator: type, decorator: str) -> None:
    """Refuse a dict that says for one request what is an argument of the whole task, such as `deferrable`.

    :param operator: The decorator's.
    :param decorator: Its name, for the error.
    :raises GptImgRequestError: It does.
    """
    from airflow_provider_gptimg.api.requests import SUBMIT_ARGUMENTS

    misplaced = sorted(operator_arguments(operator).intersection(returned).difference(SUBMIT_ARGUMENTS))
    if misplaced:
        name = misplaced[0]
        raise GptImgRequestError(
            f"{name!r} is an argument of {decorator}({name}=…), and the function returned it: put it there"
        )
