# SPDX-License-Identifier: Apache-2.0
"""A limited number of places for work that may be slow, fair between Dags, with threads of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

__all__ = ["BusyError", "Place", "Places"]

T = TypeVar("T")


class BusyError(Exception):
    """All places are taken, and enough others wait already."""


class Places:
    """Places for one kind of work. All calls come from one event loop.

    Each place has a thread of its own, so that nothing here can use up the threads of the server that it runs in.

    :param total: Places in all; `per_dag`: how many of them one Dag may take.
    :param waiting: Callers that may wait for a place; half of them for the same Dag.
    :param patience: Seconds after which a caller waits no longer.
    """

    def __init__(self, name: str, total: int, per_dag: int, waiting: int, patience: float) -> None:
        self._total = total
        self._per_dag = per_dag
        self._waiting = waiting
        self._patience = patience
        self._taken: Counter[str] = Counter()
        self._waiters: list[tuple[str, asyncio.Future[None]]] = []
        self._threads = ThreadPoolExecutor(total, thread_name_prefix=f"gptimg-{name}")

    @property
    def taken(self) -> int:
        """Number of places taken."""
        return self._taken.total()

    @asynccontextmanager
    async def take(self, dag_id: str) -> AsyncIterator[Place]:
        """Hold a place; wait for one if all are taken.

        :raises BusyError: All places stay taken for longer than the caller may wait.
        """
        if self._is_free(dag_id):
            self._taken[dag_id] += 1
        else:
            await self._wait(dag_id)
        place = Place(self._threads, lambda: self._release(dag_id))
        try:
            yield place
        finally:
            place.leave()

    def _is_free(self, dag_id: str) -> bool:
        return self.taken < self._total and self._taken[dag_id] < self._per_dag

    async def _wait(self, dag_id: str) -> None:
        of_dag = sum(waiter[0] == dag_id for waiter in self._waiters)
        if len(self._waiters) >= self._waiting or of_dag >= self._waiting // 2:
            raise BusyError
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((dag_id, turn))
        try:
            await asyncio.wait_for(asyncio.shield(turn), self._patience)
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn.done():  # the place came in the same moment
                self._release(dag_id)
            else:
                self._waiters.remove((dag_id, turn))
            if isinstance(error, TimeoutError):
                raise BusyError from None
            raise

    def _release(self, dag_id: str) -> None:
        self._taken[dag_id] -= 1
        self._taken += Counter()  # forget Dags that have none
        for waiter in list(self._waiters):
            if self._is_free(waiter[0]):
                self._waiters.remove(waiter)
                self._taken[waiter[0]] += 1
                waiter[1].set_result(None)


class Place:
    """A place. It is free again once its holder has left and its threads have ended: threads cannot be interrupted."""

    def __init__(self, threads: ThreadPoolExecutor, release: Callable[[], None]) -> None:
        self._threads = threads
        self._release = release
        self._uses = 1

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Return what `work` returns, called in a thread of the place."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        self._uses += 1
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def leave(self) -> None:
        """Give the place back, as soon as its threads have ended."""
        self._uses -= 1
        if not self._uses:
            self._release()

    def _ended(self, running: asyncio.Future[T]) -> None:
        if not running.cancelled():
            running.exception()  # seen, also where nobody waits for it any more
        self.leave()
