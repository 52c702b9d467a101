# SPDX-License-Identifier: Apache-2.0
"""What an image's own bytes say: its format, its pixels, and whether its end is there."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FORMATS", "HEAD_BYTES", "ImageFormat", "read_format"]

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


class EndFinder:
    """Follows an image's structure as its bytes pass by, to tell a whole file from a cut one.

    PNG is a list of chunks of which `IEND` is the last, WebP says its length at its start, JPEG ends with a marker.
    Feed it all bytes in order.
    """

    def __init__(self, image_format: ImageFormat) -> None:
        self._format = image_format
        self._seen = 0
        self._need = 8  # where the next PNG chunk's header starts
        self._header = b""
        self._followed = image_format is PNG
        self._ended = False
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._format is PNG and self._followed and not self._ended:
            self._follow_png(data)
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

    @property
    def is_cut(self) -> bool:
        """Whether the bytes fed so far are certainly less than the image said it would have."""
        if self._format is PNG:
            return self._followed and not (self._ended and self._seen >= self._need)
        if self._format is WEBP:
            return self._seen < int.from_bytes(self._header[4:8], "little") + 8
        return False

    @property
    def ends_well(self) -> bool:
        """Whether the last bytes are those of a whole image; for a transfer whose length nobody said."""
        if self._format is JPEG:
            return self._tail.rstrip(b"\0").endswith(b"\xff\xd9")
        return not self.is_cut and (self._format is WEBP or self._ended)
