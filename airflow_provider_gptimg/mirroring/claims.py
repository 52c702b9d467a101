# SPDX-License-Identifier: Apache-2.0
"""Confirm finished tasks that came from an XCom with the API: whoever writes XComs could plant an image."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_provider_gptimg.api.calls import poll_call
from airflow_provider_gptimg.api.tasks import COMPLETED, Image, ImageTask
from airflow_provider_gptimg.exceptions import GptImgMediaError, GptImgRequestError
from airflow_provider_gptimg.hooks.http import sync_client
from airflow_provider_gptimg.mirroring.objects import Source

if TYPE_CHECKING:
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

__all__ = ["Claims"]

_AT_ONCE = 8


class Claims:
    """Poll each claimed task once, in the background, over shared connections. Use it as a context manager.

    :param task_ids: Ids of tasks that are finished according to an XCom only.
    """

    def __init__(self, hook: GptImgHook, task_ids: Collection[str]) -> None:
        self._answers: dict[str, Future[ImageTask]] = {}
        self._stack = ExitStack()
        if task_ids:
            client = self._stack.enter_context(sync_client(hook.settings))
            pool = self._stack.enter_context(ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="gptimg-claims"))
            for task_id in task_ids:
                self._answers[task_id] = pool.submit(hook._converse, poll_call(task_id), client=client)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *error: object) -> None:
        for answer in self._answers.values():
            answer.cancel()  # else a mirror that fails or is stopped would poll all the others first
        self._stack.close()

    def confirm(self, source: Source) -> Source:
        """Wait for the API's answer, and return the image as the API knows it. Return any other image as it is.

        :raises GptImgError: The API contradicts the XCom, or does not answer.
        """
        if source.task_id not in self._answers:
            return source
        known = self._answers[source.task_id].result()
        if known.status != COMPLETED or source.index >= len(known.images):
            raise GptImgMediaError(
                f"{source} is not known to the API: it says {known.status!r} and {len(known.images)} images"
            )
        places = {_without_signature(image): index for index, image in enumerate(known.images)}
        place = places.get(_without_signature(source.image), source.index)
        if place != source.index:
            raise GptImgRequestError(
                f"gptimg_task_id: image {source.index} of finished task {source.task_id} is image {place} for the API: "
                "pass the finished task as it was"
            )
        return replace(source, image=known.images[source.index])


def _without_signature(image: Image) -> str:
    return image.url.partition("?")[0]
