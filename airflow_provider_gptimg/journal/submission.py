# SPDX-License-Identifier: Apache-2.0
"""One request of one task instance, submitted once however often the task is repeated."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.api.refusals import failure_of
from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import FAILED, PROCESSING, ImageTask
from airflow_provider_gptimg.exceptions import (
    GptImgContentPolicyError,
    GptImgError,
    GptImgSubmissionUnknownError,
    GptImgTaskNotFoundError,
    GptImgTimeoutError,
)
from airflow_provider_gptimg.journal.attempt import Attempt, NotSentError
from airflow_provider_gptimg.journal.entries import (
    REUSED,
    Decision,
    Plan,
    Submitted,
    decide,
    unknown_submission,
    ways_on,
)
from airflow_provider_gptimg.journal.reuse import Bought, Found, Lease, LeaseOverError, Purchases, Reuse
from airflow_provider_gptimg.journal.spending import note_refunds
from airflow_provider_gptimg.polling import DEFAULT_TIMEOUT, ends_wait, may_have_ended
from airflow_provider_gptimg.telemetry import count, span

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

__all__ = ["Accepted", "Submission", "still_there"]


@dataclass(frozen=True)
class Accepted:
    """An image task that is paid for.

    :param task: As the API described it last.
    :param submitted_at: Unix seconds.
    :param charged: Credits that this attempt spent: none for a task taken up again.
    :param name: Of the submission in the journal; empty for one of another task.
    :param images: Number of images that were asked for.
    :param reused_from: Who has paid for it, where another task has; else None.
    """

    task: ImageTask
    submitted_at: float
    charged: int
    name: str
    images: int
    reused_from: dict[str, Any] | None = None


class Submission:
    """One request of one task instance, submitted once however often the task is repeated.

    :param attempt: This attempt.
    :param log: A logger.
    """

    def __init__(self, attempt: Attempt, log: Any) -> None:
        self._attempt = attempt
        self._log = log
        self._open: Submitted | None = None
        self._standing = "nothing was sent, and nothing is paid for"

    @classmethod
    def of(cls, context: Context, log: Any) -> Submission:
        """Return the submission of the task instance that `context` belongs to.

        :raises GptImgRequestError: The setting `[gptimg] journal` is not understood.
        """
        return cls(Attempt.of(context, log), log)

    def obtain(
        self,
        hook: GptImgHook,
        request: ImageRequest,
        on_unknown: str,
        aws_conn_id: str | None,
        reuse: Any = False,
        generation: Any = None,
    ) -> Accepted:
        """Return the image task of this request: the one that is paid for already, or else a new one.

        :param on_unknown: `fail` or `resubmit`: what to do if an earlier attempt's outcome is unknown.
        :param aws_conn_id: AWS connection that presigns `s3://` references.
        :param reuse: True or a `timedelta` of the greatest age: one that another task has paid for will do.
        :param generation: Text that is part of the request for those who reuse it.
        :raises GptImgContentPolicyError: An earlier attempt submitted it, and what it asks for was refused.
        :raises GptImgSubmissionUnknownError: Credits may have been charged for a task that nobody knows.
        :raises GptImgError: As :meth:`GptImgHook.submit`; or the journal cannot be read or written.
        """
        fingerprint = request.fingerprint(hook.gptimg_conn_id)
        wish = Reuse.check(reuse, generation, self._attempt)
        purchases = wish.purchases(self._attempt, request)
        if not self._attempt.store.lasts:
            self._log.warning(
                "Nothing outlasts this attempt of what it submits (no journal, see [gptimg] journal): if it dies, the "
                "next one submits and pays again"
            )
        known = self._attempt.begin()
        while True:
            plan = decide(known, fingerprint, self._attempt.max_tries, on_unknown)
            self._tell(plan)
            if plan.decision is Decision.STOP:
                count("submissions", outcome="unknown")
                raise unknown_submission(plan.unknown, self._attempt.store.way_to_drop)
            if plan.decision is not Decision.TAKE_UP:
                lease = None
                if purchases is not None and wish.is_wanted:
                    found = purchases.obtain(lambda bought: still_there(hook, bought), self._attempt.pause, self._log)
                    if isinstance(found, Found):
                        return self._reuse(found, request, fingerprint, hook.gptimg_conn_id)
                    lease = found
                try:
                    accepted = self._submit(hook, request, fingerprint, known, plan, on_unknown, aws_conn_id, lease)
                    _publish(purchases, accepted, self._log)
                    return accepted
                except LeaseOverError:
                    known = self._attempt.read()
                    continue
                finally:
                    if lease is not None:
                        lease.release()
            paid = plan.paid[0]
            task = self._take_up(hook, paid)
            if task.status != FAILED:
                self._standing = f"image task {task.task_id} is paid for"
                accepted = Accepted(task, paid.at, charged=0, name=paid.name, images=request.n)
                _publish(purchases, accepted, self._log)  # the attempt that submitted it may have died before
                return accepted
            failure = failure_of(task, hook.settings.final_failure_codes)
            if isinstance(failure, GptImgContentPolicyError) and paid.max_tries >= self._attempt.max_tries:
                note_refunds([task.task_id], self._log)
                raise failure  # it would be refused again; only after a clear a person asks to try it
            self._log.info("Image task %s failed (%s) and was refunded", task.task_id, task.error)
            known[known.index(paid)] = self._attempt.refund(paid)

    def stop(self) -> str:
        """Begin no POST from now on; return what was sent and what is paid for, for the log of a stopped task."""
        self._attempt.is_stopped = True
        return self._standing

    def deliver(self, name: str | None, task_id: str) -> None:
        """After Airflow has recorded the success, note that a later clear submits again.

        :param name: Of the submission; empty: another task's; None, as a release 0.1 that deferred: look for that of
            `task_id`.
        """
        if name is None:
            known = [each.name for each in self._attempt.read() if each.task_id == task_id]
            name = known[-1] if known else None
        if name:
            self._attempt.deliver(name)

    @contextmanager
    def known_task(self, task_id: str | None = None, *, is_own: bool = True) -> Iterator[None]:
        """If the API no longer knows the task, or it may have ended, add to the error how to go on.

        :param task_id: Of the image task that is being waited for.
        :param is_own: It was submitted by this task instance; else another one has paid for it.
        """
        if task_id is not None:
            self._standing = f"image task {task_id} is paid for" + ("" if is_own else " by another task")
        try:
            yield
        except (GptImgTaskNotFoundError, GptImgTimeoutError) as error:
            is_lost = isinstance(error, GptImgTaskNotFoundError) or may_have_ended(error.last_status)
            if is_lost and not is_own:
                error.add_hint(
                    "It was submitted by another task, and reused. Clear this task to look for images again; set "
                    "reuse=False to submit"
                )
            elif is_lost and self._attempt.store.lasts:
                error.add_hint(
                    "It was submitted by this task, with another user's key perhaps. To submit again, "
                    f"{self._attempt.store.way_to_drop} and clear the task"
                )
            raise

    def _reuse(self, found: Found[ImageTask], request: ImageRequest, fingerprint: str, conn_id: str) -> Accepted:
        bought, attempt = found.bought, self._attempt
        reused_from = bought.as_dict()
        self._log.info("Reusing image task %s, which costs nothing: %s", bought.task_id, reused_from)
        self._standing = f"this task has paid for nothing: it reuses image task {bought.task_id}"
        saved = Submitted(REUSED, fingerprint, request.credits, time.time(), attempt.max_tries, conn_id=conn_id)
        # Once for all attempts; a cleared task saves again.
        attempt.store.put(f"{REUSED}.{attempt.max_tries}", {**saved.intent(), "from": reused_from})
        return Accepted(found.there, bought.at, charged=0, name="", images=request.n, reused_from=reused_from)

    def _tell(self, plan: Plan) -> None:
        if plan.decision is Decision.STOP:
            return
        self._log.info(plan.decision.value)
        if plan.decision is Decision.TAKE_UP:
            for sent in plan.unknown:
                self._log.warning("It is taken up, and %s", sent.lost)
        elif plan.accepted:
            self._log.info("The earlier image task is %s", plan.accepted[0].task_id)

    def _take_up(self, hook: GptImgHook, paid: Submitted) -> ImageTask:
        assert paid.task_id is not None  # noqa: S101 - as decided
        with self.known_task(paid.task_id):
            try:
                return hook.get_task(paid.task_id)
            except GptImgTaskNotFoundError as error:
                if ends_wait(error, time.time(), submitted_at=paid.at):
                    raise
                return ImageTask(paid.task_id, PROCESSING)  # so new that the API may not know it yet

    def _submit(
        self,
        hook: GptImgHook,
        request: ImageRequest,
        fingerprint: str,
        known: Sequence[Submitted],
        plan: Plan,
        on_unknown: str,
        aws_conn_id: str | None,
        lease: Lease | None = None,
    ) -> Accepted:
        prepared = hook._prepare_submit(request, aws_conn_id)
        attempt = self._attempt
        # The same attempt may have submitted before, where Airflow has begun it twice.
        posts = max((each.post for each in known if each.attempt == attempt.number), default=0)

        def before_connect() -> None:
            nonlocal posts
            self._refused("refused")
            if lease is not None:
                lease.check()
            posts += 1
            submission = Submitted(
                f"{attempt.number}.{posts}",
                fingerprint,
                request.credits,
                time.time(),
                attempt.max_tries,
                tuple(lost.name for lost in plan.unknown),
                conn_id=hook.gptimg_conn_id,
            )
            attempt.intend(submission)
            self._open = submission
            self._standing = (
                f"a submit of {request.credits} credits is under way, and if it is accepted, a line below names its "
                "image task, which is paid for then"
            )

        def before_send() -> None:
            assert self._open is not None  # noqa: S101 - its intent is written
            attempt.look_again(self._open)  # to make the connection may have taken its time

        def pause(seconds: float) -> None:
            self._refused("refused, to be sent again after a pause")
            attempt.pause(seconds)

        try:
            with span("submit", credits=request.credits):
                task = hook._submit_prepared(
                    prepared, pause=pause, before_connect=before_connect, before_send=before_send
                )
        except NotSentError as error:
            self._log.warning("%s", error)
            raise
        except GptImgSubmissionUnknownError as error:
            count("submissions", outcome="unknown")
            way_on = (
                "The next attempt submits again" if on_unknown == "resubmit" else ways_on(attempt.store.way_to_drop)
            )
            error.add_hint(way_on)
            raise
        except GptImgError as error:
            count("submissions", outcome="refused")
            self._refused(error.code or type(error).__name__)
            raise
        assert self._open is not None  # noqa: S101 - it was sent
        submission, self._open = self._open, None
        # Logged first: if the next line fails, this one tells a person what was paid for.
        self._log.info("Submitted image task %s: %d credits", task.task_id, request.credits)
        self._standing = f"image task {task.task_id} is paid for ({request.credits} credits)"
        try:
            attempt.settle(submission, task_id=task.task_id)
        except BaseException as end:
            # Once more: it is paid for. Airflow 2 may have ended the task in the midst of the first try.
            attempt.settle(submission, task_id=task.task_id)
            if not isinstance(end, Exception):
                raise
        count("submissions", outcome="accepted")
        count("credits", request.credits, outcome="charged")
        return Accepted(task, submission.at, charged=request.credits, name=submission.name, images=request.n)

    def _refused(self, why: str) -> None:
        if self._open is not None:
            submission, self._open = self._open, None
            self._standing = "the API has refused what was sent, so nothing is paid for"
            self._attempt.settle(submission, refused=why)


def still_there(hook: GptImgHook, bought: Bought) -> ImageTask | None:
    """Return an image task that the API still knows, and that is completed or may be soon; else None.

    :raises GptImgError: The API does not say.
    """
    try:
        task = hook.get_task(bought.task_id)
    except GptImgTaskNotFoundError as error:
        if ends_wait(error, time.time(), submitted_at=bought.at):
            return None
        task = ImageTask(bought.task_id, PROCESSING)  # so new that the API may not know it yet
    if task.status == FAILED or (not task.is_final and time.time() - bought.at > DEFAULT_TIMEOUT):
        return None
    return task


def _publish(purchases: Purchases | None, accepted: Accepted, log: Any) -> None:
    if purchases is not None:
        purchases.publish(accepted.task.task_id, accepted.submitted_at, accepted.task.created_at, log)
