# SPDX-License-Identifier: Apache-2.0
"""Entries of the journal for each POST, and the decision table over them; pure.

Each POST has an *intent*, written before it, and an *outcome*, written after it: accepted or certainly refused. An
intent without an outcome is an unknown submission.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from airflow_provider_gptimg.exceptions import GptImgSubmissionUnknownError

__all__ = [
    "REUSED",
    "Decision",
    "Plan",
    "Submitted",
    "decide",
    "read_first_release",
    "unknown_of",
    "unknown_submission",
    "ways_on",
]

REUSED = "reused"
"""Entries and facts that note a reuse are named so."""


@dataclass(frozen=True)
class Submitted:
    """One POST, as the journal knows it.

    :param name: Number of the attempt and of its POST, e.g. `2.1`.
    :param fingerprint: Of the request and the connection's id; empty where it cannot be read.
    :param credits: What it costs when accepted.
    :param at: When it was sent, in Unix seconds.
    :param max_tries: The task instance's `max_tries` then. Airflow raises it when a person clears the task, and leaves
        it alone over automatic retries.
    :param passes_over: Names of the unknown submissions that it replaced, as `resubmit` allowed.
    :param task_id: Of its image task; None: it was not accepted, or nobody knows.
    :param refused: Why it certainly was not accepted, or was not sent.
    :param delivered: `max_tries` of the success that returned it; None: no success has.
    :param refunded: Its generation failed.
    :param conn_id: Id of the connection, for spending; empty where an earlier release wrote it down.
    """

    name: str
    fingerprint: str
    credits: int
    at: float
    max_tries: int
    passes_over: tuple[str, ...] = ()
    task_id: str | None = None
    refused: str | None = None
    delivered: int | None = None
    refunded: bool = False
    conn_id: str = ""

    @property
    def attempt(self) -> int:
        """Number of the attempt that sent it; 0 where release 0.1 wrote it down."""
        return int(self.name.partition(".")[0])

    @property
    def post(self) -> int:
        """Number of the POST within its attempt."""
        return int(self.name.partition(".")[2])

    @property
    def sender(self) -> str:
        """The attempt that sent it, for people."""
        return f"attempt {self.attempt}" if self.attempt else "an earlier attempt"

    @property
    def lost(self) -> str:
        """A warning for the log, if its outcome is unknown and another image task is taken up."""
        return (
            f"another submission, of {self.sender} at {self.sent}, has no known outcome: up to {self.credits} credits "
            "may have been charged for it as well"
        )

    @property
    def is_reused(self) -> bool:
        """True if another task has paid for it."""
        return self.name.partition(".")[2].startswith(REUSED)

    @property
    def is_unknown(self) -> bool:
        """True if its outcome is unknown."""
        return self.task_id is None and self.refused is None

    @property
    def sent(self) -> str:
        """When it was sent, for people."""
        if not self.at:
            return "an unknown time"
        return f"{datetime.fromtimestamp(self.at, UTC):%Y-%m-%d %H:%M:%S} UTC"

    def intent(self) -> dict[str, Any]:
        """Return what is written before the POST."""
        fact = {"fingerprint": self.fingerprint, "credits": self.credits, "at": self.at, "max_tries": self.max_tries}
        conn_id = {"conn_id": self.conn_id} if self.conn_id else {}
        return fact | conn_id | ({"passes_over": list(self.passes_over)} if self.passes_over else {})

    def outcome(self) -> dict[str, Any]:
        """Return what is written after it."""
        return {"task_id": self.task_id} if self.task_id else {"refused": self.refused}

    @classmethod
    def read(cls, name: str, intent: Any, outcome: Any = None, end: Any = None) -> Submitted:
        """Return what the entries of a POST say; what cannot be read counts as an unknown submission.

        :param end: What became of its image task: delivered or refunded.
        """
        intent, outcome, end = (fact if isinstance(fact, Mapping) else {} for fact in (intent, outcome, end))
        fingerprint, task_id, refused = intent.get("fingerprint"), outcome.get("task_id"), outcome.get("refused")
        passed_over, delivered = intent.get("passes_over"), end.get("delivered")
        readable = isinstance(fingerprint, str)
        return cls(
            name=name,
            fingerprint=fingerprint if isinstance(fingerprint, str) else "",
            credits=_number(intent.get("credits")),
            at=float(_number(intent.get("at"))),
            max_tries=int(_number(intent.get("max_tries"))),
            passes_over=tuple(map(str, passed_over)) if isinstance(passed_over, list) else (),
            task_id=task_id if readable and isinstance(task_id, str) and task_id else None,
            refused=refused if isinstance(refused, str) else None,
            delivered=delivered if isinstance(delivered, int) else None,
            refunded=end.get("refunded") is True,
            conn_id=str(intent.get("conn_id") or ""),
        )


def read_first_release(record: Any) -> Submitted:
    """Return the submission that a record of release 0.1 describes."""
    fact = record if isinstance(record, Mapping) else {}
    intent = {**fact, "at": fact.get("submitted_at")}
    return Submitted.read("0.1", intent, fact, {"delivered": fact.get("delivered_max_tries")})


def _number(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and 0 <= value < 1e11 else 0


class Decision(Enum):
    """Decision of an attempt; the value is its log line."""

    SUBMIT = "Submitting: no earlier submission can be taken up"
    SUBMIT_CHANGED = "The request was changed since the earlier submission: submitting again, which costs credits again"
    SUBMIT_CLEARED = "The earlier images were delivered and the task was cleared since: submitting again"
    SUBMIT_UNKNOWN = "The outcome of an earlier submission is unknown: submitting again, as on_unknown_submission says"
    TAKE_UP = "Taking up the image task of an earlier submission, which is paid for: no new submission"
    STOP = "The outcome of an earlier submission is unknown: a person has to decide"


@dataclass(frozen=True)
class Plan:
    """A decision, with the submissions that it is based on.

    :param paid: Those to take up, the latest first.
    :param unknown: Submissions with an unknown outcome.
    :param accepted: All that were accepted and not refunded, the latest first.
    """

    decision: Decision
    paid: Sequence[Submitted] = field(default=())
    unknown: Sequence[Submitted] = field(default=())
    accepted: Sequence[Submitted] = field(default=())


def unknown_of(submissions: Iterable[Submitted]) -> list[Submitted]:
    """Return submissions with an unknown outcome, unless a later accepted one replaced them on purpose."""
    submissions = list(submissions)
    replaced = {name for known in submissions if known.task_id for name in known.passes_over}
    return [known for known in submissions if known.is_unknown and known.name not in replaced]


def decide(submissions: Iterable[Submitted], fingerprint: str, max_tries: int, on_unknown: str) -> Plan:
    """Return what an attempt does.

    :param submissions: In the order of their attempts and POSTs.
    :param fingerprint: Of the request as it is now.
    :param max_tries: The task instance's `max_tries` now.
    :param on_unknown: `fail` or `resubmit`.
    """
    submissions = list(submissions)
    accepted = [known for known in reversed(submissions) if known.task_id and not known.refunded]
    unknown = unknown_of(submissions)

    def is_paid(known: Submitted) -> bool:
        was_cleared = known.delivered is not None and max_tries > known.delivered
        return known.fingerprint == fingerprint and not was_cleared

    if paid := [known for known in accepted if is_paid(known)]:
        return Plan(Decision.TAKE_UP, paid, unknown, accepted)
    if unknown:
        decision = Decision.SUBMIT_UNKNOWN if on_unknown == "resubmit" else Decision.STOP
    elif not accepted:
        decision = Decision.SUBMIT
    elif accepted[0].fingerprint == fingerprint:
        decision = Decision.SUBMIT_CLEARED
    else:
        decision = Decision.SUBMIT_CHANGED
    return Plan(decision, (), unknown, accepted)


def unknown_submission(unknown: Sequence[Submitted], way_to_drop: str) -> GptImgSubmissionUnknownError:
    """Return the error for submissions whose outcome is unknown; it names the first, and how to go on.

    :param way_to_drop: How a person makes the provider forget them.
    """
    lost, credits = unknown[0], sum(each.credits for each in unknown)
    if all(each.fingerprint for each in unknown):
        what = f"{lost.sender} sent a submit at {lost.sent} and left no outcome: up to {credits} credits"
    else:
        what = f"{lost.sender} sent a submit perhaps, and what the journal has of it cannot be read: credits"
    return GptImgSubmissionUnknownError(
        f"{what[0].upper()}{what[1:]} may have been charged. Look in the log of {lost.sender} for 'Submitted image "
        "task': that line names the image task, which is paid for. If that attempt still runs and notes its outcome, "
        f"clearing the task takes the images up. {ways_on(way_to_drop)}"
    )


def ways_on(way_to_drop: str) -> str:
    """Return what a person can do about an unknown outcome.

    :param way_to_drop: As of :func:`unknown_submission`.
    """
    return (
        "To go on, look into the vendor's transaction log, and if nothing was charged, or the images may be paid for "
        "again: either set on_unknown_submission='resubmit' on the task or in the connection's extra and clear the "
        f"task, or {way_to_drop} and clear the task"
    )
