# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes an answer has, they come to an image task or an error of ours, within bounds.

A short run by default; `make fuzz` tries a million answers.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import random
import resource
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import Phase, given, seed, settings, strategies as st

from airflow_provider_gptimg.api.answers import judge_probe
from airflow_provider_gptimg.api.calls import Call, poll_call, probe_call, submit_call
from airflow_provider_gptimg.api.protocol import converse
from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import MAX_IMAGES, ImageTask
from airflow_provider_gptimg.api.texts import unsendable
from airflow_provider_gptimg.exceptions import GptImgError, GptImgSubmissionUnknownError
from airflow_provider_gptimg.hooks.connection import ConnectionSettings
from airflow_provider_gptimg.hooks.http import MAX_ANSWER, _receive, make_answer
from airflow_provider_gptimg.hooks.origin import Origin

ANSWERS = int(os.environ.get("FUZZ_ANSWERS", "4000"))
MUTANTS = 20
"""Answers made of each example."""
BATCH = 1000
"""Examples in one run of hypothesis, which remembers them all."""
KEY = "sk-0123456789"
SETTINGS = ConnectionSettings("c", "https://gptimg.co", Origin.of("https://gptimg.co"), KEY)
TASK_ID = "gpt-image-2-x"
CALLS = (poll_call(TASK_ID), submit_call(ImageRequest.check("a cat"), "image_urls"), probe_call())

texts = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(
    [KEY, TASK_ID, "https://file.gptimg.co/x.png?Signature=s", "\0", "\x1b[31m", "\u202e", "None", "x" * 5000]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


def nearly(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with these fields, any of which may be missing or be something else."""
    return st.fixed_dictionaries({}, optional={name: value | json_values for name, value in fields.items()})


images = st.lists(nearly(url=texts, content_type=texts) | texts, max_size=8)
errors = nearly(code=texts, message=texts, request_id=texts)
tasks = nearly(
    task_id=st.just(TASK_ID) | texts,
    id=texts,
    status=st.sampled_from(["processing", "completed", "failed", "queued"]) | texts,
    images=images,
    media_url=texts,
    error=errors | texts,
    created_at=st.datetimes().map(str) | texts,
    updated_at=st.datetimes().map(str) | texts,
)
payloads = nearly(success=st.booleans(), data=tasks, error=errors, code=texts, message=texts, request_id=texts)
header_lines = st.lists(
    st.tuples(
        st.sampled_from([b"Date", b"Retry-After", b"X-Request-Id", b"X-Other"]),
        st.binary(max_size=30) | st.sampled_from([b"7", b"1e999", b"Wed, 22 Apr 2026 00:13:20 GMT", KEY.encode()]),
    ),
    max_size=4,
)
ENCODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"": bytes,
    b"gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"gzip, gzip": lambda body: gzip.compress(gzip.compress(body)),
    b"br": bytes,
}


def mutants(payload: Any, headers: list[tuple[bytes, bytes]], luck: random.Random) -> Iterator[httpx.Response]:
    """Yield answers that hold `payload`, whole and then damaged."""
    whole = json.dumps(payload, ensure_ascii=luck.random() < 0.5).encode(errors="surrogatepass")
    for number in range(MUTANTS):
        body = bytearray(whole)
        if number % 4 == 1:
            del body[luck.randrange(len(body) + 1) :]
        elif number % 4 == 2:
            for _ in range(luck.randint(1, 5)):
                body[luck.randrange(len(body))] = luck.randrange(256)
        elif number % 4 == 3:
            at = luck.randrange(len(body) + 1)
            body[at:at] = luck.choice([b"[" * 5000, b"9" * 5000, b"\\ud800", b"\\u0000", KEY.encode(), bytes(70_000)])
        coding = luck.choice([b"", b"", b"", *ENCODERS])
        wire = bytearray(ENCODERS[coding](bytes(body)))
        if coding and luck.random() < 0.3 and wire:
            wire[luck.randrange(len(wire))] ^= 1 << luck.randrange(8)
        size = luck.choice([1 + len(wire) // 7, 65_536])
        yield httpx.Response(
            luck.choice([200, 200, 200, 201, 204, 302, 400, 401, 402, 403, 404, 409, 422, 429, 500, 502, 599, 999]),
            headers=[*headers, *([(b"Content-Encoding", coding)] if coding else [])],
            stream=Chunks([bytes(wire[start : start + size]) for start in range(0, len(wire), size)]),
        )


class Chunks(httpx.SyncByteStream):
    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)


def came_to(call: Call, response: httpx.Response) -> ImageTask | GptImgError:
    body, flaw = _receive(response)
    assert len(body) <= MAX_ANSWER
    answer = make_answer(response.status_code, response.headers.raw, body, flaw, SETTINGS)
    if call is CALLS[2]:
        verdict, words = judge_probe(answer)
        assert isinstance(verdict, bool)
        assert words.isprintable()
        assert KEY not in words
    conversation = converse(call, max_attempts=1)
    next(conversation)
    try:
        conversation.send(answer)
    except StopIteration as done:
        return done.value
    except GptImgError as error:
        return error
    raise AssertionError("the conversation went on")


def check(call: Call, response: httpx.Response) -> float:
    """Return the CPU seconds that an answer took, but for the garbage of the tests before it."""
    gc.disable()
    started = time.thread_time()
    result = came_to(call, response)
    taken = time.thread_time() - started
    gc.enable()
    if isinstance(result, ImageTask):
        assert len(result.images) <= MAX_IMAGES
        shown = json.dumps(result.as_dict(), ensure_ascii=False)
        assert unsendable(shown) is None
        assert "\\u0000" not in shown
    else:
        shown = f"{result} {json.dumps(result.as_dict(), ensure_ascii=False)}"
        assert str(result).isprintable()
        assert call.is_submit or not isinstance(result, GptImgSubmissionUnknownError)
        assert "?Signature=" not in shown
    assert KEY not in shown
    return taken


@pytest.mark.timeout(3600)
def test_no_answer_is_too_strange() -> None:
    slowest, tried = 0.0, 0

    def batch(number: int, examples: int) -> None:
        @seed(number)
        @settings(max_examples=examples, phases=[Phase.generate], database=None, deadline=None)
        @given(payloads | json_values, header_lines)
        def run(payload: Any, headers: list[tuple[bytes, bytes]]) -> None:
            nonlocal slowest, tried
            luck = random.Random(tried)
            for response in mutants(payload, headers, luck):
                slowest = max(slowest, check(luck.choice(CALLS), response))
                tried += 1

        run()

    batch(0, min(BATCH, ANSWERS // MUTANTS))
    before, number = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 1
    while tried < ANSWERS:
        batch(number, min(BATCH, -(-(ANSWERS - tried) // MUTANTS)))
        number += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{tried:,} answers, the slowest {1000 * slowest:.1f} ms of CPU, peak memory +{grown:.1f} MiB")
    assert grown < 32
