# SPDX-License-Identifier: Apache-2.0
"""How bytes travel: TLS, proxies, and one HTTP exchange, with sockets or with asyncio.

Redirects are never followed, and the key goes into the Authorization header to the API's own host only.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from airflow_provider_gptimg import __version__
from airflow_provider_gptimg.api.answers import Answer, NoAnswer, read_payload
from airflow_provider_gptimg.api.calls import Call
from airflow_provider_gptimg.exceptions import GptImgRequestError
from airflow_provider_gptimg.hooks.connection import ConnectionSettings, Origin

__all__ = ["USER_AGENT", "async_exchange", "exchange", "proxy_for", "sync_client", "tls_context"]

USER_AGENT = f"airflow-provider-gptimg/{__version__}"

_SHORTEST_SECRET = 5
_WANTED_HEADERS = ("date", "retry-after", "x-request-id")
_SHOWN = 300
_MAX_BODY = 4 * 1024 * 1024
_NO_BODY = httpx.ByteStream(b"")
_TOO_LARGE = NoAnswer("the answer is larger than any answer of the API", sent=True)
# Errors after which the request certainly never left: the connection to the API was not made.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


@lru_cache(maxsize=8)
def tls_context(verify: bool | str) -> ssl.SSLContext:
    """Return the TLS context for `verify`: True, False, or a CA bundle's file or folder.

    Cached, since reading a CA bundle takes 16–44 ms.

    :raises GptImgRequestError: There is no such bundle.
    """
    if not isinstance(verify, str):
        return httpx.create_ssl_context(verify=verify)
    path = Path(verify)
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=verify)
        return ssl.create_default_context(cafile=verify)
    except OSError as error:
        raise GptImgRequestError(f"verify={verify!r} in the connection's extra is no CA bundle: {error}") from None


def proxy_for(origin: Origin) -> str | None:
    """Return the proxy that the environment names for `origin`. Loopback hosts need none.

    :raises GptImgRequestError: It is no HTTP proxy.
    """
    if origin.is_loopback or proxy_bypass(origin.host):
        return None
    proxies = getproxies()
    proxy = proxies.get(origin.scheme) or proxies.get("all")
    if not proxy:
        return None
    if "://" not in proxy:  # as curl and pip read it
        proxy = f"http://{proxy}"
    try:
        url = httpx.Proxy(proxy).url
        known = url.scheme in ("http", "https") and bool(url.host)
    except (ValueError, httpx.InvalidURL):
        known = False
    if not known:
        # Without its value, which may hold a password.
        raise GptImgRequestError(
            f"The environment's proxy for {origin} ({origin.scheme.upper()}_PROXY or ALL_PROXY) is no http:// or "
            f"https:// URL: correct it, or name {origin.host} in NO_PROXY"
        )
    return proxy


def _no_cookies() -> CookieJar:
    """Return a cookie jar that takes none: what a server ties to one key must not go out with the next one."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def sync_client(settings: ConnectionSettings, origin: Origin | None = None) -> httpx.Client:
    """Return a client that follows no redirect and reads no credentials from the environment."""
    return httpx.Client(
        verify=tls_context(settings.verify),
        proxy=proxy_for(origin or settings.origin),
        trust_env=False,
        follow_redirects=False,
        cookies=_no_cookies(),
        headers={"user-agent": USER_AGENT},
        timeout=httpx.Timeout(settings.call_timeout, pool=None),
    )


class _TimeLimit:
    """Ends a call when its time is up, by closing its connection: httpx counts its time-out anew for each read."""

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self.only_asked_proxy = False
        """Whether nothing went out but the question to a proxy for the way: then the call itself was not sent."""
        self._seconds = seconds
        self._stream: Any = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _TimeLimit:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Take the connection over which the call goes, once it is made; httpx calls this as its `trace` extension."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            if self.is_over:
                raise httpx.ConnectTimeout(f"no connection in {self._seconds:g} s")
            self.take(info["return_value"])
        elif event.endswith(".send_request_headers.started"):
            self.only_asked_proxy = info["request"].method == b"CONNECT"

    def take(self, stream: Any) -> None:
        """Close this connection when time is up."""
        self._stream = stream

    def _end(self) -> None:
        self.is_over = True
        if self._stream is not None:
            with suppress(OSError):  # it is closed already
                self._stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def exchange(
    client: httpx.Client, settings: ConnectionSettings, call: Call, secrets: tuple[str, ...] = ()
) -> Answer | NoAnswer:
    """Send `call` and return what came of it.

    :param secrets: Texts besides the key that no answer may bring back, e.g. presigned URLs.
    """
    url, headers = settings.base_url + call.path, _headers(settings, call)
    response: httpx.Response | None = None
    body = bytearray()
    with _TimeLimit(settings.call_timeout) as limit:
        try:
            with client.stream(
                call.method, url, headers=headers, json=call.body, extensions={"trace": limit.trace}
            ) as response:
                limit.take(response.extensions["network_stream"])
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > _MAX_BODY:
                        return _without_body(response, _TOO_LARGE, settings)
        except (httpx.RequestError, OSError) as error:
            no_answer = _no_answer(error, settings, limit.is_over, limit.only_asked_proxy, secrets)
            return _without_body(response, no_answer, settings)
    return _answer(response, bytes(body), settings, secrets)


async def async_exchange(
    transport: httpx.AsyncBaseTransport, settings: ConnectionSettings, call: Call
) -> Answer | NoAnswer:
    """Send `call`, a read, and return what came of it; :func:`exchange` for an event loop.

    It takes httpx's transport alone: redirects, cookies and credentials from elsewhere, for which a client stands
    before it, are what must not happen here, and would cost as much again as all the rest.
    """
    request = _Read(settings.base_url + call.path, _read_headers(settings.base_url, settings.api_key))
    response: httpx.Response | None = None
    body = bytearray()
    try:
        async with asyncio.timeout(settings.call_timeout):
            response = await transport.handle_async_request(request)
            response.headers.encoding = "latin-1"  # else httpx looks for one that fits all headers
            assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - the transport is async
            try:
                # As a rule there is nothing to decode: then without the layers that would.
                encoded = "content-encoding" in response.headers
                async for chunk in response.aiter_bytes() if encoded else response.stream:
                    body += chunk
                    if len(body) > _MAX_BODY:
                        await response.aclose()
                        return _without_body(response, _TOO_LARGE, settings)
            except BaseException:
                # Only then: at its end, an answer has given its connection back.
                await response.aclose()
                raise
    except _transport_errors() as error:
        return _without_body(response, _no_answer(error, settings, isinstance(error, TimeoutError)), settings)
    return _answer(response, bytes(body), settings, ())


def _transport_errors() -> tuple[type[Exception], ...]:
    import aiohttp  # it takes 0.1 s, and who waits on a worker needs none of it

    # httpx_aiohttp leaves some as they are, of answers that are no HTTP, say.
    return httpx.RequestError, OSError, aiohttp.ClientError


def _headers(settings: ConnectionSettings, call: Call) -> dict[str, str]:
    headers = _authorized(settings.api_key)
    if call.is_submit:
        # A server may close an idle connection just as a request goes out on it; whether it then saw the
        # request cannot be known. So a submit never goes out on a kept connection, and leaves none.
        headers["connection"] = "close"
    return headers


def _authorized(api_key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}", "accept": "application/json"}


class _Url(httpx.URL):
    """A URL that is parsed only where its parts are asked for: the transport of a poll wants no more than its text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __getattr__(self, name: str) -> Any:
        return getattr(httpx.URL(self._text), name)


class _Read(httpx.Request):
    """A GET without what httpx does to make one, which takes a seventh of a poll.

    To keep each task's request instead would make thousands of objects, over which the garbage collector stops the
    loop.
    """

    def __init__(self, url: str, headers: httpx.Headers) -> None:
        self.method = "GET"
        self.url = _Url(url)
        self.headers = headers
        self.extensions = {}
        self.stream = _NO_BODY
        self._content = b""


@lru_cache(maxsize=8)
def _read_headers(base_url: str, api_key: str) -> httpx.Headers:
    """Return the headers of all reads, made once: httpx takes its time over them."""
    host = httpx.URL(base_url).netloc.decode("ascii")
    own = {"host": host, "user-agent": USER_AGENT, "accept-encoding": "gzip, deflate"}
    return httpx.Headers(own | _authorized(api_key), encoding="ascii")


def _answer(response: httpx.Response, body: bytes, settings: ConnectionSettings, secrets: tuple[str, ...]) -> Answer:
    secrets = _long_enough(settings.api_key, *secrets)
    return Answer(
        status=response.status_code,
        headers=_clean_headers(response.headers, secrets),
        payload=read_payload(body, secrets),
        received_at=time.time(),
    )


def _long_enough(*secrets: str) -> tuple[str, ...]:
    # A shorter text would be found in innocent words; Airflow's own masker leaves it alone, too.
    return tuple(secret for secret in secrets if len(secret) >= _SHORTEST_SECRET)


def _without_body(
    response: httpx.Response | None, no_answer: NoAnswer, settings: ConnectionSettings
) -> Answer | NoAnswer:
    """Return what an answer is whose body did not come: none, but for 429, whose head says all that counts."""
    if response is not None and response.status_code == httpx.codes.TOO_MANY_REQUESTS:
        return _answer(response, b"", settings, ())
    return no_answer


def _clean_headers(headers: httpx.Headers, secrets: tuple[str, ...]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for raw_name, raw_value in headers.raw:
        name = raw_name.lower().decode("latin-1")
        if name in _WANTED_HEADERS:
            value = raw_value.decode(headers.encoding)
            for secret in secrets:
                value = value.replace(secret, "***")
            wanted[name] = value
    return wanted


def _no_answer(
    error: Exception,
    settings: ConnectionSettings,
    out_of_time: bool,
    only_asked_proxy: bool = False,
    secrets: tuple[str, ...] = (),
) -> NoAnswer:
    reason = " ".join(str(error).split())
    for secret in _long_enough(settings.api_key, *secrets):
        reason = reason.replace(secret, "***")  # what is no HTTP may quote the request
    reason = ": ".join(filter(None, (type(error).__name__, reason[:_SHOWN])))
    if out_of_time:
        reason = f"the answer took longer than {settings.call_timeout:g} s"
    return NoAnswer(reason, sent=not (only_asked_proxy or isinstance(error, _NOT_SENT)))
