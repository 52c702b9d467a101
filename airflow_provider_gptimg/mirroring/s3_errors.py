# SPDX-License-Identifier: Apache-2.0
"""Turn the errors of an S3 client into errors of this package: worth another attempt, or final."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError

__all__ = [
    "bucket_refusal",
    "is_about_checksums",
    "is_worth_repeating",
    "read_error",
    "refuses_to_list",
    "status_of",
    "unreadable",
]

_WORTH_REPEATING = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
"""The body was damaged on its way, or another write was under way. Botocore repeats neither."""

_PASSING = _WORTH_REPEATING | {
    "ExpiredToken",
    "ExpiredTokenException",
    "OperationAborted",
    "RequestExpired",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "Throttling",
    "ThrottlingException",
    "TokenRefreshRequired",
    "TooManyRequests",
}
"""Client errors that another attempt may not meet. It would meet all others again."""

_NO_SUCH_BUCKET = {
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidBucketName",
    "NoSuchBucket",
    "PermanentRedirect",
}
_UNKNOWN_CREDENTIALS = {"AccountProblem", "InvalidAccessKeyId", "InvalidToken", "NotSignedUp", "SignatureDoesNotMatch"}

_REASONS = {
    "AccessDenied": "access is denied (AccessDenied); without s3:ListBucket, S3 says this of a missing object too",
    "InvalidAccessKeyId": "S3 does not know the access key (InvalidAccessKeyId)",
    "NoSuchBucket": "the bucket does not exist",
    "NoSuchKey": "the bucket has no such object",
    "SignatureDoesNotMatch": "the secret key is wrong (SignatureDoesNotMatch)",
}

_NO_CHECKSUMS = (
    ". If the store takes no checksum headers, set request_checksum_calculation to 'when_required' in config_kwargs of "
    "the AWS connection's extra: a Content-MD5 goes out instead"
)


def read_error(error: Exception, what: str) -> GptImgError:
    """Return a `GptImgRequestError` if S3 would refuse another attempt too, else a plain `GptImgError`.

    :param what: Start of the message: the call that failed.
    """
    refused = 400 <= status_of(error) < 500 and _code(error) not in _PASSING
    kind = GptImgRequestError if refused or isinstance(error, ParamValidationError) else GptImgError
    return kind(f"{what}: {error}{_NO_CHECKSUMS if is_about_checksums(error) else ''}")


def status_of(error: Exception) -> int:
    """Return the HTTP status; 0 if S3 did not answer."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_worth_repeating(error: Exception) -> bool:
    """Return whether the same PUT may succeed at once."""
    return _code(error) in _WORTH_REPEATING


def is_about_checksums(error: Exception) -> bool:
    """Return whether the store refuses checksum headers."""
    return "checksum" in str(error).lower() and not is_worth_repeating(error)


def refuses_to_list(error: Exception) -> bool:
    """Return whether a listing is not allowed or not implemented, while other requests may succeed."""
    status = status_of(error)
    refused = status == 501 or (400 <= status < 500 and status not in (401, 408, 429))
    return refused and _code(error) not in _NO_SUCH_BUCKET | _UNKNOWN_CREDENTIALS | _PASSING


def bucket_refusal(error: GptImgError, argument: str) -> GptImgRequestError | None:
    """Return the error for a bucket that takes no objects, if `error` comes from one; else None.

    :param argument: The argument that names the bucket, with its value.
    """
    cause = error.__cause__
    wrong_credentials = isinstance(cause, NoCredentialsError | PartialCredentialsError) or (
        isinstance(cause, ClientError) and (status_of(cause) == 401 or _code(cause) in _UNKNOWN_CREDENTIALS)
    )
    if wrong_credentials:
        return GptImgRequestError(
            f"{argument} names a bucket that takes no objects from us: {error.message}. Correct the credentials of the "
            "AWS connection, or its endpoint_url"
        )
    if isinstance(cause, ClientError) and _code(cause) in _NO_SUCH_BUCKET:
        fault = "does not exist" if _code(cause) == "NoSuchBucket" else "takes no objects"
        return GptImgRequestError(
            f"{argument} names a bucket that {fault}: {error.message}. Create the bucket, correct its name, "
            "or correct region_name or endpoint_url of the AWS connection"
        )
    return None


def unreadable(error: GptImgError, argument: str, aws_conn_id: str | None, *, has_connection: bool) -> GptImgError:
    """Return the error for an object that an argument names and that S3 did not return.

    :param error: What `S3Store` raised.
    :param argument: The argument, with its value.
    :param has_connection: False: no connection has the id `aws_conn_id`, so boto3 searched for credentials by itself.
    """
    cause = error.__cause__
    if not isinstance(cause, ClientError | BotoCoreError):
        return error  # what was read is wrong, and the message says so
    reason = _REASONS.get(_code(cause), str(cause))
    if aws_conn_id and not has_connection:
        reason += ". No connection has that id"
    # Boto3 may find credentials of the machine a moment later, but an id that does not exist stays wrong.
    final = isinstance(error, GptImgRequestError) or (isinstance(cause, NoCredentialsError) and not has_connection)
    kind = GptImgRequestError if final else GptImgError
    return kind(
        f"{argument} cannot be read with aws_conn_id={aws_conn_id!r}: {reason}. Correct the URI, or the AWS connection"
    )


def _code(error: Exception) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _response(error: Exception) -> dict[str, Any]:
    # After a lost connection botocore has None here.
    return getattr(error, "response", None) or {}
