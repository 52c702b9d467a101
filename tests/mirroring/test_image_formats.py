# SPDX-License-Identifier: Apache-2.0
"""What an image's bytes say of it: real pictures, whole and cut, in whatever pieces they come."""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st
from PIL import Image

from airflow_provider_gptimg.mirroring.images import (
    FORMATS,
    HEAD_BYTES,
    JPEG,
    PNG,
    WEBP,
    ImageFormat,
    ImageReader,
    read_format,
)

OPTIONS = {
    "png": {"format": "PNG"},
    "png-optimized": {"format": "PNG", "optimize": True},
    "webp": {"format": "WEBP", "quality": 60},
    "webp-lossless": {"format": "WEBP", "lossless": True},
    "webp-animated": {"format": "WEBP", "save_all": True},
    "jpeg": {"format": "JPEG"},
    "jpeg-progressive": {"format": "JPEG", "progressive": True},
    "jpeg-restarts": {"format": "JPEG", "restart_marker_blocks": 1},
    "jpeg-thumbnail": {"format": "JPEG"},
}

# The start of EXIF: a first directory without entries, and a second one that says nothing but where a thumbnail is.
TIFF = b"II*\0\x08\0\0\0" + b"\0\0" + b"\x0e\0\0\0" + struct.pack("<HHHLLL", 1, 0x0201, 4, 1, 32, 0)


@cache
def picture(name: str, width: int = 40, height: int = 30) -> bytes:
    """Return a file as Pillow writes it, of noise, so that it has some length."""
    noise = random.Random(f"{name}{width}{height}").randbytes(width * height * 3)
    image = Image.frombytes("RGB", (width, height), noise)
    options = dict(OPTIONS[name])
    if "animated" in name:
        options["append_images"] = [image.rotate(90)]
    if "thumbnail" in name:
        options["exif"] = b"Exif\0\0" + TIFF + picture("jpeg", 8, 6)
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def format_of(name: str) -> ImageFormat:
    found = read_format(picture(name))
    assert found is not None
    return found


def followed(image_format: ImageFormat, *pieces: bytes) -> ImageReader:
    finder = ImageReader(image_format)
    for piece in pieces:
        finder.feed(piece)
    return finder


def cut_up(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(at)]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


names = st.sampled_from(sorted(OPTIONS))
places = st.lists(st.integers(0, 200) | st.integers(0, 10_000), max_size=12)
sizes = st.tuples(st.integers(1, 50), st.integers(1, 50))

IMAGES = pytest.mark.parametrize("name", sorted(OPTIONS))


@pytest.mark.parametrize(
    ("name", "image_format", "content_type", "extension"),
    [
        ("png", PNG, "image/png", ".png"),
        ("jpeg", JPEG, "image/jpeg", ".jpg"),
        ("webp", WEBP, "image/webp", ".webp"),
    ],
)
def test_the_first_bytes_tell_the_format(name, image_format, content_type, extension):
    found = read_format(picture(name)[:HEAD_BYTES])
    assert found is image_format
    assert found in FORMATS
    assert (found.content_type, found.extension) == (content_type, extension)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"<!DOCTYPE htm",
        b"GIF89a......",
        b"BM..........",
        b"%PDF-1.7....",
        b"\x89PNG\n\x1a\n....",
        b"\xff\xd8......",
        b"RIFF....WAVE",
        b"....WEBP....",
        b"\x00\x00\x00\x1cftypavif",
        b"<svg xmlns=..",
    ],
)
def test_another_file_is_no_image(head):
    assert read_format(head) is None


@given(names, sizes, places)
def test_a_whole_image_is_whole_in_whatever_pieces_it_comes(name, size, places):
    data = picture(name, *size)
    finder = followed(format_of(name), *cut_up(data, places))
    assert not finder.is_cut
    assert finder.ends_well


@given(names, sizes, places, st.data())
def test_a_cut_image_is_cut_in_whatever_pieces_it_comes(name, size, places, choose):
    data = picture(name, *size)
    part = data[: choose.draw(st.integers(HEAD_BYTES, len(data) - 1))]
    finder = followed(format_of(name), *cut_up(part, places))
    assert finder.is_cut
    assert not finder.ends_well


@IMAGES
def test_each_cut_of_an_image_is_seen(name):
    data = picture(name, 9, 9)
    whole = [end for end in range(HEAD_BYTES, len(data) + 1) if not followed(format_of(name), data[:end]).is_cut]
    assert whole == [len(data)]


@pytest.mark.parametrize("size", range(1, 40))
@pytest.mark.parametrize("name", [name for name in sorted(OPTIONS) if "jpeg" in name])
def test_a_jpeg_ends_at_its_end_in_pieces_of_any_size(name, size):
    data = picture(name, 9, 9)
    finder, pieces = ImageReader(JPEG), cut_up(data, list(range(0, len(data), size)))
    for piece in pieces[:-1]:
        finder.feed(piece)
        assert finder.is_cut
    finder.feed(pieces[-1])
    assert not finder.is_cut


@IMAGES
def test_byte_for_byte(name):
    data = picture(name)
    finder = followed(format_of(name), *(data[i : i + 1] for i in range(len(data))))
    assert finder.ends_well
    assert not finder.is_cut


def test_the_end_of_a_thumbnail_is_not_the_end():
    data = picture("jpeg-thumbnail")
    thumbnail = picture("jpeg", 8, 6)
    end = data.index(thumbnail) + len(thumbnail)
    finder = followed(JPEG, data[:end])
    assert finder.is_cut
    assert not finder.ends_well


def test_padding_before_the_segments_of_a_jpeg_does_no_harm():
    data = picture("jpeg")
    padded = data[:2] + b"\xff" * 20 + data[2:]
    assert not followed(JPEG, padded).is_cut
    assert followed(JPEG, padded[:-1]).is_cut


def test_a_jpeg_by_its_first_bytes_alone_is_not_held_against_a_structure():
    assert not followed(JPEG, b"\xff\xd8\xff\xe0\0\x02", b"not really a picture").is_cut


@pytest.mark.parametrize("after", [b"\0", b"\0" * 50, b"trailing"], ids=repr)
@IMAGES
def test_bytes_after_the_end_do_no_harm(name, after):
    finder = followed(format_of(name), picture(name), after)
    assert not finder.is_cut
    assert finder.ends_well


@IMAGES
def test_another_image_after_the_end_does_no_harm(name):
    """As MPO has it, the format of cameras with two lenses."""
    assert followed(format_of(name), picture(name), picture("jpeg")).ends_well


@pytest.mark.parametrize("filler", [b"\0", b"\0" * 50, b"between", b"\xff\xff", b"\x00\xff\x00"], ids=repr)
def test_filler_between_the_segments_of_a_jpeg_is_skipped(filler):
    data = picture("jpeg", 40, 30)
    filled = data[:20] + filler + data[20:]  # after its first segment
    assert Image.open(io.BytesIO(filled)).size == (40, 30)
    reader = followed(JPEG, *(filled[i : i + 1] for i in range(len(filled))))
    assert (reader.pixels, reader.is_cut, reader.ends_well) == ((40, 30), False, True)
    assert followed(JPEG, filled[:-1]).is_cut


@pytest.mark.parametrize("place", ["before the data", "between the scans"])
def test_an_end_marker_inside_of_a_comment_is_not_the_end(place):
    data = picture("jpeg-progressive")
    comment = b"\xff\xfe\x00\x06\xff\xd9\xff\xd9"
    second_scan = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    at = 2 if place == "before the data" else second_scan
    whole = data[:at] + comment + data[at:]
    Image.open(io.BytesIO(whole)).load()
    assert not followed(JPEG, whole).is_cut
    assert all(followed(JPEG, whole[:end]).is_cut for end in range(at + len(comment), len(whole)))


def test_a_png_with_many_chunks_of_any_length_is_followed_to_its_end():
    data = picture("png")
    extra = b"".join(chunk(b"teXt", bytes(length)) for length in (0, 1, 7, 8, 9, 5000))
    whole = data[:33] + extra + data[33:]
    assert not followed(PNG, whole).is_cut
    assert all(followed(PNG, whole[:end]).is_cut for end in range(HEAD_BYTES, len(whole), 11))


def test_iend_inside_of_a_chunk_is_not_the_end():
    data = picture("png")
    inner = chunk(b"teXt", chunk(b"IEND", b""))
    assert followed(PNG, data[:33] + inner).is_cut


def test_a_png_by_its_signature_alone_is_not_held_against_a_structure():
    """Small stand-ins in tests of DAGs often are no more than a signature and some bytes."""
    finder = followed(PNG, b"\x89PNG\r\n\x1a\n", b"not really a picture")
    assert not finder.is_cut
    assert not finder.ends_well


@given(st.sampled_from(FORMATS), st.lists(st.binary(max_size=20), max_size=10))
def test_no_bytes_are_too_strange(image_format, pieces):
    finder = followed(image_format, *pieces)
    assert isinstance(finder.is_cut, bool)
    assert isinstance(finder.ends_well, bool)


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_no_png_is_too_strange(pieces):
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + b"".join(pieces)
    assert followed(PNG, data).is_cut == followed(PNG, *(data[i : i + 1] for i in range(len(data)))).is_cut
