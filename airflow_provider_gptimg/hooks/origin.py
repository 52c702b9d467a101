# SPDX-License-Identifier: Apache-2.0
"""Hosts as parsed addresses or names, never as text: which of them a URL means, and which pattern allows it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

import httpx

__all__ = ["HostPattern", "Origin", "in_url", "parse_host"]

DEFAULT_PORTS = {"http": 80, "https": 443}

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_READ_AS_ADDRESS = re.compile(r"(.*\.)?(0[xX][0-9A-Fa-f]*|[0-9]+)")
# White space, backslash, and what is not printable: C0 and C1 controls, marks that turn the direction of text.
_NOT_IN_URLS = re.compile(r"[\s\\\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def parse_host(host: str) -> str | IPv4Address | IPv6Address:
    """Return a host as an address, or as a lower-case name without a dot at its end.

    :param host: Without the brackets of an IPv6 address.
    :raises ValueError: It is neither, or an address with a zone id, or one in a form that resolvers read differently.
    """
    host = host.removesuffix(".").lower()
    if "%" in host:
        raise ValueError("its host has a zone id or an escape ('%')")
    if ":" in host:
        return IPv6Address(host)
    try:
        return IPv4Address(host)
    except ValueError:
        pass
    if not _HOST_NAME.fullmatch(host) or _READ_AS_ADDRESS.fullmatch(host):
        raise ValueError("it has no plain host name")
    return host


def in_url(host: str | IPv4Address | IPv6Address) -> str:
    """Return a host as a URL has it."""
    return f"[{host}]" if isinstance(host, IPv6Address) else str(host)


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port, in one form only, so that two of them can be compared."""

    scheme: str
    host: str | IPv4Address | IPv6Address
    port: int

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"{self.port} is not a port")

    @classmethod
    def of(cls, url: str) -> Origin:
        """Return the origin of an absolute http(s) URL.

        :raises ValueError: It is not such a URL, or could be read in two ways.
        """
        if _NOT_IN_URLS.search(url):
            raise ValueError("it has white space, a backslash or a control character")
        parts = urlsplit(url)
        if parts.scheme not in DEFAULT_PORTS:
            raise ValueError("it is neither https:// nor http://")
        if "@" in parts.netloc:
            raise ValueError("it has user-info ('…@')")
        host = parse_host(parts.hostname or "")
        try:
            httpx.URL(url).host  # noqa: B018 - refused here rather than in the middle of a request
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ValueError(f"it is not a URL: {error}") from None
        return cls(parts.scheme, host, DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port)

    @property
    def is_loopback(self) -> bool:
        """True for localhost and loopback addresses; no DNS lookup."""
        return self.host == "localhost" if isinstance(self.host, str) else self.host.is_loopback

    @property
    def netloc(self) -> str:
        """Host and port as a URL has them, without the scheme's default port."""
        return in_url(self.host) + ("" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


@dataclass(frozen=True)
class HostPattern:
    """Hosts that images may come from over HTTPS: a name, an address, or `*.name` for all names below it.

    :param below: Whether the names below `host` are meant, not itself.
    """

    host: str | IPv4Address | IPv6Address
    port: int = 443
    below: bool = False

    @classmethod
    def parse(cls, text: str) -> HostPattern:
        """Return the pattern that `text` writes, as in `cdn.example.com`, `*.example.com:8443` or `[fd00::1]`.

        :raises ValueError: It is not a pattern.
        """
        below = text.startswith("*.")
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]@/?#]+)(?::([0-9]{1,5}))?", text[2:] if below else text)
        if not match:
            raise ValueError("it is not a host")
        host = parse_host(match[1].strip("[]"))
        if below and not isinstance(host, str):
            raise ValueError("no name is below an address")
        return cls(host, Origin("https", host, int(match[2] or 443)).port, below)

    def allows(self, origin: Origin) -> bool:
        """True if an image may come from `origin`."""
        if origin.scheme != "https" or origin.port != self.port:
            return False
        if self.below:
            return isinstance(origin.host, str) and origin.host.endswith(f".{self.host}")
        return origin.host == self.host

    def __str__(self) -> str:
        port = "" if self.port == 443 else f":{self.port}"
        return f"{'*.' if self.below else ''}{in_url(self.host)}{port}"
