# SPDX-License-Identifier: Apache-2.0
"""One HTTP exchange with httpx, and what it shares with the triggerer's in `shared_client`.

Redirects are never followed, and the key goes into the Authorization header to the API's own host only.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from airflow_provider_gptimg import __version__
from airflow_provider_gptimg.api.answers import Answer, NoAnswer
from airflow_provider_gptimg.api.calls import Call
from airflow_provider_gptimg.api.texts import clean, read_payload
from airflow_provider_gptimg.hooks.connection import ConnectionSettings
from airflow_provider_gptimg.hooks.decoding import ACCEPT_ENCODING, BodyError, BoundedBody
from airflow_provider_gptimg.hooks.network import proxy_for, tls_context
from airflow_provider_gptimg.hooks.origin import Origin
from airflow_provider_gptimg.hooks.time_limit import TimeLimit

__all__ = ["MAX_ANSWER", "USER_AGENT", "exchange", "make_answer", "request_headers", "sync_client", "why_not"]

USER_AGENT = f"airflow-provider-gptimg/{__version__}"
MAX_ANSWER = 64 * 1024
"""Greatest size of an answer's body in bytes; the API sends some hundred."""

_SHORTEST_SECRET = 5
_WANTED_HEADERS = (b"date", b"retry-after", b"x-request-id")
# Errors after which the request certainly never left: the connection to the API was not made.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


class _Transport(httpx.HTTPTransport):
    """Keep possible secrets out of the line that httpx logs for each request."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        response.extensions.pop("reason_phrase", None)  # a server's free text; httpx then takes the usual phrase
        if request.url.query:
            request.url = request.url.copy_with(query=None)
        return response


def sync_client(settings: ConnectionSettings, origin: Origin | None = None) -> httpx.Client:
    """Return a client that follows no redirect and reads no credentials from the environment.

    :param origin: Of the host to speak to; None: the API's.
    """
    origin = origin or settings.origin
    proxy = proxy_for(origin)
    if origin.scheme == "https" or (proxy and proxy.startswith("https")) or isinstance(settings.verify, str):
        context = tls_context(settings.verify)
    else:  # reading the usual certificates takes 20 ms; this context trusts none
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # A proxy that is reached over TLS is verified as the host behind it is.
    way = httpx.Proxy(proxy, ssl_context=context if proxy.startswith("https") else None) if proxy else None
    return httpx.Client(
        transport=_Transport(verify=context, trust_env=False, proxy=way),
        trust_env=False,
        follow_redirects=False,
        # What a server ties to one key must not go out with the next one.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"user-agent": USER_AGENT},
        timeout=httpx.Timeout(settings.call_timeout, pool=None),
    )


def exchange(
    client: httpx.Client,
    settings: ConnectionSettings,
    call: Call,
    secrets: tuple[str, ...] = (),
    before_send: Callable[[], None] | None = None,
) -> Answer | NoAnswer:
    """Send `call` and return what came of it.

    :param secrets: Texts besides the key that no answer may bring back, e.g. presigned URLs.
    :param before_send: Called when the connection is made, right before the first byte; what it raises is raised.
    """
    headers = request_headers(settings)
    if call.is_submit:
        # A server may close an idle connection just as a request goes out on it; whether it then saw the
        # request cannot be known. So a submit never goes out on a kept connection, and leaves none.
        headers["connection"] = "close"
    response: httpx.Response | None = None
    with TimeLimit(settings.call_timeout, before_send) as limit:
        try:
            with client.stream(
                call.method,
                settings.base_url + call.path,
                headers=headers,
                json=call.body,
                extensions={"trace": limit.trace},
            ) as response:
                limit.take(response.extensions["network_stream"])
                body, flaw = _receive(response)
        except (httpx.RequestError, OSError) as error:
            if response is None or response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                was_sent = not (limit.only_asked_proxy or isinstance(error, _NOT_SENT))
                return NoAnswer(why_not(error, settings, limit.is_over, secrets), sent=was_sent)
            body, flaw = b"", None  # the headers of a 429 say all that is needed
    return make_answer(response.status_code, response.headers.raw, body, flaw, settings, secrets)


def _receive(response: httpx.Response) -> tuple[bytes, str | None]:
    """Return the body, and the reason if it could not be read."""
    try:
        bounded = BoundedBody(response.headers.get("content-encoding", ""), MAX_ANSWER)
        body = b"".join(piece for chunk in response.iter_raw() for piece in bounded.feed(chunk))
        bounded.end()
    except BodyError as error:
        return b"", f"the body {error}"
    return body, None


def request_headers(settings: ConnectionSettings) -> dict[str, str]:
    """Return the headers of a request to the API."""
    return {
        "authorization": f"Bearer {settings.api_key}",
        "accept": "application/json",
        "accept-encoding": ACCEPT_ENCODING,
        "user-agent": USER_AGENT,
    }


def make_answer(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    flaw: str | None,
    settings: ConnectionSettings,
    secrets: tuple[str, ...] = (),
) -> Answer:
    """Return an answer that came, with each secret taken out of it.

    :param flaw: Why its body could not be read to the end, if so.
    """
    secrets = _long_enough(settings.api_key, *secrets)
    wanted: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = raw_name.lower()
        if name in _WANTED_HEADERS:
            wanted[name.decode("ascii")] = _without(secrets, raw_value.decode("latin-1"))
    return Answer(
        status=status,
        headers=wanted,
        payload=None if flaw else read_payload(body, secrets),
        received_at=time.time(),
        flaw=flaw,
    )


def why_not(error: Exception, settings: ConnectionSettings, out_of_time: bool, secrets: tuple[str, ...] = ()) -> str:
    """Return in words why no answer came, without the key: an answer that is not HTTP may quote the request."""
    if out_of_time:
        return f"the answer took longer than {settings.call_timeout:g} s"
    keys = _long_enough(settings.api_key, *secrets)
    place = _without(keys, settings.base_url) if isinstance(error, _NOT_SENT) else ""
    reason = ": ".join(filter(None, (place, type(error).__name__, clean(_without(keys, str(error))))))
    if settings.origin.is_loopback and "[SSL: " in reason and "CERTIFICATE" not in reason:
        reason += ". If this host speaks http and not https, write http:// before it in the connection"
    return reason


def _long_enough(*secrets: str) -> tuple[str, ...]:
    # A shorter text would be found in innocent words; Airflow's own masker leaves it alone, too.
    return tuple(secret for secret in secrets if len(secret) >= _SHORTEST_SECRET)


def _without(secrets: tuple[str, ...], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
