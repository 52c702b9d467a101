# SPDX-License-Identifier: Apache-2.0
"""Read `s3://` URIs; the one place that does."""

from __future__ import annotations

import re

__all__ = ["split_s3_uri"]

# The ARN of an access point can replace a bucket's name, and has slashes itself.
_ACCESS_POINT = re.compile(r"arn:[^/:]+:s3[a-z-]*:[^/:]*:[^/:]*:(?:outpost[/:][^/:]+[/:])?accesspoint[/:][^/:]+(?=/|$)")


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of an `s3://bucket/key` URI; either is empty where it is missing.

    The ARN of an access point counts as a bucket, as boto3 takes it.
    """
    place = uri.removeprefix("s3://")
    if found := _ACCESS_POINT.match(place):
        return found[0], place[found.end() + 1 :]
    bucket, _, key = place.partition("/")
    return bucket, key
