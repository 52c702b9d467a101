# SPDX-License-Identifier: Apache-2.0
"""Operators that submit: one returns the task id at once, one waits for the images too."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_gptimg.airflow_compat import BaseOperator, conf
from airflow_provider_gptimg.links.gptimg import FirstImageLink, first_image_url, known_links, task_links
from airflow_provider_gptimg.polling import DEFAULT_TIMEOUT
from airflow_provider_gptimg.verdicts import airflow_verdict, retry_policy_argument, unknown_arguments
from airflow_provider_gptimg.waiting import WaitMixin, read_task_id

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook
    from airflow_provider_gptimg.journal.submission import Accepted, Submission

__all__ = ["GptImgGenerateOperator", "GptImgSubmitOperator"]


class GptImgSubmitOperator(BaseOperator):
    """Submit a request for images, and return the `task_id` of its image task at once.

    A submit costs 2 credits an image and is paid for once: a retry, or a clear after a failure, takes up the image
    task that an earlier attempt submitted. Clearing a success means "make new ones".

    :param prompt: What the images should show (templated).
    :param aspect_ratio: `W:H`, e.g. `16:9`; None leaves it to the API (templated).
    :param n: Number of images, 1 to 4; also as text (templated).
    :param reference_images: Up to 4 of `https://…`, `data:image/…` and `s3://bucket/key` (templated).
    :param extra_body: Further fields of the request's body, passed on untouched (templated).
    :param max_credits: Refuse, before anything is sent, what would cost more; also as text; None: no limit
        (templated).
    :param on_unknown_submission: What to do if a submit was sent and its outcome is unknown: `fail`, for a person
        to decide, or `resubmit` at the next attempt, which may pay twice. None: the connection's, else `fail`.
    :param gptimg_conn_id: Id of the connection (templated).
    :param aws_conn_id: AWS connection that presigns `s3://` references (templated).
    :param retry_policy: As of any operator (Airflow 3.3 and newer); None: a rate-limited attempt is repeated when
        the API said, all else as the task says.
    """

    template_fields: Sequence[str] = (
        "prompt",
        "aspect_ratio",
        "n",
        "reference_images",
        "extra_body",
        "max_credits",
        "gptimg_conn_id",
        "aws_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"extra_body": "json"}
    ui_color = "#f3e8ff"
    operator_extra_links: Any = task_links()
    reuse: bool | timedelta = False
    generation: str | None = None
    _submission: Submission | None = None
    """Of this process, for :meth:`on_kill`."""
    _is_stopped = False
    """True if the task was stopped before it had a submission."""

    def __init__(
        self,
        *,
        prompt: str,
        aspect_ratio: str | None = None,
        n: int | str = 1,
        reference_images: Sequence[str] | None = None,
        extra_body: dict[str, Any] | None = None,
        max_credits: int | str | None = None,
        on_unknown_submission: str | None = None,
        gptimg_conn_id: str = "gptimg_default",
        aws_conn_id: str | None = "aws_default",
        retry_policy: Any = None,
        **kwargs: Any,
    ) -> None:
        with unknown_arguments(type(self), kwargs):
            super().__init__(**retry_policy_argument(retry_policy), **kwargs)
        self.prompt = prompt
        self.aspect_ratio = aspect_ratio
        self.n = n
        self.reference_images = reference_images
        self.extra_body = extra_body
        self.max_credits = max_credits
        self.on_unknown_submission = on_unknown_submission
        self.gptimg_conn_id = gptimg_conn_id
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> Any:
        """Return the id of the image task.

        :raises AirflowFailException: Another attempt would fail in the same way; `__cause__` is the error.
        :raises GptImgError: As the table of errors in the docs says.
        """
        submission, accepted = self._obtain(context)
        submission.deliver(accepted.name, accepted.task.task_id)
        return accepted.task.task_id

    def on_kill(self) -> None:
        """Send nothing more, and log what was sent and what is paid for."""
        standing = "this process has sent nothing. What was sent before is paid for"
        if self._submission is None:
            self._is_stopped = True
        else:
            standing = self._submission.stop()
        self.log.warning("The task is stopped: %s. Clear the Airflow task to take up what is paid for", standing)

    def _hook(self) -> GptImgHook:
        from airflow_provider_gptimg.hooks.gptimg import GptImgHook

        return GptImgHook(self.gptimg_conn_id)

    def _obtain(self, context: Context) -> tuple[Submission, Accepted]:
        from airflow_provider_gptimg.api.requests import SUBMIT_ARGUMENTS, ImageRequest, check_max_credits
        from airflow_provider_gptimg.journal.submission import Submission

        hook = self._hook()
        with airflow_verdict():
            hook.settings.refuse_key(*(getattr(self, name) for name in (*SUBMIT_ARGUMENTS, "max_credits")))
            request = ImageRequest.check(
                self.prompt,
                aspect_ratio=self.aspect_ratio,
                n=self.n,
                reference_images=self.reference_images,
                extra_body=self.extra_body,
            )
            check_max_credits(self.max_credits, request.credits)
            on_unknown = hook.settings.on_unknown(self.on_unknown_submission)
            self._check_wait(hook)
            self._submission = submission = Submission.of(context, self.log)
        if self._is_stopped:
            submission.stop()
        with airflow_verdict(on_unknown):
            accepted = submission.obtain(
                hook, request, on_unknown, self.aws_conn_id, reuse=self.reuse, generation=self.generation
            )
        if ti := context.get("ti"):
            ti.xcom_push(key="credits", value=accepted.charged)
            # Rendered fields are kept for the latest runs only, and @task.gptimg has no such field.
            ti.xcom_push(key="prompt", value=self.prompt)
        return submission, accepted

    def _check_wait(self, hook: GptImgHook) -> None:
        """Check the arguments of the wait before anything is paid for."""


class GptImgGenerateOperator(GptImgSubmitOperator, WaitMixin):
    """Submit a request for images, wait for it, and return the finished task (dict).

    A time-out leaves the image task alive; the next attempt waits on for it. All arguments of
    :class:`GptImgSubmitOperator`, and:

    :param reuse: True, or a `timedelta` of the greatest age: if a task has bought images for the same request before,
        and they are still there, return those, with `credits` 0 and `reused_from`. It needs `[gptimg] journal` in S3.
    :param generation: Any text; only images of the same generation are reused (templated).

    :param deferrable: Wait in the triggerer instead of on a worker; if not given, as Airflow's
        `[operators] default_deferrable` says.
    :param poll_interval: Seconds between polls, 5 to 10 as the vendor asks; None: the connection's, else 5.
    :param first_poll_after: Seconds from submission to the first poll after the one made at once; None: the
        connection's, else 39.5.
    :param timeout: Seconds from submission to completion, or a `timedelta`.
    """

    template_fields: Sequence[str] = (*GptImgSubmitOperator.template_fields, "generation")
    operator_extra_links: Any = task_links(FirstImageLink())

    def __init__(
        self,
        *,
        reuse: bool | timedelta = False,
        generation: str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta | None = None,
        first_poll_after: float | timedelta | None = None,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        retry_policy: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.reuse = reuse
        self.generation = generation
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.first_poll_after = first_poll_after
        self.timeout = timeout

    def execute(self, context: Context) -> Any:
        """Return the finished task, or defer until it is finished.

        :raises AirflowFailException: Another attempt would fail in the same way; `__cause__` is the error.
        :raises GptImgError: As the table of errors in the docs says.
        """
        self.operator_extra_links = ()
        _, accepted = self._obtain(context)
        return self._wait(
            context,
            accepted.task.task_id,
            accepted.submitted_at,
            submission=accepted.name,
            images=accepted.images,
            reused_from=accepted.reused_from,
        )

    def execute_complete(
        self,
        context: Context,
        event: Any,
        *,
        task_id: str | None = None,
        submitted_at: float | None = None,
        deadline: float | None = None,
        submission: str | None = None,
        images: int | None = None,
        reused_from: dict[str, Any] | None = None,
    ) -> Any:
        """Return the finished task after the trigger has fired.

        :param task_id: Of the image task; None where `dag.test()` has dropped what was deferred with, which the
            event then says.
        :param submitted_at: Unix seconds; None: as the API says.
        :param deadline: Unix seconds; None: counted from submission.
        :param submission: Its name in the journal; None: that is looked up.
        :param images: Number of images that were asked for; None: unknown.
        :param reused_from: Who has paid for them, where another task has; else None.
        :raises GptImgError: As :meth:`execute`.
        """
        return self._wait(
            context,
            task_id or read_task_id(event),
            submitted_at,
            deadline=deadline,
            submission=submission,
            images=images,
            reused_from=reused_from,
            event=event,
        )

    def _check_wait(self, hook: GptImgHook) -> None:
        self.check_wait(hook)

    def _wait(
        self,
        context: Context,
        task_id: str,
        submitted_at: float | None,
        *,
        deadline: float | None = None,
        submission: str | None,
        images: int | None,
        reused_from: dict[str, Any] | None,
        event: Any = None,
    ) -> Any:
        from airflow_provider_gptimg.journal.submission import Submission

        with airflow_verdict():
            self._submission = own = self._submission or Submission.of(context, self.log)
        with airflow_verdict(), own.known_task(task_id, is_own=not reused_from):
            wait = self.wait_for(
                context,
                task_id,
                event=event,
                deadline=deadline,
                submitted_at=submitted_at,
                resume_with={
                    "task_id": task_id,
                    "submitted_at": submitted_at,
                    "submission": submission,
                    "images": images,
                    **({"reused_from": reused_from} if reused_from else {}),
                },
            )
            task = wait.results(images, submits=True)[0]
        own.deliver(submission, task_id)
        result = task.as_dict()
        if reused_from:
            result |= {"credits": 0, "reused_from": reused_from}
        self.operator_extra_links = known_links(FirstImageLink, first_image_url(result))
        return result
