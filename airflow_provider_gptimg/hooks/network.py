# SPDX-License-Identifier: Apache-2.0
"""Certificates to trust and proxies to use, from the connection and the environment."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import threading
from functools import lru_cache
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import httpx

from airflow_provider_gptimg.exceptions import GptImgRequestError
from airflow_provider_gptimg.hooks.origin import Origin, parse_host

__all__ = ["proxy_for", "tls_context"]

_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR")
_making = threading.Lock()


def tls_context(verify: bool | str) -> ssl.SSLContext:
    """Return the TLS context for `verify`: True, False, or the path of a CA bundle, a file or a folder.

    True trusts all that SSL_CERT_FILE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE and SSL_CERT_DIR name, else certifi's
    bundle. A context is cached, since reading a bundle takes 16–44 ms, and made again when a bundle has changed.

    :raises GptImgRequestError: There is no such bundle.
    """
    if verify is False:
        return _context(False, ())
    named = {"extra.verify": verify} if isinstance(verify, str) else {}
    if not named:
        named = {name: path for name in _CA_VARIABLES if (path := os.environ.get(name))}
    try:
        # Variables often name one file under several paths: read it once.
        paths = dict.fromkeys(os.path.realpath(path) for path in named.values())
        states = tuple((path, _state(path)) for path in paths)
        with _making:  # else threads that start together each make one
            return _context(True, states)
    except (OSError, ValueError) as error:
        names = ", ".join(f"{name}={path!r:.200}" for name, path in named.items())
        raise GptImgRequestError(f"No CA bundle can be read from {names}: {error}") from None


def _state(path: str) -> tuple[int, int, int]:
    """Return a stamp that changes when a bundle is renewed in place."""
    state = Path(path).stat()
    return state.st_mtime_ns, state.st_size, state.st_ino


@lru_cache(maxsize=16)
def _context(verify: bool, bundles: tuple[tuple[str, tuple[int, int, int]], ...]) -> ssl.SSLContext:
    if not bundles:
        return httpx.create_ssl_context(verify=verify, trust_env=False)
    (first, _), *others = bundles
    cafile, capath = _location(first)
    context = ssl.create_default_context(cafile=cafile, capath=capath)
    for path, _ in others:
        context.load_verify_locations(*_location(path))
    return context


def _location(path: str) -> tuple[str | None, str | None]:
    """Return the path as file, or as folder."""
    return (None, path) if Path(path).is_dir() else (path, None)


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
    if not no_proxy:
        return bool(proxy_bypass(str(origin.host)))  # macOS and Windows have settings of their own
    return any(_exempts(entry, origin) for entry in re.split(r"[\s,]+", no_proxy) if entry)


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
