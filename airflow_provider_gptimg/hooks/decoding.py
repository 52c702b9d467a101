# SPDX-License-Identifier: Apache-2.0
"""Decode a body while it arrives, within a bound: a few hundred bytes of gzip can decode to gigabytes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

__all__ = ["ACCEPT_ENCODING", "BodyError", "BodyTooLargeError", "BoundedBody"]

ACCEPT_ENCODING = "gzip, deflate"
"""Accept-Encoding header for answers that a :class:`BoundedBody` reads."""

_PIECE = 64 * 1024
_GZIP = 16 + zlib.MAX_WBITS


class BodyError(Exception):
    """The body cannot be decoded; the message says why, as the end of "the body …"."""


class BodyTooLargeError(BodyError):
    """The body has more bytes than allowed."""


class BoundedBody:
    """One body, decoded piece by piece.

    It accepts `identity`, `gzip` and `deflate`, once. The bound counts decoded bytes before they are held, and the
    bytes on the wire as well: an endless gzip name or endless empty blocks decode to nothing.

    :param content_encoding: The value of the Content-Encoding header, several joined by commas; empty if there is none.
    :param max_bytes: Decoded bytes allowed.
    :raises BodyError: The encoding is another, or several are stacked.
    """

    def __init__(self, content_encoding: str, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_received = max_bytes + max_bytes // 256 + 1024  # what gzip adds to bytes that do not shrink
        self._received = 0
        self._decoded = 0
        self._start = b""
        self._coding = _read_coding(content_encoding) if content_encoding else ""
        # Without a name in it "deflate" may be either zlib's format or the bare one: the first bytes tell.
        self._decoder = zlib.decompressobj(_GZIP) if self._coding == "gzip" else None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what `chunk` decodes to, in pieces of at most 64 KiB unless it is not encoded.

        :raises BodyTooLargeError: There is more than allowed.
        :raises BodyError: It is not in the encoding that the header names.
        """
        self._received += len(chunk)
        if self._received > self._max_received or (not self._coding and self._received > self._max_bytes):
            raise BodyTooLargeError(f"has more than {self._max_bytes} bytes")
        if not self._coding:
            yield chunk
            return
        if self._decoder is None:
            self._start += chunk
            if len(self._start) < 2:
                return
            chunk = self._start
            is_zlib = chunk[0] & 0x0F == 8 and (chunk[0] << 8 | chunk[1]) % 31 == 0
            self._decoder = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        yield from self._decode(self._decoder, chunk)

    def _decode(self, decoder: zlib._Decompress, chunk: bytes) -> Iterator[bytes]:
        piece = b""
        while chunk or len(piece) == _PIECE:
            if decoder.eof:
                if chunk:
                    raise BodyError(f"goes on after its {self._coding} stream has ended")
                return
            try:
                piece = decoder.decompress(chunk, _PIECE)
            except zlib.error as error:
                raise BodyError(f"is not {self._coding}, as its header says: {error}") from None
            chunk = decoder.unused_data or decoder.unconsumed_tail
            self._decoded += len(piece)
            if self._decoded > self._max_bytes:
                raise BodyTooLargeError(f"has more than {self._max_bytes} bytes, decoded")
            if piece:
                yield piece

    def end(self) -> None:
        """Check, after the last chunk, that the body is whole.

        :raises BodyError: The encoded stream has not ended.
        """
        if self._coding and self._received and not (self._decoder and self._decoder.eof):
            raise BodyError(f"ends before its {self._coding} stream does")


def _read_coding(content_encoding: str) -> str:
    """Return `gzip`, `deflate`, or an empty text for a body that is not encoded."""
    codings = [coding.strip().lower() for coding in content_encoding.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if not codings:
        return ""
    if len(codings) > 1:
        raise BodyError(f"is encoded {len(codings)} times over, which is not accepted")
    coding = codings[0].removeprefix("x-")
    if coding not in ("gzip", "deflate"):
        raise BodyError("is in a content encoding that was not asked for")
    return coding
