# SPDX-License-Identifier: Apache-2.0
"""The hook: an Airflow connection, and the calls of the gpt-image-2 API over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import uuid4

import httpx

from airflow_provider_gptimg.airflow_compat import BaseHook
from airflow_provider_gptimg.api.answers import Answer, NoAnswer, judge_probe
from airflow_provider_gptimg.api.calls import Call, poll_call, probe_call, submit_call
from airflow_provider_gptimg.api.protocol import MAX_ATTEMPTS, Sleep, converse
from airflow_provider_gptimg.api.requests import SUBMIT_ARGUMENTS, ImageRequest, check_on_unknown_submission
from airflow_provider_gptimg.api.tasks import ImageTask, check_task_id
from airflow_provider_gptimg.api.texts import nearest
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgError,
    GptImgSubmissionUnknownError,
)
from airflow_provider_gptimg.hooks.connection import ConnectionSettings, name_connection
from airflow_provider_gptimg.hooks.extras import extra_hint
from airflow_provider_gptimg.hooks.http import exchange, sync_client
from airflow_provider_gptimg.hooks.poller import Poller
from airflow_provider_gptimg.hooks.presign import Presigner
from airflow_provider_gptimg.polling import DEFAULT_TIMEOUT, Progress, Wait, check_timeout

__all__ = ["GptImgHook"]


@dataclass(frozen=True)
class PreparedSubmit:
    """A submit, ready to be sent.

    :param credits: What it costs when accepted.
    :param secrets: Presigned URLs, which no log may show.
    """

    call: Call = field(repr=False)
    credits: int
    secrets: tuple[str, ...] = field(repr=False)


class GptImgHook(BaseHook):
    """Call the gpt-image-2 API over an Airflow connection of type `gptimg`.

    The key of the connection is sent in the Authorization header to the connection's own host, and nowhere else.

    :param gptimg_conn_id: Id of the connection.
    """

    conn_name_attr = "gptimg_conn_id"
    default_conn_name = "gptimg_default"
    conn_type = "gptimg"
    hook_name = "gpt-image-2 (gptimg)"

    def __init__(self, gptimg_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gptimg_conn_id = gptimg_conn_id
        self._presigner = Presigner()
        self._seen_fields: set[str] = set()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return how Airflow 2's connection form looks; Airflow 3 reads it from the provider's metadata."""
        from airflow_provider_gptimg import get_provider_info

        behaviour: dict[str, Any] = get_provider_info()["connection-types"][0]["ui-field-behaviour"]
        return {name.replace("-", "_"): value for name, value in behaviour.items()}

    @cached_property
    def settings(self) -> ConnectionSettings:
        """Settings of the connection, checked.

        :raises GptImgRequestError: There is none, or a field of it is wrong, e.g. an unsafe host.
        :raises GptImgAuthError: It has no key.
        """
        return ConnectionSettings.load(self.gptimg_conn_id, self.get_connection)

    def get_conn(self) -> httpx.Client:
        """Return an HTTP client that is set up for the connection, without the key."""
        return sync_client(self.settings)

    def submit(
        self,
        prompt: str,
        *,
        aspect_ratio: str | None = None,
        n: int = 1,
        reference_images: Sequence[str] | None = None,
        extra_body: dict[str, Any] | None = None,
        on_unknown_submission: str | None = None,
        aws_conn_id: str | None = "aws_default",
    ) -> ImageTask:
        """Submit a request, which costs 2 credits an image, and return the accepted image task.

        The request is repeated only while it certainly was not accepted. Called from a task of your own, a retry
        of that task submits again; `GptImgSubmitOperator` remembers its submission.

        :param prompt: What the images should show.
        :param aspect_ratio: `W:H`; None leaves it to the API.
        :param n: Number of images, 1 to 4.
        :param reference_images: Up to 4 of `https://…`, `data:image/…` and `s3://bucket/key`.
        :param extra_body: Further fields of the request's body.
        :param on_unknown_submission: Checked, and of no effect here: only an operator can act on it.
        :param aws_conn_id: AWS connection that presigns `s3://` references.
        :raises GptImgRequestError: Refused before sending, or by the API.
        :raises GptImgSubmissionUnknownError: Credits may have been charged; nobody here can know.
        :raises GptImgError: As the table of errors in the docs says.
        """
        self.settings.refuse_key(prompt, aspect_ratio, n, reference_images, extra_body, on_unknown_submission)
        check_on_unknown_submission(on_unknown_submission)
        request = ImageRequest.check(
            prompt, aspect_ratio=aspect_ratio, n=n, reference_images=reference_images, extra_body=extra_body
        )
        return self._submit_prepared(self._prepare_submit(request, aws_conn_id))

    def _prepare_submit(self, request: ImageRequest, aws_conn_id: str | None) -> PreparedSubmit:
        """Prepare the submit of `request`; refuse here all that can be refused without the API.

        :param aws_conn_id: AWS connection that presigns `s3://` references.
        :raises GptImgRequestError: The connection or the request is wrong.
        :raises GptImgAuthError: The connection has no key.
        """
        references_field = self.settings.reference_images_field
        self.settings.refuse_key(submit_call(request, references_field).body)
        for name in set(request.extra_body or ()) - self._seen_fields:
            self._seen_fields.add(name)
            if near := nearest(name, SUBMIT_ARGUMENTS):
                self.log.warning(
                    "extra_body sets %r, which goes to the API as it is; did you mean the argument %r?", name, near
                )
        presigned = self._presigner.presign(request, aws_conn_id)
        return PreparedSubmit(
            call=submit_call(presigned, references_field),
            credits=request.credits,
            secrets=tuple(set(presigned.reference_images) - set(request.reference_images)),
        )

    def _submit_prepared(
        self,
        submit: PreparedSubmit,
        max_attempts: int = MAX_ATTEMPTS,
        pause: Callable[[float], None] | None = None,
        before_connect: Callable[[], None] | None = None,
        before_send: Callable[[], None] | None = None,
    ) -> ImageTask:
        """Send a prepared submit, and return the accepted image task.

        :param max_attempts: How often to send it while it certainly is not accepted.
        :param pause: Lets so many seconds pass between two of them; None: sleeps.
        :param before_connect: Called each time before the connection is made; what it raises is raised.
        :param before_send: Likewise, right before the first byte.
        :raises GptImgError: As :meth:`submit`.
        """
        started = datetime.now(UTC)

        def begin() -> None:
            nonlocal started
            if before_connect is not None:
                before_connect()
            started = datetime.now(UTC)

        try:
            return self._converse(
                submit.call,
                secrets=submit.secrets,
                max_attempts=max_attempts,
                pause=pause,
                before_connect=begin,
                before_send=before_send,
            )
        except GptImgSubmissionUnknownError as error:
            error.add_hint(
                f"Whether it was accepted cannot be known: up to {submit.credits} credits may have "
                f"been charged at about {started:%Y-%m-%d %H:%M:%S} UTC; the vendor's transaction log shows whether a "
                f"charge of {submit.credits} credits is listed there"
            )
            raise

    def get_task(self, task_id: str) -> ImageTask:
        """Return what the API says of an image task now.

        :raises GptImgTaskNotFoundError: The API does not know it, or it is another user's.
        :raises GptImgError: As the table of errors in the docs says.
        """
        self.settings.refuse_key(task_id)
        return self._converse(poll_call(task_id))

    async def aget_task(self, task_id: str) -> ImageTask:
        """Return what the API says of an image task now, without blocking the event loop.

        :raises GptImgError: As :meth:`get_task`.
        """
        # Imported here, since workers do without: aiohttp takes 85 ms.
        from airflow_provider_gptimg.hooks.shared_client import shared_client

        async with shared_client(self.gptimg_conn_id) as client:
            return await client.get_task(task_id)

    def wait(
        self,
        task_id: str,
        *,
        poll_interval: float | None = None,
        first_poll_after: float | None = None,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
    ) -> ImageTask:
        """Wait until an image task is completed, and return it.

        :param poll_interval: Seconds between polls; None: the connection's, else 5.
        :param first_poll_after: Seconds from submission to the first poll after the one made at once; None: the
            connection's, else 39.5.
        :param timeout: Seconds from submission to completion, or a `timedelta`.
        :raises GptImgRequestError: An argument is not a number of seconds.
        :raises GptImgContentPolicyError: The generation was refused for what the prompt asks.
        :raises GptImgTaskFailedError: The generation failed.
        :raises GptImgTimeoutError: It did not finish within `timeout`.
        :raises GptImgError: As :meth:`get_task`.
        """
        self.settings.refuse_key(task_id)
        timeout = check_timeout(timeout)
        schedule = self.settings.schedule(poll_interval, first_poll_after)
        final_codes = self.settings.final_failure_codes
        wait = Wait(schedule, progress=Progress(self.log.info), final_failure_codes=final_codes)
        poller = Poller(self)
        poller.start(wait, [check_task_id(task_id)], timeout)
        poller.finish(wait)
        outcome = wait.outcome(task_id)
        if isinstance(outcome, GptImgError):
            raise outcome
        return outcome

    def test_connection(self) -> tuple[bool, str]:
        """Return whether the API accepts the connection's key, and in words what is wrong if not. Costs no credits."""
        try:
            settings = self.settings
            accepted, words = judge_probe(_probe(settings))
            if accepted and settings.has_path:
                # Below a wrong path the API says 404 to any key, as it does to a good one that asks for no task.
                of_wrong_key = _probe(replace(settings, api_key=uuid4().hex))
                is_same, why = judge_probe(of_wrong_key)
                if is_same:
                    return False, (
                        f"The host answers a wrong key just the same, so nothing is known of this one: check the "
                        f"path of {settings.base_url}"
                    )
                if not (isinstance(of_wrong_key, Answer) and of_wrong_key.status in (401, 403)):
                    return False, f"Whether the host looks at the key is not known. {why}"
            for name in settings.unknown_extras:
                words += f"; {name!r} in the extra has no effect: {extra_hint(name)}"
            return accepted, words
        except (GptImgError, OSError) as error:
            # Airflow tests what is in the form under a random id.
            return False, str(error).replace(f"Connection {self.gptimg_conn_id!r}", "The connection")

    def _converse(
        self,
        call: Call,
        *,
        client: httpx.Client | None = None,
        secrets: tuple[str, ...] = (),
        max_attempts: int = MAX_ATTEMPTS,
        pause: Callable[[float], None] | None = None,
        before_connect: Callable[[], None] | None = None,
        before_send: Callable[[], None] | None = None,
    ) -> ImageTask:
        try:
            return self._drive(call, client, secrets, max_attempts, pause, before_connect, before_send)
        except GptImgError as error:
            # Of a submit only the API's own refusal: behind a gateway's page it may have been accepted.
            rejected = error.http_status in (401, 403) and not call.is_submit
            if not (rejected or isinstance(error, GptImgAuthError)):
                raise
            # The key may have been rotated since the connection was read.
            try:
                fresh = ConnectionSettings.load(self.gptimg_conn_id, self.get_connection)
            except Exception as failure:  # which must not end a wait that a gateway's page does not end
                self.log.warning("Connection %r cannot be read again: %s", self.gptimg_conn_id, type(failure).__name__)
                raise error from None
            if fresh == self.settings:
                raise
            self.settings = fresh
            return self._drive(call, client, secrets, max_attempts, pause, before_connect, before_send)

    def _drive(
        self,
        call: Call,
        client: httpx.Client | None,
        secrets: tuple[str, ...],
        max_attempts: int,
        pause: Callable[[float], None] | None,
        before_connect: Callable[[], None] | None,
        before_send: Callable[[], None] | None,
    ) -> ImageTask:
        if client is None:
            with sync_client(self.settings) as client:
                return self._drive(call, client, secrets, max_attempts, pause, before_connect, before_send)
        self.settings.refuse_key(call.task_id, call.body)
        conversation = converse(call, max_attempts=max_attempts)
        outcome: Answer | NoAnswer | None = None
        try:
            step = next(conversation)
            while True:
                if isinstance(step, Sleep):
                    self.log.info("gptimg: trying again in %.0f s", step.seconds)
                    (pause or time.sleep)(step.seconds)
                    outcome = None
                else:
                    if before_connect is not None:
                        before_connect()
                    outcome = exchange(client, self.settings, step, secrets, before_send)
                step = conversation.send(outcome)
        except GptImgAuthError as error:
            raise name_connection(error, self.gptimg_conn_id) from None
        except StopIteration as done:
            task: ImageTask = done.value
            return task


def _probe(settings: ConnectionSettings) -> Answer | NoAnswer:
    # On a connection of its own: a host may close one after its answer, and a call that is sent just then is lost.
    with sync_client(settings) as client:
        return exchange(client, settings, probe_call())
