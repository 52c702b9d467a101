# SPDX-License-Identifier: Apache-2.0
"""Talk to AWS S3, and to stores that implement less of its API or word it differently."""

from __future__ import annotations

import base64
import gzip
import hashlib
import random
import time
import zlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from airflow_provider_gptimg import __version__
from airflow_provider_gptimg.api.protocol import backoff
from airflow_provider_gptimg.api.texts import nearest
from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError
from airflow_provider_gptimg.mirroring.marks import metadata_size
from airflow_provider_gptimg.mirroring.s3_errors import (
    is_about_checksums,
    is_worth_repeating,
    read_error,
    refuses_to_list,
    status_of,
)

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

__all__ = ["SINGLE_PUT_LIMIT", "Content", "S3Store", "md5_of", "read_etag", "s3_client"]

SINGLE_PUT_LIMIT = 5 * 1024**3
"""Most bytes that S3 accepts in one PUT."""

_PUT_ATTEMPTS = 4
_BLOCK = 1024 * 1024
_LARGEST_TEXT = 64 * 1024 * 1024
_GZIP = b"\x1f\x8b"

_NO_REASON = (
    ". S3 gives no reason for this, since the answer to HEAD has no body: check the AWS connection (an expired token, "
    "another region, a wrong endpoint_url), and whether the object needs SSECustomerKey in extra_args"
)

# Arguments of PutObject that LIST and HEAD need too.
_ALSO_OF_LIST = {"ExpectedBucketOwner", "RequestPayer"}
_ALSO_OF_HEAD = _ALSO_OF_LIST | {"SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5"}


@dataclass(frozen=True)
class Content:
    """The content of an object to write.

    :param file: Read from its start.
    :param size: Bytes.
    """

    file: IO[bytes]
    size: int
    digest: bytes
    content_type: str
    metadata: Mapping[str, str]


def s3_client(hook: S3Hook, connections: int, **limits: Any) -> Any:
    """Return a boto3 S3 client for the hook's connection, with a pool for many requests at a time.

    The hook's own `get_client_type` takes three times as long, since it walks the stack to name its caller to AWS.

    :param connections: Requests at a time.
    :param limits: Of botocore's `Config`, e.g. `read_timeout`.
    """
    config = hook.config
    ours = Config(
        **limits,
        max_pool_connections=max(connections, config.max_pool_connections),
        user_agent_extra=f"{config.user_agent_extra or ''} airflow-provider-gptimg/{__version__}".strip(),
    )
    return hook.get_session(region_name=hook.region_name).client(
        "s3",
        endpoint_url=hook.conn_config.get_service_endpoint_url("s3"),
        config=config.merge(ours),
        verify=hook.verify,
    )


class S3Store:
    """An S3 client that reads a store's answers as a mirror needs them. Several threads may use it.

    :param client: A boto3 S3 client.
    :param put_arguments: Further arguments of every PutObject, e.g. `ServerSideEncryption`.
    """

    def __init__(self, client: Any, put_arguments: Mapping[str, Any], log: Any) -> None:
        self._client = client
        self._put_arguments = put_arguments
        self._list_arguments = {name: put_arguments[name] for name in _ALSO_OF_LIST & put_arguments.keys()}
        self._head_arguments = {name: put_arguments[name] for name in _ALSO_OF_HEAD & put_arguments.keys()}
        self.log = log
        self._may_list = True
        self._warned = False
        settings = client.meta.config
        # Botocore below 1.36 has neither setting.
        self._sends_checksums = getattr(settings, "request_checksum_calculation", None) != "when_required"
        self._asks_for_checksums = getattr(settings, "response_checksum_validation", None) != "when_required"

    @property
    def metadata_size(self) -> int:
        """Bytes of metadata that every object gets from `extra_args`."""
        return metadata_size(self._put_arguments.get("Metadata", {}))

    @property
    def is_aws(self) -> bool:
        """True if this is AWS itself."""
        host = urlsplit(self._client.meta.endpoint_url).hostname or ""
        return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    def sizes(self, bucket: str, prefix: str) -> dict[str, int] | None:
        """Return the size in bytes of each object whose key starts with `prefix`.

        None if listing is not allowed or not implemented, or if there are more than a thousand.

        :raises GptImgError: S3 does not answer, there is no such bucket, or the credentials are wrong.
        """
        if not self._may_list:
            return None
        try:
            answer = self._client.list_objects_v2(Bucket=bucket, Prefix=prefix, **self._list_arguments)
        except (ClientError, BotoCoreError) as error:
            if refuses_to_list(error):
                self._may_list = False
                return None
            raise read_error(error, f"S3 does not list s3://{bucket}/{prefix}") from error
        if answer.get("IsTruncated"):
            return None
        return {found["Key"]: found["Size"] for found in answer.get("Contents", ())}

    def head(self, bucket: str, key: str, *, with_checksum: bool = True) -> dict[str, Any] | None:
        """Return the answer to HEAD; None if the object does not exist, or if we may not see it.

        :param with_checksum: Ask for its checksum. With a KMS key this needs another permission.
        :raises GptImgError: S3 failed, or refused.
        """
        asks = with_checksum and self._asks_for_checksums
        arguments = {**self._head_arguments, **({"ChecksumMode": "ENABLED"} if asks else {})}
        try:
            answer: dict[str, Any] = self._client.head_object(Bucket=bucket, Key=key, **arguments)
        except (ClientError, BotoCoreError) as error:
            # Without permission to list, S3 answers 403 for a missing object.
            if status_of(error) in (403, 404):
                return None
            what = f"S3 does not tell whether s3://{bucket}/{key} is there"
            if status_of(error) == 400:
                # An expired token looks like this: another attempt may have a fresh one.
                raise GptImgError(f"{what}: {error}{_NO_REASON}") from error
            raise read_error(error, what) from error
        return answer

    def read_text(self, bucket: str, key: str) -> str:
        """Return the text of an object in UTF-8, compressed by gzip or not.

        :raises GptImgRequestError: It is missing, may not be read, is larger than 64 MiB, or holds something else.
        :raises GptImgError: S3 failed.
        """
        uri = f"s3://{bucket}/{key}"
        try:
            with closing(self._client.get_object(Bucket=bucket, Key=key, **self._list_arguments)["Body"]) as body:
                data: bytes = body.read(_LARGEST_TEXT + 1)
            if data.startswith(_GZIP):
                with gzip.GzipFile(fileobj=BytesIO(data)) as file:
                    data = file.read(_LARGEST_TEXT + 1)
            if len(data) > _LARGEST_TEXT:
                raise GptImgRequestError(f"{uri} is larger than 64 MiB: split it into several batches")
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise GptImgRequestError(
                f"line {line} of {uri} is not text in UTF-8: save the file as UTF-8 (Excel: 'CSV UTF-8')"
            ) from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise GptImgRequestError(f"{uri} is not a whole gzip file: {error}") from error
        except (ClientError, BotoCoreError) as error:
            raise read_error(error, f"{uri} cannot be read") from error

    def put(self, bucket: str, key: str, content: Content, condition: Mapping[str, str]) -> str | None:
        """Write an object in one request, and return its ETag; None if the condition does not hold.

        The ETag is empty if the store gives none.

        :param condition: `{"IfNoneMatch": "*"}`, `{"IfMatch": etag}`, or empty.
        :raises GptImgRequestError: S3 refuses it, and would refuse it again.
        :raises GptImgError: S3 failed.
        """
        arguments = {
            **self._put_arguments,
            "Bucket": bucket,
            "Key": key,
            "ContentType": content.content_type,
            "ContentLength": content.size,
            "Metadata": {**self._put_arguments.get("Metadata", {}), **content.metadata},
            **self._checksum(content),
            **condition,
        }
        uri = f"s3://{bucket}/{key}"
        attempt = 0
        while True:
            attempt += 1
            content.file.seek(0)
            try:
                return read_etag(self._client.put_object(Body=content.file, **arguments))
            except (ClientError, BotoCoreError) as error:
                status = status_of(error)
                is_conditional = not condition.keys().isdisjoint(arguments)
                # Older MinIO answers 304 instead of 412.
                if status == 412 or (status == 304 and is_conditional):
                    return None
                if status == 501 and is_conditional and not is_about_checksums(error):
                    self._warn_of_races("refuses a condition")
                    if "IfNoneMatch" in condition and self.head(bucket, key) is not None:
                        return None
                    arguments = {name: value for name, value in arguments.items() if name not in condition}
                elif is_worth_repeating(error) and attempt < _PUT_ATTEMPTS:
                    time.sleep(backoff(attempt, None, random.uniform))
                else:
                    raise read_error(error, f"S3 does not take {uri}") from error

    def check_conditions(self, bucket: str, key: str, content: Content) -> None:
        """Warn if the store ignores conditions: put an existing object again, if it does not exist."""
        if self.is_aws:
            return
        try:
            ignored = self.put(bucket, key, content, {"IfNoneMatch": "*"}) is not None
        except GptImgError:
            return
        if ignored:
            self._warn_of_races("ignores If-None-Match")

    def _warn_of_races(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            self.log.warning(
                "This S3 store knows no conditional writes, it %s: an object that is there already is not overwritten, "
                "but of two tasks that write the same key at the same moment the later one wins",
                what,
            )

    def _checksum(self, content: Content) -> dict[str, str]:
        """Return the argument by which the store verifies the body."""
        if self._sends_checksums:
            return {"ChecksumSHA256": base64.b64encode(content.digest).decode()}
        return {"ContentMD5": base64.b64encode(md5_of(content.file)).decode()}

    def check_put(self, bucket: str, key: str, argument: str) -> None:
        """Refuse arguments of PutObject and bucket names that no store accepts.

        Nothing is sent: the client checks what it would sign.

        :param argument: The argument that names the bucket, with its value.
        :raises GptImgRequestError: One of them is wrong.
        """
        known = self._client.meta.service_model.operation_model("PutObject").input_shape.members
        if unknown := [name for name in self._put_arguments if name not in known]:
            near = nearest(str(unknown[0]), known)
            hint = f"did you mean {near!r}?" if near else f"it knows {', '.join(sorted(known))}"
            raise GptImgRequestError(f"extra_args sets {unknown[0]!r}, which S3's PutObject does not know; {hint}")
        for name, value in self._put_arguments.items():
            allowed = getattr(known[name], "enum", ())
            # A store of another vendor may have storage classes of its own.
            if value in allowed or not allowed or (name == "StorageClass" and not self.is_aws):
                continue
            near = nearest(str(value), allowed)
            hint = f"did you mean {near!r}?" if near else f"use {', '.join(allowed)}"
            shown = f"acl_policy={value!r:.80}" if name == "ACL" else f"extra_args sets {name}={value!r:.80}, which"
            raise GptImgRequestError(f"{shown} is not a value that S3's PutObject takes: {hint}")
        for what, arguments in (
            (f"{argument} is not a valid bucket name", {}),
            ("extra_args is not what S3's PutObject takes", self._put_arguments),
        ):
            try:
                self._client.generate_presigned_url("put_object", {"Bucket": bucket, "Key": key, **arguments})
            except ParamValidationError as error:
                raise GptImgRequestError(f"{what}: {' '.join(str(error).split()):.500}") from error
            except (ClientError, BotoCoreError):
                return  # no credentials, say: found out, and said better, by what is sent first


def read_etag(answer: Mapping[str, Any]) -> str:
    """Return an answer's ETag without quotes and weakness mark; empty if the store gives none."""
    return str(answer.get("ETag") or "").removeprefix("W/").strip('"')


def md5_of(file: IO[bytes]) -> bytes:
    """Return the MD5 of a file, which S3 uses as ETag and as checksum; not for security."""
    file.seek(0)
    md5 = hashlib.md5(usedforsecurity=False)
    while block := file.read(_BLOCK):
        md5.update(block)
    return md5.digest()
