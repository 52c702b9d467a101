# SPDX-License-Identifier: Apache-2.0
"""C2PA manifests: recognized while an image streams, recorded wherever it is mirrored, required where asked for."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from mirroring_images import picture

pytest.importorskip("c2pa")  # the matrix does not install it
from content_credentials import signed

from airflow_provider_gptimg.exceptions import GptImgMediaError
from airflow_provider_gptimg.mirroring.images import ImageReader, read_format

FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
PIECES = [1, 2, 3, 7, 11, 64, 1000, 1 << 20]


def with_manifest(image_format: str = "PNG", **options: Any) -> bytes:
    return signed(picture(image_format=image_format), FORMATS[image_format], **options)


def read(content: bytes, piece: int = 1 << 20) -> ImageReader:
    """Return what a reader knows after all bytes, which come in pieces of one size."""
    image_format = read_format(content)
    assert image_format
    reader = ImageReader(image_format)
    reader.feed(content[:12])
    for start in range(12, len(content), piece):
        reader.feed(content[start : start + piece])
    return reader


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("piece", PIECES)
def test_a_manifest_is_seen_however_the_bytes_arrive(image_format, piece):
    reader = read(with_manifest(image_format), piece)
    assert reader.c2pa
    assert reader.pixels == (40, 30)
    assert not reader.is_cut


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("piece", PIECES)
def test_an_image_without_one_has_none(image_format, piece):
    reader = read(picture(image_format=image_format), piece)
    assert not reader.c2pa
    assert reader.pixels == (40, 30)
    assert not reader.is_cut


def test_a_manifest_of_several_segments_is_seen():
    content = with_manifest("JPEG", thumbnail=random.Random(1).randbytes(200_000))
    assert len(re.findall(rb"\xff\xeb..JP", content, re.DOTALL)) > 1
    assert read(content, 100).c2pa


def test_the_words_alone_are_no_manifest():
    """In the pixels, in a comment, in a JUMBF box of another kind, or after the image's end."""
    words = b"caBX C2PA jumb jumdc2pa"
    jpeg, png, webp = (picture(image_format=image_format) for image_format in ("JPEG", "PNG", "WEBP"))
    comment = b"\xff\xfe" + (len(words) + 2).to_bytes(2, "big") + words
    other_box = b"JP\x00\x01\x00\x00\x00\x01" + b"\x00\x00\x00\x21jumb\x00\x00\x00\x19jumdjson" + bytes(13)
    other = b"\xff\xeb" + (len(other_box) + 2).to_bytes(2, "big") + other_box
    text = len(words).to_bytes(4, "big") + b"tEXt" + words + bytes(4)
    for content in (
        jpeg[:2] + comment + other + jpeg[2:],
        jpeg + with_manifest("JPEG"),
        png[:33] + text + png[33:],
        png + with_manifest("PNG")[33:],
        webp + b"C2PA\x04\x00\x00\x00c2pa",
    ):
        assert not read(content).c2pa


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_cut_image_with_a_manifest_is_cut(image_format):
    assert read(with_manifest(image_format)[:-20]).is_cut


@pytest.mark.parametrize("image_format", FORMATS)
def test_result_metadata_and_manifest_say_so(emulator, s3, mirror, image_format):
    contents = [with_manifest(image_format), picture(image_format=image_format)]
    task_id = emulator.add_task(image_bytes=contents, n=2, formats=[image_format.lower()])
    objects = mirror(task_id, manifest_key="manifest.jsonl")
    assert [mirrored["c2pa"] for mirrored in objects] == [True, False]
    for mirrored, content, mark in zip(objects, contents, ["true", "false"], strict=True):
        stored = s3.get_object(Bucket="images", Key=mirrored["key"])
        assert stored["Metadata"]["gptimg-c2pa"] == mark
        assert stored["Body"].read() == content
    assert [row["c2pa"] for row in rows(s3)] == [True, False]
    skipped = mirror(task_id)
    assert [mirrored["c2pa"] for mirrored in skipped] == [True, False]
    assert all(mirrored["skipped"] for mirrored in skipped)


def test_an_image_without_a_manifest_is_refused(emulator, s3, mirror):
    task_id = emulator.add_task(n=2, image_bytes=[with_manifest(), picture()])
    with pytest.raises(GptImgMediaError, match=r"Image 1 of .* has no C2PA manifest.*require_c2pa"):
        mirror(task_id, require_c2pa=True)
    assert keys(s3) == [f"gptimg/{task_id}/0.png"]


def test_an_object_without_a_manifest_is_refused_later_too(emulator, s3, mirror):
    task_id = emulator.add_task(image_bytes=picture())
    mirror(task_id)
    with pytest.raises(GptImgMediaError, match="has no C2PA manifest"):
        mirror(task_id, require_c2pa=True)
    assert len(image_calls(emulator)) == 1, "its mark was enough"


@pytest.mark.parametrize("has_manifest", [True, False])
def test_an_object_of_an_older_release_is_looked_at_only_where_that_counts(emulator, s3, mirror, has_manifest):
    """It has no mark: `c2pa` is None, and where a manifest is required, the image is downloaded once more."""
    task_id = emulator.add_task(image_bytes=with_manifest() if has_manifest else picture())
    (mirrored,) = mirror(task_id)
    stored = s3.get_object(Bucket="images", Key=mirrored["key"])
    marks = {name: value for name, value in stored["Metadata"].items() if name != "gptimg-c2pa"}
    s3.put_object(Bucket="images", Key=mirrored["key"], Body=stored["Body"].read(), Metadata=marks)
    (found,) = mirror(task_id)
    assert found["c2pa"] is None
    assert found["skipped"]
    assert len(image_calls(emulator)) == 1
    if has_manifest:
        (found,) = mirror(task_id, require_c2pa=True)
        assert found["c2pa"] is True
        assert found["skipped"]
    else:
        with pytest.raises(GptImgMediaError, match="has no C2PA manifest"):
            mirror(task_id, require_c2pa=True)
    assert len(image_calls(emulator)) == 2
    assert s3.head_object(Bucket="images", Key=mirrored["key"])["Metadata"] == marks


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_require_c2pa_is_a_switch(emulator, s3, mirror, value):
    with pytest.raises(Exception, match=f"require_c2pa={value!r} is neither True nor False"):
        mirror(emulator.add_task(), require_c2pa=value)


def rows(s3: Any) -> list[dict[str, Any]]:
    body = s3.get_object(Bucket="images", Key="manifest.jsonl")["Body"].read()
    return [json.loads(line) for line in body.splitlines()]


def keys(s3: Any) -> list[str]:
    return [found["Key"] for found in s3.list_objects_v2(Bucket="images").get("Contents", ())]


def image_calls(emulator: Any) -> list[Any]:
    return [call for call in emulator.calls if "outputs" in call.path]
