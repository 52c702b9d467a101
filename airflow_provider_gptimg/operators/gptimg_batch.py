# SPDX-License-Identifier: Apache-2.0
"""The batch operator: many requests in one Airflow task, each paid for once, their images in S3."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.links.gptimg import S3ObjectsLink, known_links, objects_url
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator
from airflow_provider_gptimg.verdicts import airflow_verdict

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context
    from airflow_provider_gptimg.batch.in_flight import Limits
    from airflow_provider_gptimg.batch.pace import Pace
    from airflow_provider_gptimg.batch.report import Report
    from airflow_provider_gptimg.batch.requests import BatchRequest
    from airflow_provider_gptimg.batch.run import Batch
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook
    from airflow_provider_gptimg.journal.attempt import Attempt
    from airflow_provider_gptimg.mirroring.assembly import Mirroring
    from airflow_provider_gptimg.mirroring.destination import KeyPattern
    from airflow_provider_gptimg.mirroring.manifest import Manifest

__all__ = ["GptImgBatchToS3Operator"]


class GptImgBatchToS3Operator(GptImgToS3Operator):
    """Submit many requests in one task, mirror their images to S3 as they finish, and return a summary (dict).

    Each request is paid for once: a retry, or a clear after a failure, does only what is missing. A kill leaves at most
    8 submits with an unknown outcome, which are not repeated silently. All requests are checked before the first is
    sent. A low balance ends submission; what was accepted is delivered.

    The summary counts requests (`mirrored`, `failed`, `unknown`, `not_submitted`), `images`, `bytes` and `credits`
    (charged and not refunded), names the `manifest` and the first `errors`, and is less than 4 KiB.

    All arguments of :class:`.GptImgToS3Operator` but `gptimg_task_id`, where `timeout` counts for each image task, and:

    :param requests: A list of prompts, or of dicts of submit arguments; or the `s3://` URI of such a list: CSV with a
        header of argument names if it ends in `.csv`, else JSON Lines (templated; the contents of the object are not).
    :param max_in_flight: Image tasks under way at a time.
    :param max_credits: Refuse, before anything is sent, a batch whose requests would cost more in all; also as text;
        None: no limit (templated). Clearing a success pays again, up to the same limit.
    :param on_partial_failure: `fail`, after everything else is done, or `succeed` if at least one request is mirrored.
    :param on_unknown_submission: What to do if a submit was sent and its outcome is unknown: `fail`, for a person
        to decide, or `resubmit` at the next attempt, which may pay twice. None: the connection's, else `fail`. A
        request may say its own.
    :param reuse: True, or a `timedelta` of the greatest age: do not pay for requests that a task has bought images for
        before, if these are still there. It needs `[gptimg] journal` in S3.
    :param generation: Any text; only images of the same generation are reused (templated).
    """

    template_fields: Sequence[str] = (
        "requests",
        "max_credits",
        "generation",
        *(name for name in GptImgToS3Operator.template_fields if name != "gptimg_task_id"),
    )
    ui_color = "#fce7f3"

    def __init__(
        self,
        *,
        requests: Any,
        max_in_flight: int = 20,
        max_credits: int | str | None = None,
        on_partial_failure: str = "fail",
        on_unknown_submission: str | None = None,
        reuse: bool | timedelta = False,
        generation: str | None = None,
        retry_policy: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(gptimg_task_id=None, retry_policy=retry_policy, **kwargs)
        self.requests = requests
        self.max_in_flight = max_in_flight
        self.max_credits = max_credits
        self.on_partial_failure = on_partial_failure
        self.on_unknown_submission = on_unknown_submission
        self.reuse = reuse
        self.generation = generation
        self._attempt: Attempt | None = None
        self._is_stopped = False
        self._batch: Batch | None = None

    def execute(self, context: Context) -> Any:
        """Return the summary, or defer until there is more to do.

        :raises AirflowFailException: Another attempt would fail in the same way; `__cause__` is the error.
        :raises GptImgError: As the table of errors in the docs says.
        """
        from airflow_provider_gptimg.batch.pace import Pace

        return self._go_on(context, Pace(), is_first_leg=True)

    def execute_complete(  # type: ignore[override]
        self, context: Context, event: Any = None, *, pace: dict[str, Any] | None = None, digest: str | None = None
    ) -> Any:
        """Go on after the trigger has fired.

        :param pace: Of the leg that deferred; None, as `dag.test()` has it: a new one.
        :param digest: Of the requests of that leg; None: that is not known.
        :raises GptImgError: As :meth:`execute`.
        """
        from airflow_provider_gptimg.batch.pace import Pace
        from airflow_provider_gptimg.waiting import read_event

        if read_event(event) == "error":
            self.deferrable = False  # the trigger cannot wait, so this worker does
        return self._go_on(context, Pace(**(pace or {})), digest)

    def on_kill(self) -> None:
        """Send nothing more, and log what is paid for."""
        self._is_stopped = True
        if self._attempt:
            self._attempt.is_stopped = True
        self.log.warning("This batch sends nothing more. %s", self._batch.told() if self._batch else "")

    def _go_on(self, context: Context, pace: Pace, digest: str | None = None, *, is_first_leg: bool = False) -> Any:
        from airflow_provider_gptimg.batch.ledger import Ledger
        from airflow_provider_gptimg.batch.run import Batch
        from airflow_provider_gptimg.exceptions import GptImgError
        from airflow_provider_gptimg.hooks.gptimg import GptImgHook
        from airflow_provider_gptimg.journal.attempt import Attempt
        from airflow_provider_gptimg.journal.reuse import Reuse
        from airflow_provider_gptimg.mirroring.assembly import Mirroring

        with airflow_verdict():
            self._attempt = attempt = Attempt.of(context, self.log)
            attempt.is_stopped = self._is_stopped
            self._check_arguments()
            reuse = Reuse.check(self.reuse, self.generation, attempt)
            mirroring = Mirroring.assemble(self, context, self.log)
            destination, store, manifest = mirroring.destination, mirroring.store, mirroring.manifest
            hook = GptImgHook(self.gptimg_conn_id)
            limits = self._limits(hook, pace)
            try:
                requests = self._read_requests(hook, mirroring)
                _check_keys(destination.pattern, requests)
            except GptImgError as error:
                if is_first_leg:
                    error.add_hint("Nothing was sent")
                raise
            if digest is None:  # a changed list costs nothing, and must not keep what is paid for from its place
                self._check_cost(requests)
            if is_first_leg:
                self._keep_requests(context)
                mirroring.check_buckets()
                if manifest:
                    manifest.claim()
                attempt.announce()
            ledger = Ledger.of(attempt, hook.gptimg_conn_id, context)
            with mirroring.mirror(hook) as mirror:
                self._batch = batch = Batch(
                    hook, attempt, ledger, requests, limits, pace, mirror, destination.pattern, self.log, reuse
                )
                if is_first_leg:
                    batch.introduce()
                    batch.recover(store)
                batch.stop_if_changed(digest)
                self._see_through(batch, digest or batch.digest)
            report = batch.report()
        with airflow_verdict(report.on_unknown):
            summary = self._conclude(context, report, destination.pattern, manifest, mirroring.s3)
            if ledger.lasts:
                attempt.once_recorded(ledger.deliver)
            return summary

    def _keep_requests(self, context: Context) -> None:
        """Keep the checked requests for the next leg, where that cannot render them again."""

    def _check_arguments(self) -> None:
        from airflow_provider_gptimg.exceptions import GptImgRequestError

        if not isinstance(self.max_in_flight, int) or self.max_in_flight < 1:
            raise GptImgRequestError(f"max_in_flight={self.max_in_flight!r} is not a whole number of at least 1")
        if self.on_partial_failure not in ("fail", "succeed"):
            raise GptImgRequestError(f"on_partial_failure={self.on_partial_failure!r} is neither 'fail' nor 'succeed'")

    def _limits(self, hook: GptImgHook, pace: Pace) -> Limits:
        from airflow_provider_gptimg.batch.in_flight import Limits
        from airflow_provider_gptimg.polling import check_timeout

        # On a worker Airflow itself ends the task.
        ends_in = self.execution_timeout.total_seconds() if self.execution_timeout and self.deferrable else None
        return Limits(
            max_in_flight=self.max_in_flight,
            on_unknown=hook.settings.on_unknown(self.on_unknown_submission),
            timeout=check_timeout(self.timeout),
            aws_conn_id=self.aws_conn_id,
            poll_interval=self.poll_interval,
            first_poll_after=self.first_poll_after,
            ends_at=None if ends_in is None else pace.started_at + ends_in,
        )

    def _read_requests(self, hook: GptImgHook, mirroring: Mirroring) -> list[BatchRequest]:
        from airflow_provider_gptimg.batch.requests import read_requests

        def read_object(bucket: str, key: str) -> str:
            return mirroring.read_text(bucket, key, f"requests={self.requests!r:.200}")

        settings = hook.settings
        return read_requests(self.requests, read_object, settings.reference_images_field, settings.refuse_key)

    def _check_cost(self, requests: list[BatchRequest]) -> None:
        from airflow_provider_gptimg.api.requests import check_max_credits

        cost = sum(asked.request.credits for asked in requests)
        check_max_credits(self.max_credits, cost, f"this batch of {len(requests)} requests")

    def _see_through(self, batch: Batch, digest: str) -> None:
        """Work and wait until nothing is left to do; where possible, defer, and continue in another leg.

        :param digest: Of the requests that the attempt began with.
        """
        from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger
        from airflow_provider_gptimg.waiting import HOLDS_A_WORKER

        batch.look()
        told = self.deferrable
        while batch.work():
            if self.deferrable and batch.can_defer:
                self.operator_extra_links = ()
                self.defer(
                    trigger=GptImgTaskTrigger(**batch.trigger_arguments()),
                    method_name="execute_complete",
                    kwargs={"pace": batch.pace.as_dict(), "digest": digest},
                )
            if not told:
                self.log.info(HOLDS_A_WORKER)
                told = True
            batch.hold()

    def _conclude(
        self,
        context: Context,
        report: Report,
        pattern: KeyPattern,
        manifest: Manifest | None,
        s3: Any,
    ) -> dict[str, Any]:
        """Publish the results, also of a batch that failed; then end as `on_partial_failure` says."""
        from airflow_provider_gptimg.batch.report import mirrored_objects
        from airflow_provider_gptimg.exceptions import GptImgError
        from airflow_provider_gptimg.mirroring.lineage import describe_outlets, report_to_collector

        objects, tasks = mirrored_objects(report.mirrored)
        if ti := context.get("ti"):
            ti.xcom_push(key="credits", value=report.charged)
        self._lineage = pattern, objects
        self.operator_extra_links: Any = known_links(S3ObjectsLink, objects_url(s3, objects))
        report_to_collector(s3, objects)
        summary = report.summary(manifest.uri if manifest else None)
        self.log.info("Batch: %s", summary)
        error = None if report.mirrored and self.on_partial_failure == "succeed" else report.error()
        if error is None and not report.is_complete:
            self.log.warning("%s", report.told_of_success())
        if manifest:
            try:
                manifest.claim()  # once more: what the first leg saw, this one does not know
                prompts = {entry.task_id: entry.request.prompt for entry in report.mirrored}
                reused = {entry.task_id for entry in report.mirrored if entry.current and entry.current.is_reused}
                manifest.write(objects, tasks, prompts, reused)
            except GptImgError as refusal:
                if error is None:
                    raise
                self.log.error("%s", refusal)  # the task fails for something else
        if error:
            raise error
        describe_outlets(context.get("outlet_events"), self.outlets, pattern, objects, summary["manifest"])
        return summary


def _check_keys(pattern: KeyPattern, requests: list[BatchRequest]) -> None:
    """Refuse a pattern that gives two images one key, before any image is paid for."""
    from airflow_provider_gptimg.exceptions import GptImgRequestError

    def same(first: tuple[str, int], second: tuple[str, int]) -> bool:
        return pattern.key(*first, ".png") == pattern.key(*second, ".png")

    several = any(asked.request.n > 1 for asked in requests)
    if (len(requests) > 1 and same(("a", 0), ("b", 0))) or (several and same(("a", 0), ("a", 1))):
        raise GptImgRequestError(
            f"s3_key={pattern.pattern!r} may give several images of the batch the same key: put the whole {{task_id}} "
            "and {index} into it"
        )
