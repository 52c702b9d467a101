# SPDX-License-Identifier: Apache-2.0
"""Where images go and how they are put there, as a transfer's arguments say; checked before anything is waited for."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_gptimg.api.requests import MAX_IMAGES
from airflow_provider_gptimg.exceptions import GptImgRequestError
from airflow_provider_gptimg.mirroring.images import FORMATS

__all__ = ["Destination", "KeyPattern"]


class KeyPattern:
    """Where images go: an S3 key with `{task_id}`, `{index}` and `{ext}` in it.

    :param s3_key: The pattern, or `s3://bucket/pattern`.
    :param s3_bucket: The bucket, unless `s3_key` names it.
    :raises GptImgRequestError: Names the argument, its value and the way out.
    """

    def __init__(self, s3_key: str, s3_bucket: str | None) -> None:
        if not isinstance(s3_key, str) or not s3_key.strip():
            raise GptImgRequestError(
                f"s3_key={s3_key!r} is blank: use a pattern such as 'images/{{task_id}}/{{index}}{{ext}}'"
            )
        if s3_key.startswith("s3://"):
            bucket, _, pattern = s3_key.removeprefix("s3://").partition("/")
            if s3_bucket:
                raise GptImgRequestError(
                    f"s3_key={s3_key!r} names a bucket, and so does s3_bucket={s3_bucket!r}: drop one"
                )
        else:
            bucket, pattern = s3_bucket or "", s3_key
        if not isinstance(bucket, str) or not bucket or not pattern:
            raise GptImgRequestError(
                f"s3_key={s3_key!r} and s3_bucket={s3_bucket!r} name no bucket and key: pass s3_bucket, or "
                "s3_key='s3://bucket/pattern'"
            )
        self.bucket = bucket
        self.pattern = pattern
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
            if unknown := fields - {"task_id", "index", "ext"}:
                raise ValueError(f"it has {{{sorted(unknown)[0]}}}")
            self.has_extension = "ext" in fields
            self._names_task = "task_id" in fields
            self.key("task", 0, ".png")
            self.prefix("task")
        except (ValueError, IndexError, KeyError) as error:
            raise GptImgRequestError(
                f"s3_key={s3_key!r} is no pattern: {error}. {{task_id}}, {{index}} and {{ext}} are known, and '{{{{' "
                "stands for a brace"
            ) from None

    def key(self, task_id: str, index: int, extension: str) -> str:
        """Return the key of one image.

        :param index: From 0, in the order of the API's answer.
        :param extension: With its dot.
        """
        return self.pattern.format(task_id=task_id, index=index, ext=extension)

    def prefix(self, task_id: str) -> str | None:
        """Return what the keys of one image task's images start with; None if other tasks' keys may do so too."""
        formatter, parts, names_task = string.Formatter(), [], False
        for literal, name, spec, conversion in formatter.parse(self.pattern):
            parts.append(literal)
            if name == "task_id":
                parts.append(formatter.format_field(formatter.convert_field(task_id, conversion), spec or ""))
                names_task = True
            elif name is not None:
                break
        return "".join(parts) if names_task else None

    def may_give(self, key: str) -> bool:
        """Return whether an image may get `key`, as far as that can be told before there are image tasks."""
        if self._names_task and not self.has_extension:
            return False  # any name looks like a task's id
        any_task = "\0"
        keys = {self.key(any_task, index, known.extension) for index in range(MAX_IMAGES) for known in FORMATS}
        return any(re.fullmatch(re.escape(one).replace(re.escape(any_task), "[^/]+"), key) for one in keys)

    @property
    def folder(self) -> str:
        """What all its keys start with, up to a slash, which is left out; empty if they share nothing."""
        shared, *_ = next(iter(string.Formatter().parse(self.pattern)))
        return shared.rpartition("/")[0]


@dataclass(frozen=True)
class Destination:
    """Keys for images and for their manifest, and what else PutObject is told.

    :param put_arguments: Arguments of S3's PutObject that are the same for all objects.
    :param manifest: Bucket and key; None: no manifest.
    """

    pattern: KeyPattern
    put_arguments: Mapping[str, Any]
    manifest: tuple[str, str] | None = None

    @classmethod
    def check(
        cls,
        *,
        s3_key: str,
        s3_bucket: str | None,
        manifest_key: str | None,
        encrypt: bool,
        acl_policy: str | None,
        extra_args: Mapping[str, Any] | None,
    ) -> Destination:
        """Return the destination that an operator's arguments name.

        :raises GptImgRequestError: One of them is wrong; it names the argument, its value and the way out.
        """
        pattern = KeyPattern(s3_key, s3_bucket)
        _check_bucket(pattern.bucket, f"s3_bucket={s3_bucket!r}" if s3_bucket else f"s3_key={s3_key!r}")
        put_arguments = _read_extra_args(extra_args)
        if encrypt:
            put_arguments.setdefault("ServerSideEncryption", "AES256")
        if acl_policy is not None and not isinstance(acl_policy, str):
            raise GptImgRequestError(f"acl_policy={acl_policy!r:.200} is not a canned ACL's name such as 'public-read'")
        if acl_policy:
            put_arguments["ACL"] = acl_policy
        manifest = None if manifest_key is None else _read_manifest_key(manifest_key, pattern)
        return cls(pattern, put_arguments, manifest)


# Arguments of PutObject that belong to one object.
_SET_FOR_EACH = {
    "Body",
    "Bucket",
    "ContentLength",
    "ContentMD5",
    "ContentType",
    "IfMatch",
    "IfNoneMatch",
    "Key",
    "WriteOffsetBytes",
}


def _read_extra_args(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    if not extra_args:
        return {}
    if not isinstance(extra_args, Mapping):
        raise GptImgRequestError(f"extra_args={extra_args!r:.120} is not a dict of PutObject arguments")
    import botocore.session

    shape = botocore.session.get_session().get_service_model("s3").operation_model("PutObject").input_shape
    known = shape.members
    for name in extra_args:
        if name in _SET_FOR_EACH or str(name).startswith("Checksum"):
            raise GptImgRequestError(f"extra_args sets {name!r}, which the transfer sets itself: leave it out")
        if name not in known:
            free = sorted(name for name in known.keys() - _SET_FOR_EACH if not name.startswith("Checksum"))
            raise GptImgRequestError(
                f"extra_args sets {name!r}, which S3's PutObject does not know; it knows {', '.join(free)}"
            )
    _check_types(extra_args, shape)
    return dict(extra_args)


def _check_types(extra_args: Mapping[str, Any], shape: Any) -> None:
    from botocore.exceptions import ParamValidationError
    from botocore.handlers import validate_ascii_metadata
    from botocore.validate import ParamValidator

    checked = {**extra_args, "Bucket": "bucket", "Key": "key"}
    if isinstance(checked.get("SSECustomerKey"), bytes | bytearray):
        checked["SSECustomerKey"] = ""  # botocore encodes bytes before it checks
    report = ParamValidator().validate(checked, shape)
    if report.has_errors():
        raise GptImgRequestError(f"extra_args is not what S3's PutObject takes: {report.generate_report():.500}")
    try:
        validate_ascii_metadata(checked)
    except ParamValidationError as error:
        raise GptImgRequestError(f"extra_args is not what S3's PutObject takes: {error}") from error


def _check_bucket(bucket: str, argument: str) -> None:
    from botocore.exceptions import ParamValidationError
    from botocore.handlers import validate_bucket_name

    try:
        validate_bucket_name({"Bucket": bucket})
    except ParamValidationError as error:
        raise GptImgRequestError(f"{argument} names no bucket that can be: {error}") from error


def _read_manifest_key(manifest_key: Any, pattern: KeyPattern) -> tuple[str, str]:
    bucket, key = pattern.bucket, manifest_key
    if isinstance(key, str) and key.startswith("s3://"):
        bucket, _, key = key.removeprefix("s3://").partition("/")
    if not isinstance(key, str) or not key.strip() or not bucket or "{" in key:
        raise GptImgRequestError(
            f"manifest_key={manifest_key!r:.200} is no key and no s3://bucket/key: it has no fields such as "
            "{index}, use Jinja as in 'gptimg/manifests/{{ run_id }}.jsonl'"
        )
    _check_bucket(bucket, f"manifest_key={manifest_key!r:.200}")
    if bucket == pattern.bucket and pattern.may_give(key):
        raise GptImgRequestError(
            f"manifest_key={manifest_key!r:.200} is a key that s3_key={pattern.pattern!r} may give to an image: choose "
            "another, such as 'gptimg/manifests/{{ run_id }}.jsonl'"
        )
    return bucket, key
