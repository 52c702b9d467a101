# SPDX-License-Identifier: Apache-2.0
"""List what a bucket holds, in as few requests as possible."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from os.path import commonprefix
from typing import TypeVar

from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.mirroring.store import S3Store

__all__ = ["LOOKS_AT_A_TIME", "find_missing", "list_each"]

LOOKS_AT_A_TIME = 64
"""Concurrent HEAD and LIST requests: more than downloads, since they take time but no memory."""

Group = TypeVar("Group", bound=Hashable)


def list_each(
    store: S3Store, bucket: str, prefixes: Mapping[Group, str | None]
) -> dict[Group, Mapping[str, int] | None]:
    """Return, for each group of objects, the sizes in bytes by key under its prefix.

    One request lists all groups if few other objects share their prefix; else each group takes one. None if one
    request is not enough, or a group has no prefix: then each key has to be asked for.

    :raises GptImgError: The bucket is not there, or S3 does not answer.
    """
    shared = commonprefix([prefix or "" for prefix in prefixes.values()])  # noqa: RUF071 - S3 compares so too
    everything = store.sizes(bucket, shared) if shared else None
    if everything is not None:
        return dict.fromkeys(prefixes, everything)
    with ThreadPoolExecutor(LOOKS_AT_A_TIME, thread_name_prefix="gptimg-look") as pool:
        found = pool.map(lambda prefix: store.sizes(bucket, prefix) if prefix else None, prefixes.values())
        return dict(zip(prefixes, found, strict=True))


def find_missing(store: S3Store, bucket: str, groups: Mapping[Group, Mapping[str, int]]) -> list[Group]:
    """Return the groups with an object that is missing from the bucket or has another size.

    Objects that cannot be listed, for lack of permission say, count as present.

    :param groups: Expected sizes in bytes by key, for each group.
    """
    if not groups:
        return []
    prefixes = {group: commonprefix(list(sizes)) for group, sizes in groups.items()}  # noqa: RUF071 - as above
    try:
        found = list_each(store, bucket, prefixes)
    except GptImgError:
        return []
    return [group for group, there in found.items() if there is not None and not groups[group].items() <= there.items()]
