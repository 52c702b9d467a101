# SPDX-License-Identifier: Apache-2.0
"""Send pictures to viewers: within limits of time, size and number, and no longer than the viewer stays."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from fastapi import HTTPException
from fastapi.responses import JSONResponse, Response

from airflow_provider_gptimg.airflow_compat import create_session
from airflow_provider_gptimg.gallery.fetch import LONGEST, HostError, Opened
from airflow_provider_gptimg.gallery.pictures import NOT_HERE, PictureUnavailableError, open_picture
from airflow_provider_gptimg.gallery.places import BusyError, Place, Places
from airflow_provider_gptimg.gallery.recorded import Picture, Record
from airflow_provider_gptimg.gallery.records import Run, read_run
from airflow_provider_gptimg.gallery.runs import with_journal

__all__ = ["MOST_PICKS", "Pick", "PictureResponse", "ZipResponse", "bounded"]

MOST_PICKS = 40
"""Images in one zip."""

log: logging.Logger = logging.getLogger(__name__)

_RETRY_AFTER = 5
_LONGEST_ZIP = 300.0
_LARGEST_ZIP = 512 * 1024 * 1024
_BUSY = "Airflow shows enough images at the moment"


@dataclass(frozen=True)
class Pick:
    """One image of one task instance, as requested."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    image_task: str
    index: int

    @classmethod
    def read(cls, dag_id: str, run_id: str, text: str) -> Self:
        """Parse `task_id/map_index/image_task/index`.

        :raises HTTPException: The text has another form.
        """
        found = re.fullmatch(r"([^/]+)/(-1|\d{1,9})/([^/]+)/(\d{1,3})", text)
        if found is None:
            raise HTTPException(422, f"pick={text[:200]!r} is not task_id/map_index/image_task/index")
        return cls(dag_id, run_id, found[1], int(found[2]), found[3], int(found[4]))

    def find(self) -> tuple[Record, Picture] | None:
        """Return the picture and the task instance that recorded it; None: there is none."""
        with create_session(scoped=False) as session:
            run = read_run(session, self.dag_id, self.run_id, self.task_id, self.map_index)
        return self._find_in(run) or self._find_in(with_journal(run, self.dag_id, self.run_id))

    def _find_in(self, run: Run) -> tuple[Record, Picture] | None:
        for record in run.records:
            if picture := record.find(self.image_task, self.index):
                return record, picture
        return None

    def file_name(self, extension: str) -> str:
        """Return a name that is safe on any system."""
        return f"{re.sub(r'[^A-Za-z0-9._-]', '', self.image_task)[:100] or 'image'}-{self.index}{extension}"


@asynccontextmanager
async def bounded(places: Places, dag_id: str) -> AsyncIterator[Place]:
    """Hold a place.

    :raises HTTPException: All places are taken; the answer says when to ask again.
    """
    try:
        async with places.take(dag_id) as place:
            yield place
    except BusyError:
        raise HTTPException(503, _BUSY, {"retry-after": str(_RETRY_AFTER)}) from None


class _Bounded(Response, ABC):
    """A response that takes a place before it starts, and ends when its time is up or its viewer leaves."""

    seconds: float

    def __init__(self, places: Places, dag_id: str) -> None:
        super().__init__()
        self._places = places
        self._dag_id = dag_id

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sending = asyncio.create_task(self._answer(scope, receive, send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
        if not sending.cancelled() and (error := sending.exception()):
            raise error

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        begun = False

        async def send_noting(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self.seconds), bounded(self._places, self._dag_id) as place:
                await self._send(place, send_noting)
        except (HTTPException, PictureUnavailableError, HostError, TimeoutError) as error:
            if begun:
                # Left unfinished, so that the server cuts it and the viewer sees that it is not whole.
                log.warning("What was sent of Dag %r was cut: %s", self._dag_id, error or "it took too long")
                return
            answer = _problem(error)
            await answer(scope, receive, send)

    @abstractmethod
    async def _send(self, place: Place, send: Callable[[Any], Awaitable[None]]) -> None:
        """Send the answer's head and body.

        :raises PictureUnavailableError: There is nothing to show.
        :raises HostError: The host of the picture failed.
        """


class PictureResponse(_Bounded):
    """One image.

    :param known: The ETag of what the viewer has already.
    """

    seconds = LONGEST

    def __init__(self, places: Places, pick: Pick, *, is_download: bool, known: str | None) -> None:
        super().__init__(places, pick.dag_id)
        self._pick = pick
        self._is_download = is_download
        self._known = known

    async def _send(self, place: Place, send: Callable[[Any], Awaitable[None]]) -> None:
        pick = self._pick
        named = await place.run(pick.find)
        if named is None:
            raise PictureUnavailableError(NOT_HERE, 404)
        record, picture = named
        # Requested each time, so that permissions are checked each time; sent once.
        headers = {"cache-control": "private, no-cache", "etag": _etag(picture)}
        if self._known == headers["etag"]:
            return await _start(send, 304, headers, more=False)
        async with open_picture(place, pick.dag_id, record, picture) as opened:
            # Images are compressed already: this keeps Airflow from compressing them again.
            headers |= {"content-type": opened.content_type, "content-encoding": "identity"}
            if opened.size is not None:
                headers["content-length"] = str(opened.size)
            kind = "attachment" if self._is_download else "inline"
            headers["content-disposition"] = f'{kind}; filename="{pick.file_name(opened.extension)}"'
            await _start(send, 200, headers)
            async for chunk in opened.chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class ZipResponse(_Bounded):
    """Some images in one file, streamed: none of it is kept."""

    seconds = _LONGEST_ZIP

    def __init__(self, places: Places, picks: Sequence[Pick]) -> None:
        if not 0 < len(picks) <= MOST_PICKS:
            raise HTTPException(422, f"Pick 1 to {MOST_PICKS} images")
        super().__init__(places, picks[0].dag_id)
        self._picks = list(dict.fromkeys(picks))

    async def _send(self, place: Place, send: Callable[[Any], Awaitable[None]]) -> None:
        archive = _Archive()
        problems: list[str] = []
        size = 0
        is_begun = False
        for pick in self._picks:
            try:
                async with self._open(place, pick) as opened:
                    if not is_begun:
                        is_begun = True
                        await _start(send, 200, _ZIP_HEADERS)
                    with archive.entry(pick.file_name(opened.extension)) as entry:
                        async for chunk in opened.chunks:
                            size += len(chunk)
                            if size > _LARGEST_ZIP:
                                raise HostError(f"The zip is larger than {_LARGEST_ZIP >> 20} MiB")
                            entry.write(chunk)
                            await _send_body(send, archive.taken())
            except PictureUnavailableError as error:
                problems.append(f"{pick.file_name('')}: {error}")
                if len(problems) == len(self._picks):
                    raise
        if problems:
            with archive.entry("not-included.txt") as entry:
                entry.write("\n".join([*problems, ""]).encode())
        archive.close()
        await _send_body(send, archive.taken(), more=False)

    @asynccontextmanager
    async def _open(self, place: Place, pick: Pick) -> AsyncIterator[Opened]:
        named = await place.run(pick.find)
        if named is None:
            raise PictureUnavailableError(NOT_HERE, 404)
        async with open_picture(place, pick.dag_id, *named) as opened:
            yield opened


_ZIP_HEADERS = {
    "cache-control": "no-store",
    "content-type": "application/zip",
    "content-encoding": "identity",
    "content-disposition": 'attachment; filename="images.zip"',
}


class _Archive:
    """A zip file that is sent while it is written. It does not compress images, which would not get smaller."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._names: set[str] = set()
        self._zip = zipfile.ZipFile(self, "w", zipfile.ZIP_STORED)

    def write(self, data: bytes) -> int:
        """Take bytes of the zip. Without `tell` and `seek` here, zipfile knows that it cannot go back."""
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing."""

    def entry(self, name: str) -> Any:
        """Return a file to write an entry to."""
        stem, dot, extension = name.rpartition(".")
        number = 1
        while name in self._names:
            number += 1
            name = f"{stem}-{number}{dot}{extension}"
        self._names.add(name)
        return self._zip.open(zipfile.ZipInfo(name, time.localtime()[:6]), "w")

    def taken(self) -> bytes:
        """Return what was written since the last call."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    def close(self) -> None:
        """Write the list of entries."""
        self._zip.close()


def _problem(error: Exception) -> Response:
    match error:
        case HTTPException():
            status, text, headers = error.status_code, error.detail, error.headers
        case PictureUnavailableError():
            status, text, headers = error.status, str(error), None
        case TimeoutError():
            status, text, headers = 504, "It took too long", None
        case _:
            status, text, headers = 502, str(error), None
    return JSONResponse({"detail": text}, status, {"cache-control": "no-store", **(headers or {})})


async def _start(send: Any, status: int, headers: dict[str, str], *, more: bool = True) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    if not more:
        await _send_body(send, b"", more=False)


async def _send_body(send: Any, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _left(receive: Any) -> None:
    """Return when the viewer has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _etag(picture: Picture) -> str:
    said = picture.version or picture.url or f"{picture.bucket}/{picture.key}"
    return f'"{hashlib.sha256(said.encode()).hexdigest()[:32]}"'
