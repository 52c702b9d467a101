# SPDX-License-Identifier: Apache-2.0
"""The rules of one call to the API: what to send again, when, and when to give up.

A conversation is a generator: it says what to do next (send this, sleep so long), is told what came
of it, and in the end returns the image task or raises. The drivers in `hooks`, one with sockets and
one with asyncio, know no rule.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

from airflow_provider_gptimg.api.answers import Answer, NoAnswer, decode, unanswered
from airflow_provider_gptimg.api.calls import Call
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.exceptions import GptImgProtocolError, GptImgRateLimitError, GptImgServerError

__all__ = ["MAX_ATTEMPTS", "MAX_WAIT", "Sleep", "backoff", "converse"]

MAX_ATTEMPTS = 5
MAX_WAIT = 60.0
"""Seconds one conversation may sleep in all: it holds a worker meanwhile."""


@dataclass(frozen=True)
class Sleep:
    """Do nothing for so many seconds."""

    seconds: float


Conversation: TypeAlias = Generator[Call | Sleep, Answer | NoAnswer | None, ImageTask]


def converse(
    call: Call,
    *,
    max_attempts: int = MAX_ATTEMPTS,
    max_wait: float = MAX_WAIT,
    uniform: Callable[[float, float], float] = random.uniform,
) -> Conversation:
    """Say what to do next until there is a result.

    A read is repeated whenever that may help. A submit is repeated only when it certainly was not accepted:
    no connection, 429, or an error in the API's own envelope.

    :param max_attempts: How often the call is sent at the most.
    :param max_wait: Seconds to sleep in all at the most; a `Retry-After` beyond that is raised at once.
    :raises GptImgError: As the table of errors in the docs says.
    """
    waited = 0.0
    attempt = 0
    while True:
        attempt += 1
        outcome = yield call
        try:
            if isinstance(outcome, Answer):
                return decode(call, outcome)
            raise unanswered(call, outcome)
        except (GptImgRateLimitError, GptImgServerError, GptImgProtocolError) as error:
            pause = backoff(attempt, getattr(error, "retry_after", None), uniform)
            waited += pause
            if attempt >= max_attempts or waited > max_wait:
                raise
        yield Sleep(pause)


def backoff(
    failures: int, retry_after: float | None, uniform: Callable[[float, float], float] = random.uniform
) -> float:
    """Return the seconds to wait after so many failures in a row.

    Doubles from 1 s to 30 s, jittered by half; never less than what the API asked for.
    """
    if retry_after is not None:
        return retry_after + uniform(0.0, 1.0)
    ceiling = min(30.0, 2.0 ** min(failures - 1, 5))
    return uniform(ceiling / 2, ceiling)
