# SPDX-License-Identifier: Apache-2.0
"""What S3 is asked before a batch goes on: whether its bucket is there, and what earlier attempts mirrored still is."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from os.path import commonprefix
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from airflow_provider_gptimg.batch.ledger import Entry
from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError
from airflow_provider_gptimg.mirroring.mirror import LOOKS_AT_A_TIME

if TYPE_CHECKING:
    from airflow_provider_gptimg.mirroring.destination import KeyPattern
    from airflow_provider_gptimg.mirroring.store import S3Store

__all__ = ["check_bucket", "find_gone"]

# Whatever else S3 says may pass, or concern lists only.
_NO_SUCH_BUCKET = {
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidBucketName",
    "NoSuchBucket",
    "PermanentRedirect",
}


def check_bucket(store: S3Store, bucket: str, prefix: str, argument: str) -> None:
    """Refuse a bucket that is not there, or not in this region, before an image is paid for.

    :param prefix: Of the keys that will be written there.
    :param argument: The one that names the bucket, with its value.
    :raises GptImgRequestError: There is no such bucket.
    """
    try:
        store.sizes(bucket, prefix)
    except GptImgError as error:
        if _is_definite(error.__cause__):
            raise GptImgRequestError(
                f"{argument} names a bucket that takes no objects: {error.message}. Nothing was sent; create the "
                "bucket, correct its name, or correct region_name or endpoint_url of the AWS connection"
            ) from error


def _is_definite(error: BaseException | None) -> bool:
    code = error.response.get("Error", {}).get("Code") if isinstance(error, ClientError) else None
    return code in _NO_SUCH_BUCKET


def find_gone(store: S3Store, pattern: KeyPattern, mirrored: Iterable[Entry]) -> list[Entry]:
    """Return the requests among `mirrored` of which an object is not in the bucket any more, or has another size.

    What S3 does not tell, e.g. since we may not list, counts as being there.
    """
    sizes = {entry: {fact["key"]: fact["size"] for fact in (entry.mirrored or {})["objects"]} for entry in mirrored}

    def listed(wanted: Iterable[str]) -> dict[str, int] | None:
        return store.sizes(pattern.bucket, commonprefix(list(wanted)))  # noqa: RUF071 - S3 compares so too

    if not sizes:
        return []
    try:
        # Where few objects are beside them, one request tells all; else one for each request does.
        everything = listed(set().union(*sizes.values()))
        found = dict.fromkeys(sizes, everything)
        if everything is None:
            with ThreadPoolExecutor(LOOKS_AT_A_TIME, thread_name_prefix="gptimg-look") as pool:
                found = dict(zip(sizes, pool.map(listed, sizes.values()), strict=True))
    except GptImgError:
        return []
    return [entry for entry, there in found.items() if there is not None and not sizes[entry].items() <= there.items()]
