# SPDX-License-Identifier: Apache-2.0
"""The rate at which an attempt may submit; small enough to travel with a deferral."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_provider_gptimg.api.protocol import MAX_ATTEMPTS, MAX_WAIT, backoff
from airflow_provider_gptimg.exceptions import GptImgError, from_dict

__all__ = ["Pace"]


@dataclass
class Pace:
    """When the next submit may be sent, if any.

    :param started_at: When the attempt began, in Unix seconds.
    :param not_before: When the API wants the next submit at the earliest, in Unix seconds.
    :param refusals: Rounds in a row in which the API accepted nothing.
    :param refusal: The most recent refusal, as :meth:`GptImgError.as_dict`.
    :param stopped: The error that ended submission in this attempt, likewise.
    """

    started_at: float = field(default_factory=time.time)
    not_before: float = 0.0
    refusals: int = 0
    refusal: dict[str, Any] | None = None
    stopped: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @property
    def pause(self) -> float:
        """Seconds until the next submit may be sent."""
        return max(0.0, self.not_before - time.time())

    @property
    def is_short(self) -> bool:
        """True if that is soon enough to wait for it and do nothing else."""
        return self.pause <= MAX_WAIT and (self.refusals < MAX_ATTEMPTS or not self.pause)

    def slow_down(self, refused: Sequence[GptImgError], accepted: bool) -> None:
        """Slow down after a round of submits as the API asks, and more while it accepts nothing.

        :param refused: Refusals of submits that the API may accept later.
        :param accepted: Whether any was accepted.
        """
        self.refusals = self.refusals + 1 if refused and not accepted else 0
        if not refused:
            return
        self.refusal = refused[0].as_dict()
        wanted = max((getattr(error, "retry_after", None) or 0.0 for error in refused), default=0.0)
        self.not_before = time.time() + backoff(max(1, self.refusals), wanted or None)
        if self.refusals >= MAX_ATTEMPTS:
            self.not_before = max(self.not_before, time.time() + MAX_WAIT)

    def stop(self, error: GptImgError | None = None) -> GptImgError | None:
        """Submit no more in this attempt; return the error that ended it.

        :param error: None: what the API refused the last submit with.
        """
        if self.stopped is None:
            self.stopped = error.as_dict() if error else self.refusal
        return self.stopped_by

    @property
    def stopped_by(self) -> GptImgError | None:
        """The error that ended submission in this attempt."""
        return from_dict(self.stopped) if self.stopped else None
