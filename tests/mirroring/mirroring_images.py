# SPDX-License-Identifier: Apache-2.0
"""Images to mirror."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image


def picture(size: tuple[int, int] = (40, 30), image_format: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """Return an image of so many pixels, as Pillow writes it."""
    file = BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(file, image_format, **options)
    return file.getvalue()


def padded(size: int, number: int = 0) -> bytes:
    """Return a PNG of exactly `size` bytes: what is missing is a chunk that readers skip. `number` tells it apart."""
    content = picture((1 + number % 1000, 1 + number // 1000))
    end = content[-12:]
    missing = size - len(content) - 12
    return b"".join((content[:-12], missing.to_bytes(4, "big"), b"teSt", bytes(missing), bytes(4), end))
