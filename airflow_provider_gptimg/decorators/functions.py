# SPDX-License-Identifier: Apache-2.0
"""The function below a decorator: call it, and check it and what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.airflow_compat import DecoratedOperator, context_merge, determine_kwargs
from airflow_provider_gptimg.exceptions import GptImgRequestError
from airflow_provider_gptimg.verdicts import operator_arguments

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context

__all__ = ["FunctionOperator", "refuse_none", "refuse_operator_arguments"]


class FunctionOperator(DecoratedOperator):
    """Base of an operator that does what a function returns.

    :raises GptImgRequestError: `python_callable` is an `async def`, whose call would return nothing to submit.
    """

    custom_operator_name: str

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        retry_policy: Any = None,
        **kwargs: Any,
    ) -> None:
        if inspect.iscoroutinefunction(python_callable) or inspect.isasyncgenfunction(python_callable):
            raise GptImgRequestError(
                f"{self.custom_operator_name} takes a plain function, and {python_callable.__name__!r} is an async "
                "def: write it as a def that calls asyncio.run() for what it awaits, or await in a @task of its own, "
                "and pass its result on"
            )
        super().__init__(
            python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, retry_policy=retry_policy, **kwargs
        )

    def call_function(self, context: Context) -> Any:
        """Return what the function returns, called with its arguments and what it takes of the context."""
        context_merge(context, self.op_kwargs)
        return self.python_callable(*self.op_args, **determine_kwargs(self.python_callable, self.op_args, context))


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
