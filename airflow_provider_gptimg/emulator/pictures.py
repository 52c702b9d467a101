# SPDX-License-Identifier: Apache-2.0
"""Pictures that show what they are: the prompt, which image of how many, and the task they belong to."""

from __future__ import annotations

import colorsys
import hashlib
import io
import math
from bisect import bisect_right
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont, ImageOps

__all__ = ["CONTENT_TYPES", "draw", "pixel_size"]

CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_AREA = 512 * 512
_SHORTEST, _LONGEST = 256, 1024
_MARGIN = 24
_FONT_SIZES = (44, 36, 28, 22, 18)


def pixel_size(aspect_ratio: str | None) -> tuple[int, int]:
    """Return width and height for `W:H` (None: a square): of much the same area, each from 256 to 1024."""
    width, height = (int(part) for part in (aspect_ratio or "1:1").split(":"))
    return _clamp(math.sqrt(_AREA * width / height)), _clamp(math.sqrt(_AREA * height / width))


def _clamp(side: float) -> int:
    return min(max(round(side), _SHORTEST), _LONGEST)


# Bounded: an evicted picture is drawn again, to the same bytes.
@lru_cache(maxsize=256)
def draw(prompt: str, number: int, n: int, task_id: str, aspect_ratio: str | None, image_format: str) -> bytes:
    """Draw image `number` (from 1) of `n`; the same arguments give the same bytes."""
    prompt = prompt.encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be drawn
    size = pixel_size(aspect_ratio)
    picture = _background(prompt, size)
    pen = ImageDraw.Draw(picture)
    width, height = size
    small = ImageFont.load_default(15)
    pen.text((_MARGIN, _MARGIN), f"image {number} of {n}", "white", small, anchor="lt")
    pen.text((_MARGIN, height - _MARGIN), task_id, "white", small, anchor="lb")
    box = (width - 2 * _MARGIN, height - 4 * _MARGIN - 20)
    text, font = _fitted(prompt, box)
    pen.multiline_text((width / 2, height / 2), text, "white", font, anchor="mm", align="center")
    encoded = io.BytesIO()
    picture.save(encoded, image_format)
    return encoded.getvalue()


def _background(prompt: str, size: tuple[int, int]) -> Image.Image:
    """Shade two hues taken from the prompt into each other, dark enough for white text."""
    digest = hashlib.sha256(prompt.encode()).digest()
    hue, step = digest[0] / 256, 0.08 + digest[1] / 1024
    shades = Image.linear_gradient("L").rotate(90 * (digest[2] % 4)).resize(size)
    return ImageOps.colorize(shades, _colour(hue, 0.35), _colour(hue + step, 0.55))


def _colour(hue: float, brightness: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, 0.7, brightness)
    return round(red * 255), round(green * 255), round(blue * 255)


def _fitted(prompt: str, box: tuple[int, int]) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """Wrap the prompt in the largest font it fits the box in; cut it off in the smallest."""
    for font_size in _FONT_SIZES:
        font = ImageFont.load_default(font_size)
        line_height = math.ceil(font_size * 1.35)
        room = max(box[1] // line_height, 1)
        # A letter is never narrower than 1 pixel: what lies beyond that many cannot be shown.
        lines = _wrapped(prompt[: room * box[0]], font, box[0], room + 1)
        if len(lines) <= room:
            break
    else:
        lines = [*lines[: room - 1], lines[room - 1][:-1] + "…"]
    return "\n".join(lines), font


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, limit: int) -> list[str]:
    """Break the text into at most `limit` lines no wider than `width` pixels, between words if possible."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        while word and len(lines) < limit:
            candidate = f"{line} {word}" if line else word
            if font.getlength(candidate) <= width:
                line, word = candidate, ""
            elif line:
                lines.append(line)
                line = ""
            else:
                fitting = _fitting(word, font, width)
                lines.append(word[:fitting])
                word = word[fitting:]
    return [*lines, line] if line and len(lines) < limit else lines


def _fitting(word: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> int:
    """Return the number of letters that fit into `width` pixels; at least 1."""
    ends = range(1, min(len(word), width))
    return max(bisect_right(ends, float(width), key=lambda end: font.getlength(word[:end])), 1)
