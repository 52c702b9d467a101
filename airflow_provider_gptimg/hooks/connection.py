# SPDX-License-Identifier: Apache-2.0
"""What an Airflow connection of type `gptimg` says, checked before any network."""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from airflow_provider_gptimg.api.requests import check_on_unknown_submission
from airflow_provider_gptimg.exceptions import GptImgAuthError, GptImgMediaError, GptImgRequestError
from airflow_provider_gptimg.polling import Schedule

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Connection

__all__ = ["ConnectionSettings"]

DEFAULT_BASE_URL = "https://gptimg.co"
DEFAULT_MEDIA_HOSTS = ("gptimg.co", "*.gptimg.co")
DEFAULT_CALL_TIMEOUT = 30.0

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LONGEST = 86_400.0
"""Seconds that a setting may name. A timer set for centuries fails, and would do so just before a submit is sent."""

# One object for the thousands of waits that go by the same.
_schedule = lru_cache(maxsize=64)(Schedule)


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port, in one form only, so that two of them can be compared."""

    scheme: str
    host: str
    port: int

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"{self.port} is no port")

    @classmethod
    def of(cls, url: str) -> Origin:
        """Return the origin of an absolute http(s) URL.

        :raises ValueError: It is none, or could be read in two ways.
        """
        if re.search(r"[\s\\\x00-\x1f\x7f]", url):
            raise ValueError("it has white space, a backslash or a control character")
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS:
            raise ValueError("it is neither https:// nor http://")
        if "@" in parts.netloc:
            raise ValueError("it has user-info ('…@')")
        host = (parts.hostname or "").removesuffix(".")
        if ":" in host:
            host = str(ipaddress.IPv6Address(host))
        elif not _HOST_NAME.fullmatch(host):
            raise ValueError("it has no plain host name")
        try:
            httpx.URL(url).host  # noqa: B018 - refused here rather than in the middle of a request
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ValueError(f"it is no URL: {error}") from None
        return cls(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port)

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, said so that no name server can lie about it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


@dataclass(frozen=True)
class ConnectionSettings:
    """A connection of type `gptimg`, checked.

    :param base_url: Without a slash at its end.
    :param call_timeout: Seconds for one HTTP call.
    :param poll_interval: Default of every task on this connection; None: the provider's. Likewise `first_poll_after`.
    :param media_hosts: Host patterns (`name`, `*.name`, either with `:port`) that image URLs may come from.
    :param verify: True, False, or the path of a CA bundle.
    """

    conn_id: str
    base_url: str
    origin: Origin
    api_key: str = field(repr=False)
    call_timeout: float = DEFAULT_CALL_TIMEOUT
    poll_interval: float | None = None
    first_poll_after: float | None = None
    media_hosts: tuple[str, ...] = DEFAULT_MEDIA_HOSTS
    reference_images_field: str = "image_urls"
    verify: bool | str = True
    on_unknown_submission: str | None = None

    @classmethod
    def read(cls, conn: Connection) -> ConnectionSettings:
        """Return what `conn` says.

        :raises GptImgAuthError: It has no key, or one that fits in no header.
        :raises GptImgRequestError: A field is wrong; the message names connection, field and way out.
        """
        extra = _read_extra(conn)

        def wrong(name: str, value: object, way_out: str) -> GptImgRequestError:
            return GptImgRequestError(f"Connection {conn.conn_id!r}: {name}={value!r:.120} {way_out}")

        def seconds(name: str) -> float | None:
            value = extra.get(name)
            if value is None or value == "":
                return None
            try:
                return _read_seconds(name, value)
            except ValueError as error:
                raise wrong(name, value, str(error)) from None

        base_url, origin = _read_base_url(conn)
        try:
            policy = check_on_unknown_submission(extra.get("on_unknown_submission") or None)
        except GptImgRequestError as error:
            raise GptImgRequestError(f"Connection {conn.conn_id!r}: {error.message}") from None
        reference_field = extra.get("reference_images_field") or "image_urls"
        if not isinstance(reference_field, str) or reference_field in ("prompt", "n", "aspect_ratio"):
            raise wrong("reference_images_field", reference_field, "is no name of a JSON field for reference images")
        hosts = extra.get("media_hosts") or DEFAULT_MEDIA_HOSTS
        if isinstance(hosts, str):
            hosts = [host for host in re.split(r"[\s,]+", hosts) if host]
        if not isinstance(hosts, list | tuple):
            raise wrong("media_hosts", hosts, "is no list of host patterns")
        for host in hosts:
            if not isinstance(host, str) or not re.fullmatch(r"(\*\.)?[A-Za-z0-9.-]+(:[0-9]{1,5})?", host):
                raise wrong("media_hosts", host, "is no host pattern such as 'cdn.example.com' or '*.example.com'")
        return cls(
            conn_id=conn.conn_id,
            base_url=base_url,
            origin=origin,
            api_key=_read_key(conn),
            call_timeout=seconds("timeout") or DEFAULT_CALL_TIMEOUT,
            poll_interval=seconds("poll_interval"),
            first_poll_after=seconds("first_poll_after"),
            media_hosts=tuple(host.lower() for host in hosts),
            reference_images_field=reference_field,
            verify=_read_verify(extra.get("verify"), wrong),
            on_unknown_submission=policy,
        )

    def schedule(self, poll_interval: float | None = None, first_poll_after: float | None = None) -> Schedule:
        """Return when to poll: as the task says, else this connection, else the default.

        :raises GptImgRequestError: What the task says is no number of seconds.
        """
        chosen = {}
        for name, told, default in (
            ("poll_interval", poll_interval, self.poll_interval),
            ("first_poll_after", first_poll_after, self.first_poll_after),
        ):
            value = default if told is None else told
            if value is not None:
                try:
                    chosen[name] = _read_seconds(name, value)
                except ValueError as error:
                    raise GptImgRequestError(f"{name}={value!r:.120} {error}") from None
        return _schedule(**chosen)

    def check_media_url(self, url: str) -> str:
        """Return `url` if an image may be fetched from its host.

        :raises GptImgMediaError: It is neither on an allowed host over HTTPS nor on the connection's own.
        """
        try:
            origin = Origin.of(url)
        except ValueError as error:
            raise GptImgMediaError(f"The image URL {_shown(url)} is refused: {error}") from None
        if origin == self.origin or (
            origin.scheme == "https" and any(_matches(pattern, origin) for pattern in self.media_hosts)
        ):
            return url
        raise GptImgMediaError(
            f"The image URL {_shown(url)} is not over HTTPS from an allowed host ({', '.join(self.media_hosts)}): "
            f"if it is right, add its host to extra.media_hosts of connection {self.conn_id!r}"
        )


def _read_seconds(name: str, value: Any) -> float:
    """Return a number of seconds, also from text; only a first poll may come after none."""
    at_least = 0.0 if name == "first_poll_after" else 0.001
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not at_least <= number <= _LONGEST or isinstance(value, bool):
        raise ValueError(f"is not a number of seconds from {at_least:g} to {_LONGEST:g}, a day")
    return number


def _shown(url: str) -> str:
    return repr(url.split("?", 1)[0][:200])


def _matches(pattern: str, origin: Origin) -> bool:
    name, _, port = pattern.partition(":")
    if origin.port != int(port or 443):
        return False
    return origin.host.endswith(name[1:]) if name.startswith("*.") else origin.host == name


def _read_base_url(conn: Connection) -> tuple[str, Origin]:
    """Put scheme, host and port together as Airflow's `HttpHook` does, but with HTTPS as the default."""

    def refuse(why: str) -> GptImgRequestError:
        # Without what may be a key in the wrong place.
        shown = re.sub(r".*@", "***@", re.split(r"[?#]", conn.host or "", maxsplit=1)[0], flags=re.DOTALL)
        return GptImgRequestError(
            f"Connection {conn.conn_id!r}: host={shown!r:.200} is refused: {why}. It is the API's base URL, "
            f"as in {DEFAULT_BASE_URL!r}; leave it empty for that"
        )

    host = (conn.host or "").strip()
    if not host:
        host = DEFAULT_BASE_URL if not conn.schema and not conn.port else urlsplit(DEFAULT_BASE_URL).netloc
    if "?" in host or "#" in host:
        raise refuse("it has a query string or a fragment")
    if "@" in host:
        raise refuse("it has user-info ('…@'); the key belongs into the password field")
    url = host if "://" in host else f"{conn.schema or 'https'}://{host}"
    try:
        parts = urlsplit(url)
        origin = Origin.of(url)
        if conn.port:
            if parts.port is not None and parts.port != conn.port:
                raise ValueError(f"it names port {parts.port}, and the port field {conn.port}")
            origin = Origin(origin.scheme, origin.host, int(conn.port))
    except ValueError as error:
        raise refuse(str(error)) from None
    if origin.scheme == "http" and not origin.is_loopback:
        raise refuse("http:// would send the key in the clear, so it is allowed for loopback hosts only")
    return f"{origin}{parts.path.rstrip('/')}", origin


def _read_extra(conn: Connection) -> dict[str, Any]:
    # Not `extra_dejson`: it also masks, by a blocking call that a triggerer's event loop must not make.
    try:
        extra = json.loads(conn.extra) if conn.extra else {}
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise GptImgRequestError(f"Connection {conn.conn_id!r}: extra is not a JSON object")
    return extra


def _read_key(conn: Connection) -> str:
    key = (conn.password or "").strip()
    if not key:
        raise GptImgAuthError(f"Connection {conn.conn_id!r} has no API key: put it into the password field")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise GptImgAuthError(
            f"Connection {conn.conn_id!r}: the API key in the password field has characters that no key has "
            "(white space or beyond ASCII): paste it anew"
        )
    return key


def _read_verify(value: Any, wrong: Any) -> bool | str:
    if value is None or value == "" or isinstance(value, bool):
        return value is not False
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower(), value)
    raise wrong("verify", value, "is neither true, false nor the path of a CA bundle")
