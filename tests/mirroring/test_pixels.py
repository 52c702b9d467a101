# SPDX-License-Identifier: Apache-2.0
"""An image's size in pixels: read from its own bytes while they pass by, and kept with the object."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from mirroring_images import picture
from PIL import Image

from airflow_provider_gptimg.mirroring.images import HEAD_BYTES, ImageReader, Pixels, read_format

EXIF = Image.Exif()
EXIF[0x010E] = "description " * 3000
EXIF[0x0112] = 6  # rotated by a quarter: the pixels are told as they are stored

IMAGES = {
    "png": ("PNG", {}),
    "png, palette": ("PNG", {"mode": "P"}),
    "png, alpha": ("PNG", {"mode": "RGBA"}),
    "jpeg": ("JPEG", {}),
    "jpeg, progressive": ("JPEG", {"progressive": True}),
    "jpeg, grey": ("JPEG", {"mode": "L"}),
    "jpeg, cmyk": ("JPEG", {"mode": "CMYK"}),
    "jpeg, 200 KB of metadata": ("JPEG", {"exif": EXIF, "icc_profile": bytes(150_000)}),
    "webp, lossy": ("WEBP", {}),
    "webp, lossless": ("WEBP", {"lossless": True}),
    "webp, extended": ("WEBP", {"mode": "RGBA", "exif": EXIF}),
}


def found(content: bytes, cuts: list[int]) -> Pixels | None:
    """Return what a finder sees when the image comes in pieces, the first of them long enough to tell the format."""
    image_format = read_format(content[:HEAD_BYTES])
    assert image_format is not None
    finder = ImageReader(image_format)
    ends = sorted({cut for cut in cuts if cut < len(content)})
    for start, end in zip([0, *ends], [*ends, len(content)], strict=True):
        finder.feed(content[start:end])
    return finder.pixels


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("size", [(1, 1), (640, 427), (3001, 2)])
def test_pixels_are_read_whatever_the_format(kind: str, size: tuple[int, int]) -> None:
    image_format, options = IMAGES[kind]
    assert found(picture(size, image_format, **options), []) == size


@given(kind=st.sampled_from(sorted(IMAGES)), cuts=st.lists(st.integers(HEAD_BYTES, 700) | st.integers(700, 200_000)))
def test_pixels_do_not_depend_on_how_the_bytes_come(kind: str, cuts: list[int]) -> None:
    image_format, options = IMAGES[kind]
    assert found(picture((40, 30), image_format, **options), cuts) == (40, 30)


@given(kind=st.sampled_from(sorted(IMAGES)), start=st.integers(HEAD_BYTES, 60), rest=st.binary(max_size=200))
def test_garbage_is_no_error(kind: str, start: int, rest: bytes) -> None:
    image_format, options = IMAGES[kind]
    pixels = found(picture((40, 30), image_format, **options)[:start] + rest, [start])
    assert pixels is None or min(pixels) > 0


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_object_carries_its_pixels(emulator, s3, mirror, image_format):
    task_id = emulator.add_task(formats=[image_format], image_bytes=picture((123, 45), image_format))
    (mirrored,) = mirror(task_id)
    metadata = s3.head_object(Bucket="images", Key=mirrored["key"])["Metadata"]
    assert (metadata["gptimg-width"], metadata["gptimg-height"]) == ("123", "45")
    assert "width" not in mirrored
