# SPDX-License-Identifier: Apache-2.0
"""Read and check an Airflow connection of type `gptimg`, before any network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_gptimg.api.refusals import DEFAULT_FINAL_FAILURE_CODES, read_failure_codes
from airflow_provider_gptimg.api.requests import check_on_unknown_submission
from airflow_provider_gptimg.api.texts import clean_url, texts_of
from airflow_provider_gptimg.exceptions import GptImgAuthError, GptImgMediaError, GptImgRequestError
from airflow_provider_gptimg.hooks.extras import read_count, read_extra, read_seconds, read_verify, unknown_extras
from airflow_provider_gptimg.hooks.origin import DEFAULT_PORTS, HostPattern, Origin
from airflow_provider_gptimg.polling import Schedule

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Connection

__all__ = ["ConnectionSettings", "Origin", "name_connection"]

DEFAULT_BASE_URL = "https://gptimg.co"
DEFAULT_MEDIA_HOSTS = ("gptimg.co", "*.gptimg.co")
DEFAULT_CALL_TIMEOUT = 30.0
DEFAULT_MAX_CONNECTIONS = 128

_SHORTEST_KEY = 8

# One object for the thousands of waits that go by the same.
_schedule = lru_cache(maxsize=64)(Schedule)
_pattern = lru_cache(maxsize=256)(HostPattern.parse)


@dataclass(frozen=True)
class ConnectionSettings:
    """A connection of type `gptimg`, checked.

    :param base_url: Without a slash at its end.
    :param call_timeout: Seconds for one HTTP call.
    :param poll_interval: Default of every task on this connection; None: the provider's. Likewise `first_poll_after`.
    :param media_hosts: Host patterns (`name`, `*.name`, either with `:port`) that image URLs may come from.
    :param verify: True, False, or the path of a CA bundle.
    :param final_failure_codes: Patterns, in lower case, of the codes of failures that another attempt would meet again.
    :param max_connections: Sockets that the triggerer opens to the API at the most.
    :param unknown_extras: Names in the extra that have no effect.
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
    max_connections: int = DEFAULT_MAX_CONNECTIONS
    final_failure_codes: tuple[str, ...] = DEFAULT_FINAL_FAILURE_CODES
    unknown_extras: tuple[str, ...] = ()

    @classmethod
    def load(cls, conn_id: str, get_connection: Callable[[str], Connection]) -> ConnectionSettings:
        """Return what the connection `conn_id` says.

        :raises GptImgRequestError: There is no such connection.
        :raises GptImgError: As :meth:`read`.
        """
        try:
            conn = get_connection(conn_id)
        except Exception as error:
            raise (_missing(conn_id) if _is_missing(error) else error) from None
        return cls.read(conn)

    @classmethod
    async def aload(cls, conn_id: str) -> ConnectionSettings:
        """Return what the connection `conn_id` says, without blocking the event loop.

        :raises GptImgError: As :meth:`load`.
        """
        from airflow_provider_gptimg.airflow_compat import get_async_connection

        try:
            conn = await get_async_connection(conn_id)
        except Exception as error:
            raise (_missing(conn_id) if _is_missing(error) else error) from None
        return cls.read(conn)

    @classmethod
    def read(cls, conn: Connection) -> ConnectionSettings:
        """Check the fields of `conn`, and return them as settings.

        :raises GptImgAuthError: It has no key, or one that fits in no header.
        :raises GptImgRequestError: A field is wrong; the message names connection, field and way out.
        """
        extra = read_extra(conn)

        def wrong(name: str, value: object, way_out: str) -> GptImgRequestError:
            return GptImgRequestError(f"Connection {conn.conn_id!r}: {name}={value!r:.120} {way_out}")

        def taken(name: str, reader: Callable[[Any], Any]) -> Any:
            try:
                return reader(extra.get(name))
            except ValueError as error:
                raise wrong(name, extra.get(name), str(error)) from None

        def seconds(name: str) -> float | None:
            number: float | None = taken(name, lambda value: None if value in (None, "") else read_seconds(name, value))
            return number

        base_url, origin = _read_base_url(conn)
        try:
            policy = check_on_unknown_submission(extra.get("on_unknown_submission") or None)
        except GptImgRequestError as error:
            raise GptImgRequestError(f"Connection {conn.conn_id!r}: {error.message}") from None
        reference_field = extra.get("reference_images_field") or "image_urls"
        if not isinstance(reference_field, str) or reference_field in ("prompt", "n", "aspect_ratio"):
            raise wrong(
                "reference_images_field", reference_field, "is not the name of a JSON field for reference images"
            )
        hosts = extra.get("media_hosts") or DEFAULT_MEDIA_HOSTS
        if isinstance(hosts, str):
            hosts = [host for host in re.split(r"[\s,]+", hosts) if host]
        if not isinstance(hosts, list | tuple):
            raise wrong("media_hosts", hosts, "is not a list of host patterns")
        for host in hosts:
            try:
                _pattern(host.lower())
            except (AttributeError, ValueError):
                raise wrong(
                    "media_hosts", host, "is not a host pattern such as 'cdn.example.com' or '*.example.com'"
                ) from None
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
            verify=taken("verify", read_verify),
            on_unknown_submission=policy,
            max_connections=taken("max_connections", lambda value: read_count(value, DEFAULT_MAX_CONNECTIONS)),
            final_failure_codes=taken("final_failure_codes", read_failure_codes),
            unknown_extras=tuple(unknown_extras(extra)),
        )

    def schedule(
        self, poll_interval: float | timedelta | None = None, first_poll_after: float | timedelta | None = None
    ) -> Schedule:
        """Return when to poll: as the task says, else this connection, else the default.

        :raises GptImgRequestError: What the task says is not a number of seconds.
        """
        chosen = {}
        for name, told, default in (
            ("poll_interval", poll_interval, self.poll_interval),
            ("first_poll_after", first_poll_after, self.first_poll_after),
        ):
            value = default if told is None else told
            if value is not None:
                try:
                    chosen[name] = read_seconds(name, value)
                except ValueError as error:
                    raise GptImgRequestError(f"{name}={value!r:.120} {error}") from None
        return _schedule(**chosen)

    def on_unknown(self, policy: object) -> str:
        """Return what to do about an unknown submission: as the task says, else this connection, else `fail`.

        :param policy: The task's `on_unknown_submission`.
        :raises GptImgRequestError: It is not known.
        """
        return check_on_unknown_submission(policy) or self.on_unknown_submission or "fail"

    @property
    def has_path(self) -> bool:
        """True if the API is served below a path of its host."""
        return self.base_url != str(self.origin)

    def refuse_key(self, *values: object) -> None:
        """Refuse a text that holds the key: a template rendered it, or a person pasted it.

        :param values: What is to be sent, or arguments before they are checked: an error would show them.
        :raises GptImgRequestError: One holds it. The message does not show it.
        """
        if len(self.api_key) < _SHORTEST_KEY:  # it would be found in innocent words
            return
        try:
            is_held = any(self.api_key in text for text in texts_of(values))
        except RecursionError:  # too deep to be sent, which another check says
            return
        if is_held:
            raise GptImgRequestError(
                f"A text of the request holds the API key of connection {self.conn_id!r}, so nothing was sent. Airflow "
                "renders Jinja also in what expand_kwargs() brings: pass foreign text by expand(), or as the XCom of "
                "one task"
            )

    def check_media_url(self, url: str) -> str:
        """Return `url` if an image may be fetched from its host.

        :raises GptImgMediaError: It is neither on an allowed host over HTTPS nor on the connection's own.
        """
        try:
            origin = Origin.of(url)
        except ValueError as error:
            raise GptImgMediaError(f"The image URL {clean_url(url)!r} is refused: {error}") from None
        if origin == self.origin or any(_pattern(host).allows(origin) for host in self.media_hosts):
            return url
        raise GptImgMediaError(
            f"The image URL {clean_url(url)!r} is not over HTTPS from an allowed host ({', '.join(self.media_hosts)}): "
            f"if it is right, add its host to extra.media_hosts of connection {self.conn_id!r}"
        )


def name_connection(error: GptImgAuthError, conn_id: str) -> GptImgAuthError:
    """Add the id of the connection to an error about its key, and the way out."""
    error.message = f"Connection {conn_id!r}: {error.message}"
    error.add_hint("Put a valid key into the connection's password, then clear the task")
    return error


def _is_missing(error: Exception) -> bool:
    """True if Airflow has no such connection; some of its versions say so by an error of another class."""
    from airflow_provider_gptimg.airflow_compat import AirflowNotFoundException

    return isinstance(error, AirflowNotFoundException) or "CONNECTION_NOT_FOUND" in str(error)


def _missing(conn_id: str) -> GptImgRequestError:
    return GptImgRequestError(
        f"There is no connection {conn_id!r}: make one, as in `airflow connections add {conn_id} --conn-type gptimg "
        "--conn-password <the API key>`, or name another by gptimg_conn_id"
    )


def _read_base_url(conn: Connection) -> tuple[str, Origin]:
    """Put scheme, host and port together as Airflow's `HttpHook` does, but with HTTPS as the default."""

    def refuse(why: str) -> GptImgRequestError:
        # Without what may be a key in the wrong place.
        shown = re.sub(r".*@", "***@", re.split(r"[?#]", conn.host or "", maxsplit=1)[0], flags=re.DOTALL)
        scheme = f" with schema={schema!r}" if schema and "://" not in host else ""
        return GptImgRequestError(
            f"Connection {conn.conn_id!r}: host={shown!r:.200}{scheme} is refused: {why}. It is the API's base URL, "
            f"as in {DEFAULT_BASE_URL!r}; leave it empty for that"
        )

    host, schema = (conn.host or "").strip(), (conn.schema or "").strip()
    if schema.lower() not in ("", *DEFAULT_PORTS) and "://" not in host:
        raise GptImgRequestError(
            f"Connection {conn.conn_id!r}: schema={schema!r:.120} is neither https nor http. Leave it empty for https. "
            "In a URI it is what follows the slash after the host; a path belongs into the host field"
        )
    if not host:
        host = DEFAULT_BASE_URL if not schema and not conn.port else urlsplit(DEFAULT_BASE_URL).netloc
    if "?" in host or "#" in host:
        raise refuse("it has a query string or a fragment")
    if "@" in host:
        raise refuse("it has user-info ('…@'); the key belongs into the password field")
    if _is_ipv6(host):  # as a URI gives it
        host = f"[{host}]"
    url = host if "://" in host else f"{schema or 'https'}://{host}"
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
    if re.search(r"/api/v[0-9]+(/|$)", parts.path):
        raise refuse("it has the path of the API's calls, /api/v1, which is added to it: leave that out")
    return f"{origin}{parts.path.rstrip('/')}", origin


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return "%" not in host


def _read_key(conn: Connection) -> str:
    key = (conn.password or "").strip()
    if not key:
        raise GptImgAuthError(f"Connection {conn.conn_id!r} has no API key: put it into the password field")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise GptImgAuthError(
            f"Connection {conn.conn_id!r}: the API key in the password field has characters that no key has "
            "(white space or beyond ASCII): paste it again"
        )
    return key
