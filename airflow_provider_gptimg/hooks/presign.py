# SPDX-License-Identifier: Apache-2.0
"""Presign `s3://` references, so that the API can fetch them for a while."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.airflow_compat import mask_secret
from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.s3_uri import split_s3_uri
from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError
from airflow_provider_gptimg.hooks.origin import Origin

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

__all__ = ["Presigner"]

_PRESIGNED_FOR = 3600
"""Seconds for which a presigned reference can be fetched: more than a generation takes."""
_MASKED_AT_MOST = 32
"""Presigned references that Airflow's log masker is told of, beyond our own care: each one makes all log lines slower,
and a thousand take it six minutes."""


class Presigner:
    """Makes presigned URLs, each one once in a while, since a batch may name a reference a thousand times."""

    def __init__(self) -> None:
        self._hooks: dict[str | None, S3Hook] = {}
        self._urls: dict[tuple[str, str | None], tuple[str, float]] = {}

    def presign(self, request: ImageRequest, aws_conn_id: str | None) -> ImageRequest:
        """Return the request with presigned URLs in place of its `s3://` references.

        :param aws_conn_id: AWS connection that signs them.
        :raises GptImgRequestError: A reference cannot be presigned, or its URL would be `http://`.
        :raises GptImgError: There are no credentials just now.
        """
        return request.with_references(
            [
                self._url(reference, aws_conn_id) if reference.startswith("s3://") else reference
                for reference in request.reference_images
            ]
        )

    def _url(self, reference: str, aws_conn_id: str | None) -> str:
        url, until = self._urls.get((reference, aws_conn_id), ("", 0.0))
        if time.time() < until:
            return url
        from botocore.exceptions import BotoCoreError, ParamValidationError

        bucket, key = split_s3_uri(reference)
        refusal = f"reference_images: {reference} cannot be presigned with aws_conn_id={aws_conn_id!r}"
        try:
            made = self._hook(aws_conn_id).generate_presigned_url(
                "get_object", {"Bucket": bucket, "Key": key}, expires_in=_PRESIGNED_FOR
            )
        except ParamValidationError as error:  # e.g. not the name of a bucket
            raise GptImgRequestError(f"{refusal}: {error}") from error
        except BotoCoreError as error:  # e.g. no credentials just now
            raise GptImgError(f"{refusal}: {error}") from error
        if not made:
            raise GptImgRequestError(refusal)
        url = str(made)
        _refuse_clear_text(url, refusal)
        if len(self._urls) < _MASKED_AT_MOST:
            mask_secret(url)
        self._urls[reference, aws_conn_id] = url, time.time() + _PRESIGNED_FOR / 2
        return url

    def _hook(self, aws_conn_id: str | None) -> S3Hook:
        if aws_conn_id not in self._hooks:
            from airflow.providers.amazon.aws.hooks.s3 import S3Hook
            from botocore.config import Config

            # botocore may still choose version 2, which newer regions, KMS and other stores refuse.
            config: Any = S3Hook(aws_conn_id=aws_conn_id).config or Config()
            config = config.merge(Config(signature_version="s3v4"))
            self._hooks[aws_conn_id] = S3Hook(aws_conn_id=aws_conn_id, config=config)
        return self._hooks[aws_conn_id]


def _refuse_clear_text(url: str, refusal: str) -> None:
    """Refuse a signature that would travel in the clear.

    :raises GptImgRequestError: The store's endpoint is `http://` on a host that is not loopback.
    """
    try:
        origin = Origin.of(url)
    except ValueError as error:
        raise GptImgRequestError(f"{refusal}: the URL would be refused, since {error}") from None
    if origin.scheme == "http" and not origin.is_loopback:
        raise GptImgRequestError(
            f"{refusal}: its URL would be on {origin}, in the clear, and most likely out of the API's reach. Give the "
            "AWS connection an https:// endpoint_url, or pass an https:// reference"
        )
