# SPDX-License-Identifier: Apache-2.0
"""One thread ends all calls whose time is up, in a forked process too."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from airflow_provider_gptimg.hooks.time_limit import TimeLimit

LONG = 600.0
SHORT = 0.05


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    theirs.settimeout(30)
    with ours, theirs:
        yield ours, theirs


def take(limit: TimeLimit, connection: socket.socket) -> TimeLimit:
    limit.take(SimpleNamespace(get_extra_info=lambda name: connection))
    return limit


def wait_until_over(limit: TimeLimit) -> None:
    give_up_at = time.monotonic() + 30
    while not limit.is_over:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_short_calls_end_in_their_time_beside_long_ones(ends):
    ours, theirs = ends
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(TimeLimit(LONG))
        with TimeLimit(SHORT) as first:  # once it is over, the thread sleeps until the long ones end
            wait_until_over(first)
        with take(TimeLimit(SHORT), ours) as limit:
            wait_until_over(limit)
        assert theirs.recv(1) == b"", "the connection is closed"
        assert sum(thread.name == "gptimg-time-limit" for thread in threading.enumerate()) == 1


def test_one_call_does_not_keep_the_others_from_their_end(ends):
    ours, theirs = ends
    with TimeLimit(SHORT) as broken:
        broken.take(SimpleNamespace())  # has no connection
        wait_until_over(broken)
    with take(TimeLimit(SHORT), ours) as limit:
        wait_until_over(limit)
    assert theirs.recv(1) == b""


def test_a_call_that_has_ended_keeps_its_connection(ends):
    ours, theirs = ends
    with take(TimeLimit(SHORT), ours) as limit:
        limit.allow(LONG)
    with TimeLimit(SHORT) as other:
        wait_until_over(other)
    ours.sendall(b"x")
    assert theirs.recv(1) == b"x"
    assert not limit.is_over


def test_a_forked_process_ends_its_own(ends):
    ours, theirs = ends
    with TimeLimit(LONG):
        child = os.fork()
        if child == 0:
            try:
                with take(TimeLimit(SHORT), ours):
                    os._exit(0 if theirs.recv(1) == b"" else 1)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
