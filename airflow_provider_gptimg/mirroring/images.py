# SPDX-License-Identifier: Apache-2.0
"""What an image's own bytes say: its format, its pixels, and whether its end is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["FORMATS", "HEAD_BYTES", "EndFinder", "ImageFormat", "Pixels", "PixelsFinder", "read_format"]

HEAD_BYTES = 12
"""Bytes from the start of an image that tell its format."""


@dataclass(frozen=True)
class ImageFormat:
    """An image format that the API may deliver."""

    content_type: str
    extension: str


PNG = ImageFormat("image/png", ".png")
JPEG = ImageFormat("image/jpeg", ".jpg")
WEBP = ImageFormat("image/webp", ".webp")
FORMATS = (PNG, JPEG, WEBP)


def read_format(head: bytes) -> ImageFormat | None:
    """Return the format that the first bytes of a file show; None if it is no PNG, JPEG or WebP.

    :param head: At least :data:`HEAD_BYTES`, unless the file is shorter.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    return None


class Pixels(NamedTuple):
    """An image's size as it is stored, whatever orientation its metadata asks for."""

    width: int
    height: int


class PixelsFinder:
    """Reads an image's size in pixels as its bytes pass by.

    PNG and WebP tell it in their first 30 bytes, JPEG after as many segments of metadata as there are. Feed it all
    bytes in order.
    """

    def __init__(self, image_format: ImageFormat) -> None:
        self._format = image_format
        self._kept = b""
        self._skip = 2 if image_format is JPEG else 0  # the marker that JPEG starts with
        self._done = False
        self.pixels: Pixels | None = None
        """None until it is found, and for ever where the image does not tell."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._done:
            return
        if self._skip >= len(data):
            self._skip -= len(data)
            return
        self._kept += data[self._skip :]
        self._skip = 0
        if self._format is JPEG:
            self._follow_jpeg()
        elif len(self._kept) >= 30:
            read = _png_pixels if self._format is PNG else _webp_pixels
            self._end(read(self._kept))

    def _end(self, pixels: Pixels | None) -> None:
        self.pixels = pixels if pixels and all(pixels) else None
        self._kept = b""
        self._done = True

    def _follow_jpeg(self) -> None:
        """Go from segment to segment up to the frame header, which comes before the image's data."""
        data, position = self._kept, 0
        while position + 9 <= len(data):
            marker = data[position + 1]
            if data[position] != 0xFF or marker in _JPEG_NO_HEADER:
                return self._end(None)
            if marker == 0xFF:  # padding
                position += 1
            elif marker in _JPEG_FRAMES:
                height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
                return self._end(Pixels(int.from_bytes(width, "big"), int.from_bytes(height, "big")))
            else:
                position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        self._kept = data[position:]
        self._skip = max(position - len(data), 0)
        return None


# Frame headers of all codings; DHT, JPG and DAC (C4, C8, CC) stand among them.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# The image's data or its end: a frame header does not come any more.
_JPEG_NO_HEADER = frozenset({0xD9, 0xDA})
_JPEG_DATA = 0xDA
_JPEG_END = b"\xff\xd9"


def _png_pixels(head: bytes) -> Pixels | None:
    if head[12:16] != b"IHDR":
        return None
    return Pixels(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))


def _webp_pixels(head: bytes) -> Pixels | None:
    match head[12:16]:
        case b"VP8X":
            return Pixels(int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1)
        case b"VP8L" if head[20] == 0x2F:
            bits = int.from_bytes(head[21:25], "little")
            return Pixels((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        case b"VP8 " if head[23:26] == b"\x9d\x01\x2a":
            sizes = head[26:28], head[28:30]
            width, height = (int.from_bytes(size, "little") & 0x3FFF for size in sizes)
            return Pixels(width, height)
    return None


class EndFinder:
    """Follows an image's structure as its bytes pass by, to tell a whole file from a cut one.

    PNG is a list of chunks of which `IEND` is the last, WebP says its length at its start, JPEG has an end marker
    after its data. Feed it all bytes in order.
    """

    def __init__(self, image_format: ImageFormat) -> None:
        self._format = image_format
        self._seen = 0
        self._need = 8  # where the next PNG chunk's header starts
        self._header = b""
        self._kept = b""  # of a JPEG, the bytes that are not understood yet
        self._skip = 2  # where its next segment starts, counted from the next byte
        self._in_data = False
        self._followed = image_format is not WEBP
        self._ended = False
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._followed and not self._ended:
            if self._format is PNG:
                self._follow_png(data)
            else:
                self._follow_jpeg(data)
        if self._format is WEBP and self._seen < 8:
            self._header = (self._header + data)[:8]
        self._seen += len(data)
        self._tail = (self._tail + data[-64:])[-64:]

    def _follow_png(self, data: bytes) -> None:
        position = 0
        while not self._ended:
            skip = self._need - (self._seen + position)
            if skip > 0:
                position += skip
                if position >= len(data):
                    return
            take = 8 - len(self._header)
            self._header += data[position : position + take]
            if len(self._header) < 8:
                self._need = self._seen + len(data)
                return
            position += take
            length, name = int.from_bytes(self._header[:4], "big"), self._header[4:]
            if self._need <= 16 and name != b"IHDR":
                self._followed = False  # a PNG by its signature alone: nothing to hold it against
                return
            self._header = b""
            self._ended = name == b"IEND"
            self._need = self._seen + position + length + 4

    def _follow_jpeg(self, data: bytes) -> None:
        """Go from segment to segment up to the image's data, then look for the end marker, which data cannot hold.

        A segment can: the thumbnail of a camera is a JPEG itself.
        """
        if self._skip >= len(data):
            self._skip -= len(data)
            return
        data, position = self._kept + data[self._skip :], 0
        while not self._in_data and position + 4 <= len(data):
            marker = data[position + 1]
            if data[position] != 0xFF:
                self._followed = False  # a JPEG by its first bytes alone: nothing to hold it against
                return
            if marker == 0xFF:  # padding
                position += 1
            else:
                position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
                self._in_data = marker == _JPEG_DATA
        self._skip = max(position - len(data), 0)
        if self._in_data:
            self._ended = data.find(_JPEG_END, position) >= 0
            position = max(position, len(data) - 1)
        self._kept = data[position:]

    @property
    def is_cut(self) -> bool:
        """Whether the bytes fed so far are certainly less than the image said it would have."""
        if self._format is PNG:
            return self._followed and not (self._ended and self._seen >= self._need)
        if self._format is WEBP:
            return self._seen < int.from_bytes(self._header[4:8], "little") + 8
        return self._followed and not self._ended

    @property
    def ends_well(self) -> bool:
        """Whether the last bytes are those of a whole image; for a transfer whose length nobody said."""
        if self._format is JPEG:
            return not self.is_cut and self._tail.rstrip(b"\0").endswith(_JPEG_END)
        return not self.is_cut and (self._format is WEBP or self._ended)
