# SPDX-License-Identifier: Apache-2.0
"""Bodies decoded within a bound, whatever encoding they claim and however they are cut into chunks."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from airflow_provider_gptimg.hooks.decoding import BodyError, BodyTooLargeError, BoundedBody


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS = {"": bytes, "identity": bytes, "gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}


def read(encoding: str, chunks: list[bytes], max_bytes: int = 1000) -> bytes:
    body = BoundedBody(encoding, max_bytes)
    data = b"".join(piece for chunk in chunks for piece in body.feed(chunk))
    body.end()
    return data


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@given(st.binary(max_size=1000), st.sampled_from([*PACKERS, "raw"]), st.integers(1, 200))
def test_reads_what_was_written(data, encoding, size):
    packed = raw_deflate(data) if encoding == "raw" else PACKERS[encoding](data)
    assert read("deflate" if encoding == "raw" else encoding, cut(packed, size)) == data


@pytest.mark.parametrize("encoding", PACKERS)
def test_takes_as_much_as_allowed_and_no_more(encoding):
    pack = PACKERS[encoding]
    assert read(encoding, [pack(b"x" * 1000)]) == b"x" * 1000
    with pytest.raises(BodyTooLargeError, match="more than 1000 bytes"):
        read(encoding, [pack(b"x" * 1001)])


@pytest.mark.parametrize(
    "encoding", ["gzip, gzip", "gzip,deflate", "identity, gzip, gzip", "br", "zstd", "compress", "gzip;q=1"]
)
def test_accepts_nothing_stacked_and_nothing_that_was_not_asked_for(encoding):
    with pytest.raises(BodyError):
        BoundedBody(encoding, 1000)


def test_a_bomb_is_never_held():
    bomb = gzip.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError):
            read("gzip", [bomb], max_bytes=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("encoding", "start", "rest"),
    [
        ("gzip", b"\x1f\x8b\x08\x08\0\0\0\0\0\xff", b"A" * 1000),
        ("deflate", b"\x78\x9c", b"\0\0\0\xff\xff" * 200),
        ("deflate", b"", b"\0\0\0\xff\xff" * 200),
    ],
    ids=["name-without-end", "empty-blocks", "empty-raw-blocks"],
)
def test_bytes_that_decode_to_nothing_count_too(encoding, start, rest):
    with pytest.raises(BodyTooLargeError):
        read(encoding, [start, *[rest] * 10])


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", gzip.compress(b"cat")[:-1]),
        ("gzip", gzip.compress(b"cat") + b"x"),
        ("gzip", gzip.compress(b"cat") * 2),
        ("gzip", b"cat"),
        ("deflate", zlib.compress(b"cat")[:-1]),
        ("deflate", b"\x78"),
        ("deflate", b"cat"),
    ],
    # gzip writes the time, and workers that collect tests of other names refuse to run them.
    ids=["gzip-cut", "gzip-longer", "gzip-twice", "not-gzip", "deflate-cut", "deflate-begun", "not-deflate"],
)
def test_what_is_cut_or_something_else_is_an_error(encoding, data):
    for size in (1, 2, 100):
        with pytest.raises(BodyError):
            read(encoding, cut(data, size))


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", ""]), st.integers(1, 50))
def test_whatever_bytes_come(data, encoding, size):
    with suppress(BodyError):
        assert len(read(encoding, cut(data, size))) <= 1000
