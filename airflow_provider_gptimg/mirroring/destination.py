# SPDX-License-Identifier: Apache-2.0
"""Check the destination of images that an operator's arguments name, before any wait."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_gptimg.api.s3_uri import split_s3_uri
from airflow_provider_gptimg.api.tasks import MAX_IMAGES
from airflow_provider_gptimg.exceptions import GptImgRequestError
from airflow_provider_gptimg.mirroring.images import FORMATS
from airflow_provider_gptimg.mirroring.marks import LARGEST_METADATA, metadata_size

__all__ = ["Destination", "KeyPattern", "check_before_jinja"]

_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_UNRENDERED = re.compile(r"\{\{[^{}]*[\s.|(]")
"""Jinja as people write it; `{{name}}` alone is a pattern's way to have braces in a key."""
_FIELDS = frozenset({"task_id", "index", "ext"})
_LONGEST_KEY = 1024
"""Most bytes of a key in UTF-8 that S3 accepts."""
_USUAL_TASK_ID = "gpt-image-2-kUtpnus8fXpDKkuEjayG3"
_OWN_METADATA = 800
"""Most bytes of metadata that the transfer itself needs."""
_OWN_NAMES = "gptimg-"
"""Start of the names of metadata that the transfer sets."""
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNFIT_FOR_KEYS = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class KeyPattern:
    """An S3 key with `{task_id}`, `{index}` and `{ext}` in it.

    :param s3_key: The pattern, or `s3://bucket/pattern`.
    :param s3_bucket: The bucket, unless `s3_key` names it.
    :raises GptImgRequestError: Names the argument, its value and the way out.
    """

    def __init__(self, s3_key: str, s3_bucket: str | None) -> None:
        if not isinstance(s3_key, str) or not s3_key.strip():
            raise GptImgRequestError(
                f"s3_key={s3_key!r:.120} is blank: use a pattern such as 'images/{{task_id}}/{{index}}{{ext}}'"
            )
        if isinstance(s3_bucket, str) and s3_bucket.startswith("s3://"):
            name = split_s3_uri(s3_bucket)[0]
            raise GptImgRequestError(f"s3_bucket={s3_bucket!r:.120} is a URI: use the bucket's name, {name!r:.80}")
        if s3_key.startswith("s3://"):
            bucket, pattern = split_s3_uri(s3_key)
            if s3_bucket:
                raise GptImgRequestError(
                    f"s3_key={s3_key!r:.120} names a bucket, and so does s3_bucket={s3_bucket!r:.80}: drop one"
                )
        else:
            bucket, pattern = s3_bucket or "", s3_key
        if not isinstance(bucket, str) or not bucket or not pattern:
            raise GptImgRequestError(
                f"s3_key={s3_key!r:.120} and s3_bucket={s3_bucket!r:.80} name no bucket and key: pass s3_bucket, or "
                "s3_key='s3://bucket/pattern'"
            )
        _check_characters(pattern, f"s3_key={s3_key!r:.120}")
        self.bucket = bucket
        self.argument: str = f"s3_bucket={s3_bucket!r:.80}" if s3_bucket else f"s3_key={s3_key!r:.120}"
        """The argument that names the bucket, with its value."""
        self.pattern = pattern
        if _UNRENDERED.search(pattern):
            raise GptImgRequestError(
                f"s3_key={s3_key!r:.120} has Jinja in it that Airflow has not rendered: it leaves the values of "
                "expand() and of a mapped task group as they are. Put the template into partial(), or the finished "
                "text into the values"
            )
        try:
            self._parts = _parse(pattern)
        except ValueError as error:
            raise GptImgRequestError(
                f"s3_key={s3_key!r:.120} is not a pattern: {error}. It may have {{task_id}}, {{index}} and {{ext}}, as "
                "they are; for anything else use Jinja, as in {{ ti.map_index }}: it is rendered once for the task"
            ) from None
        fields = {name for _, name in self._parts}
        self.has_extension: bool = "ext" in fields
        self._names_task = "task_id" in fields
        if len(self.key(_USUAL_TASK_ID, 0, ".webp").encode()) > _LONGEST_KEY:
            raise GptImgRequestError(f"s3_key={s3_key!r:.120} gives keys of more than 1,024 bytes, all that S3 takes")

    def key(self, task_id: str, index: int, extension: str) -> str:
        """Return the key of one image.

        :param index: From 0, in the order of the API's answer.
        :param extension: With its dot.
        """
        values = {None: "", "task_id": task_id, "index": str(index), "ext": extension}
        return "".join(literal + values[name] for literal, name in self._parts)

    def prefix(self, task_id: str) -> str | None:
        """Return the prefix that only this image task's keys have; None if other tasks' keys may share it."""
        prefix, names_task = "", False
        for literal, name in self._parts:
            prefix += literal
            if name == "task_id":
                prefix += task_id
                names_task = True
            elif name is not None:
                break
        return prefix if names_task else None

    def may_give(self, key: str) -> bool:
        """Return whether an image may get `key`, as far as that is known before the submit."""
        if self._names_task and not self.has_extension:
            return False  # any name looks like a task's id
        any_task = "\0"
        keys = {self.key(any_task, index, known.extension) for index in range(MAX_IMAGES) for known in FORMATS}
        return any(re.fullmatch(re.escape(one).replace(re.escape(any_task), "[^/]+"), key) for one in keys)

    @property
    def folder(self) -> str:
        """Common folder of all its keys, without the trailing slash; empty if they share none."""
        return self._parts[0][0].rpartition("/")[0]


def check_before_jinja(s3_key: Any, s3_bucket: Any) -> None:
    """Refuse what is wrong in a key pattern and a bucket whatever Jinja makes of them, as soon as a DAG is parsed.

    :param s3_key: As the author wrote it; what is not a text is checked later. Likewise `s3_bucket`.
    :raises GptImgRequestError: Names the argument, its value and the way out.
    """
    if not isinstance(s3_key, str):
        return
    if not (isinstance(s3_bucket, str) and s3_bucket) or _JINJA.search(s3_bucket):
        s3_bucket = None if s3_key.startswith("s3://") else "…"  # execute refuses a key without a bucket
    KeyPattern(_JINJA.sub("…", s3_key), s3_bucket)


def _check_characters(key: str, argument: str) -> None:
    if found := _UNFIT_FOR_KEYS.search(key):
        raise GptImgRequestError(f"{argument} has the character {found[0]!r}: take control characters out of it")


def _parse(pattern: str) -> list[tuple[str, str | None]]:
    """Return the literal texts of a pattern, each with the field that follows it, or None.

    :raises ValueError: It is not a pattern; the message says why.
    """
    parts = []
    for literal, name, spec, conversion in string.Formatter().parse(pattern):
        if name is not None and name not in _FIELDS:
            raise ValueError(f"it has {{{name:.40}}}")
        if spec or conversion:
            raise ValueError(f"it formats {{{name}}}")
        parts.append((literal, name))
    return parts


@dataclass(frozen=True)
class Destination:
    """Keys of the images and of their manifest, and the arguments of PutObject.

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

        :meth:`.S3Store.check_put` then checks what S3 would refuse.

        :raises GptImgRequestError: One of them is wrong; it names the argument, its value and the way out.
        """
        pattern = KeyPattern(s3_key, s3_bucket)
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
    for name in extra_args:
        if name in _SET_FOR_EACH or str(name).startswith("Checksum"):
            raise GptImgRequestError(f"extra_args sets {name!r}, which the transfer sets itself: leave it out")
    metadata = extra_args.get("Metadata")
    if metadata is not None:
        _check_metadata(metadata)
    for name, value in {**(metadata or {}), **extra_args}.items():
        # A customer's key may be any 32 bytes: boto3 sends it in base64.
        if isinstance(value, str) and name != "SSECustomerKey" and _CONTROL.search(value):
            raise GptImgRequestError(
                f"extra_args sets {name}={value!r:.120}, which no header can hold: take the line break, or other "
                "control character, out of it"
            )
    return dict(extra_args)


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, Mapping) or not all(
        isinstance(text, str) for pair in metadata.items() for text in pair
    ):
        raise GptImgRequestError(f"extra_args sets Metadata={metadata!r:.120}, which is not a dict of texts")
    for name in metadata:
        if name.lower().startswith(_OWN_NAMES):
            raise GptImgRequestError(
                f"extra_args sets Metadata {name!r:.80}: the transfer sets the names that begin with {_OWN_NAMES!r}, "
                "choose another"
            )
        if not _HEADER_NAME.fullmatch(name):
            raise GptImgRequestError(
                f"extra_args sets Metadata {name!r:.80}, which is not a header's name: use letters, digits, '-' and '_'"
            )
    if (size := metadata_size(metadata)) > LARGEST_METADATA - _OWN_METADATA:
        raise GptImgRequestError(
            f"extra_args has {size} bytes of Metadata: S3 takes {LARGEST_METADATA}, and the transfer needs up to "
            f"{_OWN_METADATA} of them"
        )


def _read_manifest_key(manifest_key: Any, pattern: KeyPattern) -> tuple[str, str]:
    bucket, key = pattern.bucket, manifest_key
    if isinstance(key, str) and key.startswith("s3://"):
        bucket, key = split_s3_uri(key)
    if not isinstance(key, str) or not key.strip() or not bucket or "{" in key:
        raise GptImgRequestError(
            f"manifest_key={manifest_key!r:.200} is not a key and not s3://bucket/key: it has no fields such as "
            "{index}, use Jinja as in \"gptimg/manifests/{{ run_id | replace(':', '') }}.jsonl\""
        )
    _check_characters(key, f"manifest_key={manifest_key!r:.200}")
    if len(key.encode()) > _LONGEST_KEY:
        raise GptImgRequestError(f"manifest_key={manifest_key!r:.120} has more than 1,024 bytes, all that S3 takes")
    if bucket == pattern.bucket and pattern.may_give(key):
        raise GptImgRequestError(
            f"manifest_key={manifest_key!r:.200} is a key that s3_key={pattern.pattern!r:.120} may give to an image: "
            "choose another, such as \"gptimg/manifests/{{ run_id | replace(':', '') }}.jsonl\""
        )
    return bucket, key
