# SPDX-License-Identifier: Apache-2.0
"""Build a mirror from an operator's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError
from airflow_provider_gptimg.mirroring.destination import Destination
from airflow_provider_gptimg.mirroring.listing import LOOKS_AT_A_TIME
from airflow_provider_gptimg.mirroring.manifest import Manifest
from airflow_provider_gptimg.mirroring.mirror import Mirror
from airflow_provider_gptimg.mirroring.s3_errors import bucket_refusal, unreadable
from airflow_provider_gptimg.mirroring.store import SINGLE_PUT_LIMIT, S3Store, s3_client

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

__all__ = ["Mirroring"]


class Arguments(Protocol):
    """The arguments of the transfer as attributes, as the operator has them."""

    s3_key: str
    s3_bucket: str | None
    aws_conn_id: str | None
    replace: bool
    encrypt: bool
    acl_policy: str | None
    verify: bool | str | None
    max_image_bytes: int
    concurrency: int
    require_c2pa: bool
    extra_args: dict[str, Any] | None
    manifest_key: str | None


@dataclass(frozen=True)
class Mirroring:
    """Destination, store and manifest of a mirror. Make one with :meth:`assemble`.

    :param s3: The Airflow hook behind `store`.
    :param manifest: None: no manifest is written.
    """

    destination: Destination
    s3: S3Hook
    store: S3Store
    manifest: Manifest | None
    dag_id: str | None
    arguments: Arguments

    @classmethod
    def assemble(cls, arguments: Arguments, context: Mapping[str, Any], log: Any) -> Mirroring:
        """Check an operator's arguments, and build the mirror. Nothing is sent.

        :param context: Of the task instance.
        :raises GptImgRequestError: An argument is wrong; it names the argument, its value and the way out.
        """
        size, concurrency = arguments.max_image_bytes, arguments.concurrency
        if type(size) is not int or not 0 < size <= SINGLE_PUT_LIMIT:
            raise GptImgRequestError(
                f"max_image_bytes={size!r:.80} is not a whole number from 1 to {SINGLE_PUT_LIMIT} (5 GiB), which is "
                "what S3 takes at once"
            )
        if type(concurrency) is not int or concurrency < 1:
            raise GptImgRequestError(f"concurrency={concurrency!r:.80} is not a whole number of at least 1")
        for name in ("replace", "encrypt", "require_c2pa"):
            if not isinstance(value := getattr(arguments, name), bool):
                raise GptImgRequestError(f"{name}={value!r:.80} is neither True nor False; it is not templated")
        verify = arguments.verify
        if not (
            verify is None or isinstance(verify, bool) or (isinstance(verify, str) and verify and Path(verify).exists())
        ):
            raise GptImgRequestError(
                f"verify={verify!r:.200} is not True, False or the path of a CA bundle on this worker"
            )
        destination = Destination.check(
            s3_key=arguments.s3_key,
            s3_bucket=arguments.s3_bucket,
            manifest_key=arguments.manifest_key,
            encrypt=arguments.encrypt,
            acl_policy=arguments.acl_policy,
            extra_args=arguments.extra_args,
        )
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        s3 = S3Hook(aws_conn_id=arguments.aws_conn_id, verify=arguments.verify)
        store = S3Store(s3_client(s3, max(concurrency, LOOKS_AT_A_TIME)), destination.put_arguments, log)
        pattern = destination.pattern
        store.check_put(pattern.bucket, pattern.key("task", 0, ".png"), pattern.argument)
        manifest = None
        if destination.manifest:
            store.check_put(*destination.manifest, f"manifest_key={arguments.manifest_key!r:.200}")
            manifest = Manifest(store, *destination.manifest, context, replace=arguments.replace)
        ti = context.get("ti")
        return cls(destination, s3, store, manifest, getattr(ti, "dag_id", None), arguments)

    def read_text(self, bucket: str, key: str, argument: str) -> str:
        """Return the text of an object that an argument names.

        :param argument: The argument, with its value.
        :raises GptImgError: As :meth:`.S3Store.read_text`; it names the argument and `aws_conn_id`.
        """
        try:
            return self.store.read_text(bucket, key)
        except GptImgError as error:
            has_connection = bool(self.s3.conn_config)
            raise unreadable(error, argument, self.arguments.aws_conn_id, has_connection=has_connection) from error

    def check_buckets(self) -> None:
        """Refuse a bucket that does not exist, or that these credentials cannot use.

        :raises GptImgRequestError: No object can be written there.
        """
        pattern = self.destination.pattern
        self._check_bucket(pattern.bucket, pattern.folder, pattern.argument)
        if self.destination.manifest:
            self._check_bucket(*self.destination.manifest, f"manifest_key={self.arguments.manifest_key!r:.200}")

    def _check_bucket(self, bucket: str, prefix: str, argument: str) -> None:
        try:
            self.store.sizes(bucket, prefix)
        except GptImgError as error:
            if refusal := bucket_refusal(error, argument):
                raise refusal from error

    def mirror(self, hook: GptImgHook) -> Mirror:
        """Return the mirror itself, a context manager.

        :param hook: Hook of the API that made the images.
        """
        return Mirror(
            hook,
            self.store,
            self.destination.pattern,
            replace=self.arguments.replace,
            max_image_bytes=self.arguments.max_image_bytes,
            concurrency=self.arguments.concurrency,
            dag_id=self.dag_id,
            require_c2pa=self.arguments.require_c2pa,
            log=self.store.log,
        )
