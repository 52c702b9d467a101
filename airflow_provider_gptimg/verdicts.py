# SPDX-License-Identifier: Apache-2.0
"""Map errors to Airflow's behaviour: fail at once, retry, or retry later."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.airflow_compat import AirflowException, AirflowFailException
from airflow_provider_gptimg.api.texts import nearest
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgContentPolicyError,
    GptImgError,
    GptImgInsufficientCreditsError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgSubmissionUnknownError,
    GptImgTaskNotFoundError,
)

try:
    from airflow_provider_gptimg.airflow_compat import RetryDecision, RetryPolicy
except ImportError:  # before Airflow 3.3
    RetryPolicy = None

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context

__all__ = ["airflow_verdict", "is_final", "operator_arguments", "retry_policy_argument", "unknown_arguments"]

# The same attempt again would end the same.
_FINAL = (
    GptImgAuthError,
    GptImgContentPolicyError,
    GptImgInsufficientCreditsError,
    GptImgRequestError,
    GptImgTaskNotFoundError,
)


def is_final(error: GptImgError, on_unknown: str = "fail") -> bool:
    """Return whether another attempt would end the same.

    :param on_unknown: `resubmit` lets an unknown submission be retried.
    """
    return isinstance(error, _FINAL) or (isinstance(error, GptImgSubmissionUnknownError) and on_unknown != "resubmit")


@contextmanager
def airflow_verdict(on_unknown: str = "fail") -> Iterator[None]:
    """Let errors that no other attempt mends fail the task at once, whatever its `retries`.

    :param on_unknown: `resubmit` lets an unknown submission be retried.
    :raises AirflowFailException: With the error's text, and the error as its cause.
    """
    try:
        yield
    except GptImgError as error:
        if not is_final(error, on_unknown):
            raise
        raise AirflowFailException(str(error)) from error


if RetryPolicy is not None:

    class GptImgRetryPolicy(RetryPolicy):
        """Retry a rate-limited task when the API said, and all else as the task says. The operators' default."""

        def evaluate(
            self,
            exception: BaseException,
            try_number: int,
            max_tries: int,
            context: Context | None = None,
        ) -> RetryDecision:
            """Return the decision for `exception`."""
            if isinstance(exception, GptImgRateLimitError) and exception.retry_after:
                delay = timedelta(seconds=exception.retry_after)
                return RetryDecision.retry(delay=delay, reason="The API limits the rate and said when to come back")
            return RetryDecision.default()

        def serialize(self) -> dict[str, Any]:
            """Return an empty dict: the policy has no settings."""
            return {}

        @classmethod
        def deserialize(cls, data: dict[str, Any]) -> GptImgRetryPolicy:
            """Return the policy."""
            return cls()


def retry_policy_argument(retry_policy: Any) -> dict[str, Any]:
    """Return the `retry_policy` argument for `BaseOperator`: the given one, else this provider's.

    Empty before Airflow 3.3, whose operators know none.
    """
    return {} if RetryPolicy is None else {"retry_policy": retry_policy or GptImgRetryPolicy()}


def operator_arguments(operator: type, of_airflow: bool = True) -> set[str]:
    """Return the names of an operator's arguments.

    :param of_airflow: Those of Airflow's own classes too.
    """
    classes = [each for each in operator.__mro__ if of_airflow or not each.__module__.startswith("airflow.")]
    constructors = (vars(each)["__init__"] for each in classes if "__init__" in vars(each))
    return {name for each in constructors for name in inspect.signature(each).parameters}


@contextmanager
def unknown_arguments(operator: type, names: Iterable[str]) -> Iterator[None]:
    """Add to Airflow's error about an unknown argument of an operator which one was probably meant.

    :param names: Of the arguments that are passed on to Airflow.
    """
    try:
        yield
    except (TypeError, AirflowException) as error:
        known = operator_arguments(operator)
        shown = getattr(operator, "custom_operator_name", operator.__name__)
        own = operator_arguments(operator, of_airflow=False)
        for name in names:
            if name in known:
                continue
            # Airflow has many arguments: of those, only a likely one is a hint. Every task has its `task_id` already.
            if near := nearest(name, known - {"task_id"}, cutoff=0.75) or nearest(name, own):
                error.add_note(f"{shown} has no argument {name!r}: did you mean {near!r}?")
        raise
