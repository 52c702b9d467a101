# SPDX-License-Identifier: Apache-2.0
"""Read an image's own bytes: its format, its size in pixels, a C2PA manifest, and whether its end is there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["FORMATS", "HEAD_BYTES", "ImageFormat", "ImageReader", "Pixels", "read_format"]

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
    """Return the format that the first bytes of a file show; None if it is not a PNG, JPEG or WebP.

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


class ImageReader:
    """Follow an image's structure as its bytes pass by: size in pixels, C2PA manifest, and whether the file is whole.

    PNG is a list of chunks that `IEND` ends, WebP one whose length is at its start, JPEG a list of segments with an end
    marker after its data. Feed it all bytes in order.
    """

    def __init__(self, image_format: ImageFormat) -> None:
        self._format = image_format
        self.pixels: Pixels | None = None
        """None until it is found, and for ever where the image does not tell."""
        self.c2pa: bool = False
        """True once a C2PA manifest was seen. Nothing of it is validated."""
        self._head = b""
        self._seen = 0
        self._need = 8 if image_format is PNG else HEAD_BYTES  # where the next chunk's header starts
        self._header = b""
        self._kept = b""  # of a JPEG, the bytes that are not understood yet
        self._skip = 2  # where its next segment starts, counted from the next byte
        self._in_data = False
        self._has_frame = False
        self._followed = True
        """False for what has the first bytes of a format only, as stand-ins in tests do."""
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._format is JPEG:
            if not self._ended:
                self._follow_jpeg(data)
        else:
            if len(self._head) < _TELLING_BYTES:
                self._read_head(data)
            if self._followed and not self._ended:
                self._follow_chunks(data)
        self._seen += len(data)

    def _read_head(self, data: bytes) -> None:
        self._head = (self._head + data)[:_TELLING_BYTES]
        if len(self._head) == _TELLING_BYTES:
            self._set_pixels((_png_pixels if self._format is PNG else _webp_pixels)(self._head))

    def _set_pixels(self, pixels: Pixels | None) -> None:
        self.pixels = pixels if pixels and all(pixels) else None

    def _follow_chunks(self, data: bytes) -> None:
        """Go from one chunk's header to the next, of a PNG or a WebP."""
        position = 0
        while self._followed and not self._ended:
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
            start, header, self._header = self._seen + position, self._header, b""
            if self._format is PNG:
                self._read_png_chunk(header, start)
            else:
                self._read_webp_chunk(header, start)

    def _read_png_chunk(self, header: bytes, start: int) -> None:
        name = header[4:]
        if start <= 16 and name != b"IHDR":
            self._followed = False
            return
        self.c2pa = self.c2pa or name == b"caBX"
        self._ended = name == b"IEND"
        self._need = start + int.from_bytes(header[:4], "big") + 4  # its checksum

    def _read_webp_chunk(self, header: bytes, start: int) -> None:
        length = int.from_bytes(header[4:], "little")
        self._need = start + length + length % 2
        self.c2pa = self.c2pa or (header[:4] == b"C2PA" and self._need <= self._webp_end)
        self._ended = self._need >= self._webp_end

    @property
    def _webp_end(self) -> int:
        return int.from_bytes(self._head[4:8], "little") + 8

    def _follow_jpeg(self, data: bytes) -> None:
        """Go from marker to marker, over what a segment holds: the thumbnail of a camera is a JPEG itself."""
        if self._skip >= len(data):
            self._skip -= len(data)
            return
        data, position = self._kept + data[self._skip :], 0
        self._skip, self._kept = 0, b""
        while found := _JPEG_MARKER.search(data, position):
            start = found.start()
            self._note_filler(data[position:start])
            marker = data[start + 1]
            if marker == _JPEG_END:
                self._ended = True
                return
            if marker in _JPEG_ALONE:
                position = found.end()
                continue
            end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
            wanted = start + _JPEG_SEGMENT_HEAD
            if marker == _JPEG_JUMBF:
                wanted = max(wanted, min(end, start + _JUMBF_HEAD))
            if len(data) < wanted:
                self._kept = data[start:]
                return
            if marker == _JPEG_JUMBF:
                self.c2pa = self.c2pa or _is_c2pa(data[start + 4 : min(end, start + _JUMBF_HEAD)])
            if marker in _JPEG_FRAMES and not self._has_frame:
                self._has_frame = True
                height, width = data[start + 5 : start + 7], data[start + 7 : start + 9]
                self._set_pixels(Pixels(int.from_bytes(width, "big"), int.from_bytes(height, "big")))
            self._in_data = self._in_data or marker == _JPEG_DATA
            position = end
            if position > len(data):
                self._skip = position - len(data)
                return
        rest = data[position:]
        self._note_filler(rest)
        self._kept = b"\xff" if rest.endswith(b"\xff") else b""

    def _note_filler(self, between: bytes) -> None:
        """Doubt a file with other bytes between its segments, until a frame shows that it is a JPEG all the same."""
        if not self._in_data and between.strip(b"\xff"):
            self._followed = False

    @property
    def is_cut(self) -> bool:
        """True if the bytes fed so far are certainly less than the image said it would have."""
        if self._format is PNG:
            return self._followed and not (self._ended and self._seen >= self._need)
        if self._format is WEBP:
            return self._seen < self._webp_end
        return not self._ended and (self._followed or self._has_frame)

    @property
    def ends_well(self) -> bool:
        """True if the image has come to its end; for a transfer whose length nobody said."""
        return not self.is_cut and (self._ended or self._format is WEBP)


_TELLING_BYTES = 30
"""Bytes from the start of a PNG or WebP that tell its size in pixels."""
# FF 00 is a byte of data, FF D0 to D7 are in the midst of data, and FF FF is padding.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Frame headers of all codings; DHT, JPG and DAC (C4, C8, CC) are among them, and are left out.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset({0x01, 0xD8})
_JPEG_DATA = 0xDA
_JPEG_JUMBF = 0xEB  # APP11
_JPEG_END = 0xD9
_JPEG_SEGMENT_HEAD = 9
"""Bytes of a segment that hold its length, and of a frame header its pixels. No file ends sooner after a marker."""
_JUMBF_HEAD = 64
"""Bytes of an APP11 segment, from its marker, that name the kind of a JUMBF box and its label."""


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


def _is_c2pa(segment: bytes) -> bool:
    """Return whether an APP11 segment begins a C2PA manifest store: a JUMBF superbox of the type `c2pa`.

    A manifest of more than 64 KiB takes several segments; only the first one has the box that says so.
    """
    return segment.startswith(b"JP") and b"jumb" in segment and b"c2pa" in segment
