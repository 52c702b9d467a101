# SPDX-License-Identifier: Apache-2.0
"""What connection and environment say of the way to a host: whose certificates to trust, and which proxy to take."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from functools import lru_cache
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import httpx

from airflow_provider_gptimg.exceptions import GptImgRequestError
from airflow_provider_gptimg.hooks.origin import Origin, parse_host

__all__ = ["proxy_for", "tls_context"]

_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR")


def tls_context(verify: bool | str) -> ssl.SSLContext:
    """Return the TLS context for `verify`: True, False, or the path of a CA bundle, a file or a folder.

    True trusts what SSL_CERT_FILE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE or SSL_CERT_DIR names, else certifi's bundle.
    It is cached, since reading a bundle takes 16–44 ms, and read again when the bundle has changed.

    :raises GptImgRequestError: There is no such bundle.
    """
    named = "verify in the connection's extra"
    if verify is True:
        named = next((name for name in _CA_VARIABLES if os.environ.get(name)), "")
        verify = os.environ[named] if named else True
    if not isinstance(verify, str):
        return _context(verify, None)
    try:
        state = Path(verify).stat()
        return _context(verify, (state.st_mtime_ns, state.st_size, state.st_ino))
    except (OSError, ValueError) as error:
        raise GptImgRequestError(f"{named} is {verify!r:.200}, which is not a CA bundle: {error}") from None


@lru_cache(maxsize=8)
def _context(verify: bool | str, state: tuple[int, ...] | None) -> ssl.SSLContext:
    if not isinstance(verify, str):
        return httpx.create_ssl_context(verify=verify, trust_env=False)
    if Path(verify).is_dir():
        return ssl.create_default_context(capath=verify)
    return ssl.create_default_context(cafile=verify)


def proxy_for(origin: Origin) -> str | None:
    """Return the proxy that the environment names for `origin`. Loopback hosts need none.

    :raises GptImgRequestError: It is not an HTTP proxy.
    """
    proxies = getproxies()
    if origin.is_loopback or _is_exempt(origin, proxies.get("no", "")):
        return None
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
            f"The environment's proxy for {origin} ({origin.scheme.upper()}_PROXY or ALL_PROXY) is not an http:// or "
            f"https:// URL: correct it, or name {origin.host} in NO_PROXY"
        )
    return proxy


def _is_exempt(origin: Origin, no_proxy: str) -> bool:
    """Return whether NO_PROXY names `origin`: by name, parent domain, address or network, each with or without port."""
    if any(_exempts(entry, origin) for entry in re.split(r"[\s,]+", no_proxy) if entry):
        return True
    return bool(proxy_bypass(str(origin.host)))  # macOS and Windows have settings of their own


def _exempts(entry: str, origin: Origin) -> bool:
    if entry == "*":
        return True
    entry = entry.lower()
    if match := re.fullmatch(r"(\[[^\]]+\]|[^:]+):([0-9]+)", entry):
        entry = match[1]
        if int(match[2]) != origin.port:
            return False
    entry = entry.strip("[]")
    if isinstance(origin.host, str):
        name = entry.removeprefix("*").removeprefix(".")
        return origin.host == name or origin.host.endswith(f".{name}")
    try:
        if "/" in entry:
            return origin.host in ipaddress.ip_network(entry, strict=False)
        return origin.host == parse_host(entry)
    except ValueError:
        return False
