# SPDX-License-Identifier: Apache-2.0
"""Find out what a bucket holds, in as few requests as that takes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from os.path import commonprefix
from typing import TypeVar

from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.mirroring.store import S3Store

__all__ = ["LOOKS_AT_A_TIME", "find_missing", "list_each"]

LOOKS_AT_A_TIME = 64
"""Requests that ask S3 what is there: more than downloads at a time, since they take time but no memory."""

Group = TypeVar("Group", bound=Hashable)


def list_each(
    store: S3Store, bucket: str, prefixes: Mapping[Group, str | None]
) -> dict[Group, Mapping[str, int] | None]:
    """Return, for each group of objects, the sizes in bytes by key of what starts with its prefix.

    One request for all of them where few objects are beside them, else one each. None where S3 does not tell in one
    request, or there is no prefix: each key has to be asked for then.

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
    """Return the groups with an object that is gone from the bucket or has another size.

    What S3 does not tell, for example since we may not list, counts as being there.

    :param groups: For each of them the sizes in bytes by key.
    """
    if not groups:
        return []
    prefixes = {group: commonprefix(list(sizes)) for group, sizes in groups.items()}  # noqa: RUF071 - as above
    try:
        found = list_each(store, bucket, prefixes)
    except GptImgError:
        return []
    return [group for group, there in found.items() if there is not None and not groups[group].items() <= there.items()]
