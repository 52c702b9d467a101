# SPDX-License-Identifier: Apache-2.0
"""How S3 is asked and told: one conditional PUT an object, whose checksum S3 verifies, and what a refusal means."""

from __future__ import annotations

import base64
import gc
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from airflow_provider_gptimg import __version__
from airflow_provider_gptimg.api.protocol import backoff
from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

__all__ = ["SINGLE_PUT_LIMIT", "Content", "S3Store", "s3_client"]

SINGLE_PUT_LIMIT = 5 * 1024**3
"""Bytes that S3 takes in one PUT; there is no use for larger images."""

_PUT_ATTEMPTS = 4

# The body did not arrive as it was sent, or another write was under way: botocore repeats neither.
_WORTH_REPEATING = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
# Client errors that another attempt may not meet; all others it would.
_PASSING = _WORTH_REPEATING | {
    "ExpiredToken",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}

_NO_REASON = (
    ". S3 gives no reason for this, since the answer to HEAD has no body: check the AWS connection (an expired token, "
    "another region, a wrong endpoint_url), and whether the object needs SSECustomerKey in extra_args"
)

# Arguments of PutObject that S3 wants to see again when it is asked what is there.
_ALSO_OF_LIST = {"ExpectedBucketOwner", "RequestPayer"}
_ALSO_OF_HEAD = _ALSO_OF_LIST | {"SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5"}


@dataclass(frozen=True)
class Content:
    """What an object is to hold.

    :param file: Read from its start.
    :param size: Bytes.
    :param digest: Its sha256.
    """

    file: IO[bytes]
    size: int
    digest: bytes
    content_type: str
    metadata: Mapping[str, str]


def s3_client(hook: S3Hook, connections: int) -> Any:
    """Return a boto3 S3 client as the hook's connection says, fit for many requests at a time.

    The hook's own client costs 0.1 s more, since it walks the stack for a name to give to its caller.

    :param connections: Requests at a time.
    """
    config = hook.config
    ours = Config(
        max_pool_connections=max(connections, config.max_pool_connections),
        user_agent_extra=f"{config.user_agent_extra or ''} airflow-provider-gptimg/{__version__}".strip(),
        # Else botocore reads a file a second time for its sha256, which S3 verifies against our header anyway.
        s3={"payload_signing_enabled": False, **(config.s3 or {})},
    )
    with _garbage_collection_paused():
        return hook.get_session(region_name=hook.region_name).client(
            "s3",
            endpoint_url=hook.conn_config.get_service_endpoint_url("s3"),
            config=config.merge(ours),
            verify=hook.verify,
        )


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    # botocore reads megabytes of JSON, and each time enough new objects are there, the collector walks all that Airflow
    # has loaded: of 0.1 to 0.2 s of CPU that a client costs, a third to two thirds.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class S3Store:
    """An S3 client, and what its answers mean to a mirror. It may be used from several threads.

    :param client: A boto3 S3 client.
    :param put_arguments: Further arguments of every PutObject, e.g. `ServerSideEncryption`.
    """

    def __init__(self, client: Any, put_arguments: Mapping[str, Any], log: Any) -> None:
        self._client = client
        self._put_arguments = put_arguments
        self._head_arguments = {name: put_arguments[name] for name in _ALSO_OF_HEAD & put_arguments.keys()}
        self._log = log
        self._may_list = True

    def sizes(self, bucket: str, prefix: str) -> dict[str, int] | None:
        """Return the size in bytes of each object whose key starts with `prefix`.

        None if we may not list, or there are more than a thousand.

        :raises GptImgError: S3 does not answer, or there is no such bucket.
        """
        if not self._may_list:
            return None
        arguments = {name: self._put_arguments[name] for name in _ALSO_OF_LIST & self._put_arguments.keys()}
        try:
            answer = self._client.list_objects_v2(Bucket=bucket, Prefix=prefix, **arguments)
        except (ClientError, BotoCoreError) as error:
            if _status(error) in (403, 501):
                self._may_list = False
                return None
            raise _verdict(error, f"S3 does not tell what is at s3://{bucket}/{prefix}") from error
        if answer.get("IsTruncated"):
            return None
        return {found["Key"]: found["Size"] for found in answer.get("Contents", ())}

    def head(self, bucket: str, key: str, *, with_checksum: bool = True) -> dict[str, Any] | None:
        """Return what S3 says of an object; None if there is none, or none that we may see.

        :param with_checksum: For an object that is encrypted with a KMS key, that takes a permission more.
        :raises GptImgError: S3 does not answer, or not so.
        """
        arguments = {**self._head_arguments, **({"ChecksumMode": "ENABLED"} if with_checksum else {})}
        try:
            answer: dict[str, Any] = self._client.head_object(Bucket=bucket, Key=key, **arguments)
        except (ClientError, BotoCoreError) as error:
            # Without permission to list, S3 says 403 for what is not there.
            if _status(error) in (403, 404):
                return None
            failure = _verdict(error, f"S3 does not tell whether s3://{bucket}/{key} is there")
            if _status(error) == 400:
                failure.message += _NO_REASON
            raise failure from error
        return answer

    def read_text(self, bucket: str, key: str) -> str:
        """Return an object that holds text in UTF-8.

        :raises GptImgRequestError: It is not there, may not be read, or holds something else.
        :raises GptImgError: S3 failed.
        """
        try:
            data: bytes = self._client.get_object(Bucket=bucket, Key=key)["Body"].read()
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise GptImgRequestError(f"s3://{bucket}/{key} is no text in UTF-8: {error}") from error
        except (ClientError, BotoCoreError) as error:
            raise _verdict(error, f"S3 does not give s3://{bucket}/{key}") from error

    def put(self, bucket: str, key: str, content: Content, condition: Mapping[str, str]) -> str | None:
        """Make an object in one request, and return its ETag; None if the condition does not hold.

        :param condition: `{"IfNoneMatch": "*"}`, `{"IfMatch": etag}`, or empty.
        :raises GptImgRequestError: S3 refuses it, and would again.
        :raises GptImgError: S3 failed.
        """
        arguments = {
            **self._put_arguments,
            "Bucket": bucket,
            "Key": key,
            "ContentType": content.content_type,
            "ContentLength": content.size,
            "ChecksumSHA256": base64.b64encode(content.digest).decode(),
            "Metadata": {**self._put_arguments.get("Metadata", {}), **content.metadata},
            **condition,
        }
        uri = f"s3://{bucket}/{key}"
        attempt = 0
        while True:
            attempt += 1
            content.file.seek(0)
            try:
                return str(self._client.put_object(Body=content.file, **arguments)["ETag"]).strip('"')
            except (ClientError, BotoCoreError) as error:
                code = _code(error)
                if code in ("PreconditionFailed", "412"):
                    return None
                if code == "NotImplemented" and not condition.keys().isdisjoint(arguments):
                    self._log.warning("This S3 store knows no conditional writes: another writer of %s would win", uri)
                    if "IfNoneMatch" in condition and self.head(bucket, key) is not None:
                        return None
                    arguments = {name: value for name, value in arguments.items() if name not in condition}
                elif code in _WORTH_REPEATING and attempt < _PUT_ATTEMPTS:
                    time.sleep(backoff(attempt, None, random.uniform))
                else:
                    raise _verdict(error, f"S3 does not take {uri}") from error


def _code(error: Exception) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _status(error: Exception) -> int:
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _response(error: Exception) -> dict[str, Any]:
    # A connection that was lost has no answer; botocore has None for it then.
    return getattr(error, "response", None) or {}


def _verdict(error: Exception, what: str) -> GptImgError:
    refused = 400 <= _status(error) < 500 and _code(error) not in _PASSING
    kind = GptImgRequestError if refused or isinstance(error, ParamValidationError) else GptImgError
    return kind(f"{what}: {error}")
