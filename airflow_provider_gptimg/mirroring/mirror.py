# SPDX-License-Identifier: Apache-2.0
"""Copy hosted images into S3: exactly the image, or no object at all.

An image is streamed into a temporary file and checked there. Then one conditional PUT, whose checksum S3 verifies,
makes it visible. So the bucket never shows a cut, wrong or oversized image, no multipart upload is left behind, and
memory stays flat.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_gptimg.api.protocol import backoff
from airflow_provider_gptimg.api.tasks import Image, ImageTask
from airflow_provider_gptimg.api.texts import clean_url
from airflow_provider_gptimg.exceptions import GptImgError, GptImgMediaError, GptImgRequestError
from airflow_provider_gptimg.mirroring.claims import Claims
from airflow_provider_gptimg.mirroring.destination import KeyPattern
from airflow_provider_gptimg.mirroring.download import Download, Downloader, GoneError, TransientError
from airflow_provider_gptimg.mirroring.images import FORMATS
from airflow_provider_gptimg.mirroring.listing import LOOKS_AT_A_TIME, list_each
from airflow_provider_gptimg.mirroring.marks import LARGEST_METADATA
from airflow_provider_gptimg.mirroring.objects import MirroredObject, Source, image_metadata, is_same, read_own
from airflow_provider_gptimg.mirroring.s3_errors import bucket_refusal
from airflow_provider_gptimg.mirroring.store import Content, S3Store, read_etag
from airflow_provider_gptimg.telemetry import count, span

if TYPE_CHECKING:
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

__all__ = ["Mirror", "MirroredObject"]

_IN_MEMORY = 1024 * 1024
_DOWNLOAD_ATTEMPTS = 4
_GONE_ATTEMPTS = 5
"""Downloads of an image that is missing. With the pauses between them, a host may lag by some ten seconds."""
_REFUSALS = 4
"""Refused objects, none accepted, after which nothing more is downloaded."""


class Mirror:
    """Copies images into S3, several at a time, with one S3 client. Use it as a context manager.

    :param replace: Overwrite objects that are not the image.
    :param max_image_bytes: Larger images are refused.
    :param concurrency: Images under way at a time.
    :param dag_id: Id of the DAG, for the objects' metadata; None: unknown.
    :param require_c2pa: Refuse images without a C2PA manifest.
    """

    def __init__(
        self,
        hook: GptImgHook,
        store: S3Store,
        pattern: KeyPattern,
        *,
        replace: bool,
        max_image_bytes: int,
        concurrency: int,
        dag_id: str | None = None,
        require_c2pa: bool = False,
        log: Any,
    ) -> None:
        self._hook = hook
        self._settings = hook.settings
        self._store = store
        self._pattern = pattern
        self._replace = replace
        self._concurrency = concurrency
        self._dag_id = dag_id
        self.require_c2pa = require_c2pa
        self._log = log
        self._downloader = Downloader(hook.settings, max_image_bytes)
        self.refusal: GptImgRequestError | None = None
        """The reason why S3 accepts nothing from us. Once it is set, nothing more is downloaded."""
        self._refused = 0
        self._has_put = False
        self._taken: set[str] = set()
        """Keys that were seen to hold something else than the image."""

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *error: object) -> None:
        self._downloader.close()

    def copy(
        self, tasks: Iterable[ImageTask], claimed: Collection[str] = ()
    ) -> dict[str, list[MirroredObject] | GptImgError]:
        """Copy all images of completed tasks. A failure does not keep the others from their places.

        :param claimed: Ids of the tasks that came from an XCom: the API confirms their images before anything is
            downloaded, so that nobody can put another image in their place.
        :returns: For each task, its objects or the first error among its images.
        :raises GptImgRequestError: Two images would go to the same key.
        """
        sources = [
            Source(task.task_id, index, image)
            for task in {task.task_id: task for task in tasks}.values()
            for index, image in enumerate(task.images)
        ]
        self._check_keys(sources)
        with span("mirror", images=len(sources)):
            found = self._look(sources)
            missing = [source for source in sources if source not in found]
            unconfirmed = {source.task_id: None for source in missing if source.task_id in claimed}
            with (
                Claims(self._hook, unconfirmed) as claims,
                ThreadPoolExecutor(self._concurrency, thread_name_prefix="gptimg-mirror") as pool,
            ):
                copies = pool.map(lambda source: self._copy_or_error(source, claims), missing)
                found.update(zip(missing, copies, strict=True))
        _count(found.values())
        results: dict[str, list[MirroredObject] | GptImgError] = {}
        for source in sources:
            result, outcome = results.setdefault(source.task_id, []), found[source]
            if isinstance(result, list):
                if isinstance(outcome, GptImgError):
                    results[source.task_id] = outcome
                else:
                    result.append(outcome)
        return results

    def find(self, task_id: str, images: int) -> list[MirroredObject] | None:
        """Return the objects that earlier runs made of an image task, if all its images are in their place; else None.

        :param images: How many it has.
        :raises GptImgError: S3 does not tell.
        """
        sources = [Source(task_id, index, Image("")) for index in range(images)]
        found = self._look(sources)
        for outcome in found.values():
            if isinstance(outcome, GptImgError) and not isinstance(outcome, GptImgMediaError):
                raise outcome
        objects = [found.get(source) for source in sources]
        return [each for each in objects if isinstance(each, MirroredObject)] if all(objects) else None

    def _check_keys(self, sources: Iterable[Source]) -> None:
        taken: dict[str, Source] = {}
        for source in sources:
            key = self._pattern.key(source.task_id, source.index, ".")
            if other := taken.get(key):
                raise GptImgRequestError(
                    f"s3_key={self._pattern.pattern!r} gives two images the same key, {other} and {source}: put "
                    "{task_id} and {index} into it"
                )
            taken[key] = source

    def _look(self, sources: Sequence[Source]) -> dict[Source, MirroredObject | GptImgError]:
        """Return the objects of earlier runs, and an error for each image that could not be looked up in S3."""
        prefixes = {source.task_id: self._pattern.prefix(source.task_id) for source in sources}
        listed = self._list(prefixes)
        there = {source: self._keys_there(source, listed.get(source.task_id)) for source in sources}
        there = {source: keys for source, keys in there.items() if keys}
        self._taken.update(key for source, keys in there.items() if listed.get(source.task_id) for key in keys)
        with ThreadPoolExecutor(LOOKS_AT_A_TIME, thread_name_prefix="gptimg-look") as pool:
            looks = pool.map(self._find_or_error, there.keys(), there.values())
            return {source: known for source, known in zip(there, looks, strict=True) if known}

    def _list(self, prefixes: Mapping[str, str | None]) -> Mapping[str, Mapping[str, int] | None]:
        try:
            return list_each(self._store, self._pattern.bucket, prefixes)
        except GptImgError as error:
            if isinstance(error, GptImgRequestError):
                self.refusal = bucket_refusal(error, self._pattern.argument) or error
            else:
                self._log.warning("%s; asking for each image instead", error)
        return {}

    def _keys_there(self, source: Source, listed: Collection[str] | None) -> list[str]:
        """Return the keys under which an earlier run may have written this image, the likeliest first.

        :param listed: All existing keys of its image task; None if that is not known.
        """
        declared = next((known for known in FORMATS if known.content_type == source.image.content_type), FORMATS[0])
        formats = (declared, *(known for known in FORMATS if known is not declared))
        keys = dict.fromkeys(self._pattern.key(source.task_id, source.index, known.extension) for known in formats)
        return [key for key in keys if listed is None or key in listed]

    def _find_or_error(self, source: Source, keys: Iterable[str]) -> MirroredObject | GptImgError | None:
        try:
            return self._find(source, keys)
        except GptImgError as error:
            self._log.error("%s", error)
            return error

    def _find(self, source: Source, keys: Iterable[str]) -> MirroredObject | None:
        """Return the object among `keys` that an earlier run wrote for this image."""
        if self.refusal:
            return None
        for key in keys:
            head = self._store.head(self._pattern.bucket, key)
            if head and (known := read_own(head, self._pattern.bucket, key, source)):
                if not self.require_c2pa or known.c2pa:
                    return known
                if known.c2pa is False:
                    raise _without_c2pa(source, f", and is at {known.uri} since an earlier run")
                self._taken.add(key)  # a release that did not look for one mirrored it: download it once more, and look
                return None
            if head:
                self._taken.add(key)
        return None

    def _copy_or_error(self, source: Source, claims: Claims) -> MirroredObject | GptImgError:
        try:
            return self._copy(claims.confirm(source))
        except GptImgError as error:
            self._log.error("%s", error)
            return error

    def _copy(self, source: Source) -> MirroredObject:
        if self.refusal:
            raise self.refusal
        self._settings.check_media_url(source.image.url)
        with SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
            download, url = self._fetch(source, file)
            if self.require_c2pa and not download.c2pa:
                raise _without_c2pa(source, ": nothing was stored")
            mirrored = self._put(source, url, file, download)
        verb = "is there already" if mirrored.skipped else "mirrored"
        self._log.info("%s %s: %s, %d bytes, sha256 %s", source, verb, mirrored.uri, mirrored.size, mirrored.sha256)
        return mirrored

    def _fetch(self, source: Source, file: IO[bytes]) -> tuple[Download, str]:
        """Download the image, again if that may help. If its URL is gone, ask the API for another."""
        url, attempt, gone, asked = source.image.url, 0, 0, False
        while True:
            attempt += 1
            file.seek(0)
            file.truncate()
            try:
                return self._downloader.download(url, file, str(source)), url
            except GoneError as error:
                gone += 1
                if not asked:
                    asked = True
                    images = self._hook.get_task(source.task_id).images
                    if source.index < len(images) and images[source.index].url != url:
                        url = self._settings.check_media_url(images[source.index].url)
                        continue
                if gone >= (2 if error.for_good else _GONE_ATTEMPTS):
                    raise GptImgMediaError(f"{source} is gone from {clean_url(url)}: {error}") from error
                self._pause(source, error, gone)
            except TransientError as error:
                if attempt >= _DOWNLOAD_ATTEMPTS:
                    raise GptImgMediaError(
                        f"{source} could not be downloaded from {clean_url(url)}: {error}"
                    ) from error
                self._pause(source, error, attempt)

    def _pause(self, source: Source, error: Exception, failures: int) -> None:
        pause = backoff(failures, None, random.uniform)
        self._log.warning("%s: %s; trying again in %.1f s", source, error, pause)
        time.sleep(pause)

    def _put(self, source: Source, url: str, file: IO[bytes], download: Download) -> MirroredObject:
        bucket, key = self._pattern.bucket, self._pattern.key(source.task_id, source.index, download.format.extension)
        room = LARGEST_METADATA - self._store.metadata_size
        content = Content(
            file=file,
            size=download.size,
            digest=download.digest,
            content_type=download.format.content_type,
            metadata=image_metadata(source, url, download, self._dag_id, room),
        )
        etag = None
        if self._replace or key not in self._taken:  # a store may ignore the condition
            etag = self._put_or_refuse(bucket, key, content)
        skipped = etag is None
        if etag is None:
            # The key was taken before; perhaps by this very PUT, whose answer was lost.
            head = self._store.head(bucket, key) or self._store.head(bucket, key, with_checksum=False) or {}
            known = read_own(head, bucket, key, source)
            if known and known.sha256 == download.digest.hex():
                return replace(known, c2pa=download.c2pa)
            if not is_same(head, file, download):
                raise GptImgRequestError(
                    f"s3://{bucket}/{key} exists and is not this image: choose another s3_key, or set replace=True to "
                    "overwrite it"
                )
            etag = read_etag(head)
        return MirroredObject(
            bucket=bucket,
            key=key,
            task_id=source.task_id,
            index=source.index,
            source_url=url,
            content_type=download.format.content_type,
            size=download.size,
            sha256=download.digest.hex(),
            etag=etag,
            skipped=skipped,
            pixels=download.pixels,
            c2pa=download.c2pa,
        )

    def _put_or_refuse(self, bucket: str, key: str, content: Content) -> str | None:
        """Put an object, and note when S3 accepts none from us."""
        try:
            etag = self._store.put(bucket, key, content, {} if self._replace else {"IfNoneMatch": "*"})
        except GptImgRequestError as error:
            # Perhaps only this key is locked or too long. If S3 has accepted no other key either, the cause is wider.
            self._refused += 1
            if self._refused >= _REFUSALS and not self._has_put:
                self.refusal = error
            raise
        self._has_put = True
        return etag


def _without_c2pa(source: Source, where: str) -> GptImgMediaError:
    return GptImgMediaError(
        f"{source} has no C2PA manifest, and require_c2pa=True refuses it{where}. Each attempt meets the same image: "
        "generate other images, or leave out require_c2pa"
    )


def _count(outcomes: Iterable[MirroredObject | GptImgError]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, GptImgError):
            count("mirrored_images", outcome="failed")
        elif outcome.skipped:
            count("mirrored_images", outcome="skipped")
        else:
            count("mirrored_images", outcome="mirrored")
            count("mirrored_bytes", outcome.size)
