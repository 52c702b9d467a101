# SPDX-License-Identifier: Apache-2.0
"""The transfer: waits for image tasks and mirrors their images to S3."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.airflow_compat import BaseOperator, conf
from airflow_provider_gptimg.links.gptimg import S3ObjectsLink, known_links, objects_url, task_links
from airflow_provider_gptimg.polling import DEFAULT_TIMEOUT
from airflow_provider_gptimg.verdicts import airflow_verdict, retry_policy_argument, unknown_arguments
from airflow_provider_gptimg.waiting import TaskWait, WaitMixin, refuse_airflow_ids

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_gptimg.airflow_compat import Context
    from airflow_provider_gptimg.mirroring.assembly import Mirroring
    from airflow_provider_gptimg.mirroring.destination import KeyPattern
    from airflow_provider_gptimg.mirroring.mirror import MirroredObject

__all__ = ["GptImgToS3Operator"]


class GptImgToS3Operator(WaitMixin, BaseOperator):
    """Mirror the images of image tasks to S3, and return the mirrored objects (list of dicts).

    It waits for tasks that are not finished. Each object is exactly the image, or it is not there: format, length and
    size are checked before one conditional PUT, whose checksum S3 verifies, makes it visible. A second run
    downloads nothing and says `skipped`. From a list it mirrors what it can, then it raises the first failure.

    With `outlets`, the asset event's `extra` has the objects' `uris`, their number as `images`, and the `manifest`.
    With a manifest, more than 100 `uris` are in the manifest only.

    A line of the manifest has an image's `task_id`, `index`, `prompt_sha256`, `uri`, `size` (bytes), `sha256` (hex),
    `content_type`, `width` and `height` (pixels; null where the image does not tell), `created_at` and `updated_at` (of
    the image task, as the API wrote them), `credits` (of this image), `source_url`, `skipped`, `c2pa` (whether the
    image has a C2PA manifest; null where an older release mirrored it), `model`, `generator` (this provider and its
    version), `dag_id`, `run_id`, `airflow_task_id` and `map_index`. `prompt_sha256` (hex, of the prompt in UTF-8) is
    null here: neither the API nor a finished task repeats the prompt, so only a batch knows it.

    :param gptimg_task_id: An image task's id, a finished task (dict), or a list of them, e.g. `submit.output`, also
        of a mapped submit (templated).
    :param s3_key: Pattern of the key, with `{task_id}`, `{index}` (from 0) and `{ext}` (`.png`, `.jpg` or `.webp`, as
        the image's bytes say), or a full `s3://bucket/pattern` (templated).
    :param s3_bucket: The bucket, unless `s3_key` names it (templated).
    :param aws_conn_id: AWS connection; its `endpoint_url` may name any S3-compatible store (templated).
    :param replace: Overwrite an object that is not this image; else that is an error.
    :param encrypt: Let S3 encrypt the objects at rest (SSE-S3).
    :param acl_policy: Canned ACL of the objects, e.g. `public-read`.
    :param verify: Of the connection to S3: True, False or the path of a CA bundle; None: the AWS connection's.
    :param max_image_bytes: Larger images are refused; at most 5 GiB.
    :param concurrency: Images under way at a time. Each needs 1 MiB of memory, and its size on disk.
    :param require_c2pa: Refuse images without a C2PA manifest: they are not stored. A manifest is looked for, never
        validated.
    :param extra_args: Further arguments of S3's PutObject, e.g. `{"StorageClass": "STANDARD_IA"}` (templated).
    :param manifest_key: Key of a JSON Lines object that lists the run's images, or an `s3://` URI, e.g.
        `gptimg/manifests/{{ run_id | replace(':', '') }}.jsonl`, since readers built on Hadoop refuse colons; None: no
        manifest (templated).
    :param gptimg_conn_id: Id of the connection (templated).
    :param deferrable: Wait in the triggerer instead of on a worker; if not given, as Airflow's
        `[operators] default_deferrable` says.
    :param poll_interval: Seconds between polls; None: the connection's, else 5.
    :param first_poll_after: Seconds from submission to the first poll after the one made at once; None: the
        connection's, else 39.5.
    :param timeout: Seconds from submission to completion, or a `timedelta`.
    :param retry_policy: As of any operator (Airflow 3.3 and newer).
    """

    template_fields: Sequence[str] = (
        "gptimg_task_id",
        "s3_key",
        "s3_bucket",
        "aws_conn_id",
        "extra_args",
        "manifest_key",
        "gptimg_conn_id",
    )
    ui_color = "#e0e7ff"
    operator_extra_links: Any = task_links(S3ObjectsLink())

    def __init__(
        self,
        *,
        gptimg_task_id: Any,
        s3_key: str = "gptimg/{task_id}/{index}{ext}",
        s3_bucket: str | None = None,
        aws_conn_id: str | None = "aws_default",
        replace: bool = False,
        encrypt: bool = False,
        acl_policy: str | None = None,
        verify: bool | str | None = None,
        max_image_bytes: int = 64 * 1024 * 1024,
        concurrency: int = 4,
        require_c2pa: bool = False,
        extra_args: dict[str, Any] | None = None,
        manifest_key: str | None = None,
        gptimg_conn_id: str = "gptimg_default",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta | None = None,
        first_poll_after: float | timedelta | None = None,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        retry_policy: Any = None,
        **kwargs: Any,
    ) -> None:
        with unknown_arguments(type(self), kwargs):
            super().__init__(**retry_policy_argument(retry_policy), **kwargs)
        self.gptimg_task_id = gptimg_task_id
        self.s3_key = s3_key
        self.s3_bucket = s3_bucket
        self.aws_conn_id = aws_conn_id
        self.replace = replace
        self.encrypt = encrypt
        self.acl_policy = acl_policy
        self.verify = verify
        self.max_image_bytes = max_image_bytes
        self.concurrency = concurrency
        self.require_c2pa = require_c2pa
        self.extra_args = extra_args
        self.manifest_key = manifest_key
        self.gptimg_conn_id = gptimg_conn_id
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.first_poll_after = first_poll_after
        self.timeout = timeout
        if self.has_dag():  # while its file is parsed: before a submit is paid for
            from airflow_provider_gptimg.mirroring.destination import check_before_jinja

            with airflow_verdict():
                refuse_airflow_ids(gptimg_task_id, self.dag)
                check_before_jinja(s3_key, s3_bucket)
        self._lineage: tuple[KeyPattern | None, list[MirroredObject]] = (None, [])

    def execute(self, context: Context) -> Any:
        """Return the mirrored objects, or defer until the tasks are finished.

        :raises AirflowFailException: Another attempt would fail too; its cause is the error.
        :raises GptImgError: As the table of errors in the docs says.
        """
        return self._mirror_when_finished(context)

    def execute_complete(self, context: Context, event: Any = None, deadline: float | None = None) -> Any:
        """Return the mirrored objects after the trigger has fired.

        :param deadline: Unix seconds; None: counted from submission.
        :raises GptImgError: As :meth:`execute`.
        """
        return self._mirror_when_finished(context, event, deadline)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage:
        """Return the source and target datasets for the OpenLineage provider, after a failed attempt too."""
        from airflow_provider_gptimg.mirroring.lineage import openlineage_datasets

        return openlineage_datasets(*self._lineage)

    def _mirror_when_finished(self, context: Context, event: Any = None, deadline: float | None = None) -> Any:
        from airflow_provider_gptimg.mirroring.assembly import Mirroring

        with airflow_verdict():
            mirroring = Mirroring.assemble(self, context, self.log)
            wait = self.wait_for(
                context, self.gptimg_task_id, event=event, deadline=deadline, before_wait=mirroring.check_buckets
            )
            return [mirrored.as_dict() for mirrored in self._mirror(wait, mirroring, context)]

    def _mirror(self, wait: TaskWait, mirroring: Mirroring, context: Context) -> list[MirroredObject]:
        """Mirror the completed tasks, then raise the first failure, if any."""
        from airflow_provider_gptimg.api.tasks import ImageTask
        from airflow_provider_gptimg.exceptions import GptImgError
        from airflow_provider_gptimg.mirroring.lineage import describe_outlets, report_to_collector

        outcomes = wait.outcomes
        tasks = {task_id: task for task_id, task in outcomes.items() if isinstance(task, ImageTask)}
        pattern, manifest = mirroring.destination.pattern, mirroring.manifest
        if manifest:
            manifest.claim()
        with mirroring.mirror(wait.hook) as mirror:
            copied = mirror.copy(tasks.values(), claimed=wait.claimed)
        objects = [mirrored for result in copied.values() if isinstance(result, list) for mirrored in result]
        self._lineage = pattern, objects
        self.operator_extra_links = known_links(S3ObjectsLink, objects_url(mirroring.s3, objects))
        report_to_collector(mirroring.s3, objects)
        failures: dict[str, Any] = {
            task_id: error for task_id, error in {**outcomes, **copied}.items() if isinstance(error, GptImgError)
        }
        wait.raise_failures({**outcomes, **failures})
        if manifest:
            manifest.write(objects, tasks)
        describe_outlets(
            context.get("outlet_events"), self.outlets, pattern, objects, manifest.uri if manifest else None
        )
        new = [mirrored for mirrored in objects if not mirrored.skipped]
        self.log.info(
            "Mirrored %d images, %d bytes, to s3://%s; %d were there already",
            len(new),
            sum(mirrored.size for mirrored in new),
            pattern.bucket,
            len(objects) - len(new),
        )
        return objects
