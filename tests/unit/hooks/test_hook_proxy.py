# SPDX-License-Identifier: Apache-2.0
"""Which proxy of the environment is taken, and which is refused before anything is sent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from raw_server import raw_server

from airflow_provider_gptimg.api import protocol
from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError
from airflow_provider_gptimg.hooks.connection import Origin
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.hooks.network import proxy_for

API = "https://gptimg.example"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> GptImgHook:
    fields = {"conn_type": "gptimg", "host": API, "password": "a-key-of-mine", "extra": {"timeout": 5}}
    monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", json.dumps(fields))
    return GptImgHook()


def refuses(connection: Any) -> None:
    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("scheme", ["http://", ""], ids=["with-scheme", "without-scheme"])
def test_calls_go_over_the_proxy_of_the_environment(monkeypatch, hook, scheme):
    monkeypatch.setattr(protocol, "backoff", lambda *_: 0.0)
    with raw_server(refuses) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.base_url.replace("http://", scheme))
        accepted, words = hook.test_connection()
        with pytest.raises(GptImgError):
            asyncio.run(hook.aget_task("gpt-image-2-x"))
        heads = [request.split(b"\r\n")[0] for request in proxy.requests]
        assert set(heads) == {b"CONNECT gptimg.example:443 HTTP/1.1"}
    assert not accepted
    assert "unreachable" in words


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://user:secret-of-proxy@127.0.0.1:9",
        "ftp://127.0.0.1",
        "http://user:secret-of-proxy@127.0.0.1:port",
        "http://",
    ],
)
class TestNoHttpProxy:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
        monkeypatch.setenv("ALL_PROXY", proxy)

    def test_is_refused_before_anything_is_sent(self, hook):
        for call in (
            lambda: hook.submit("a cat"),
            lambda: hook.get_task("gpt-image-2-x"),
            lambda: asyncio.run(hook.aget_task("gpt-image-2-x")),
        ):
            with pytest.raises(GptImgRequestError, match="ALL_PROXY") as caught:
                call()
            assert "NO_PROXY" in str(caught.value)
            assert "secret-of-proxy" not in str(caught.value)

    def test_is_what_a_test_of_the_connection_says(self, hook):
        accepted, words = hook.test_connection()
        assert not accepted
        assert "ALL_PROXY" in words

    def test_does_not_matter_on_the_way_to_this_machine(self, emulator):
        assert GptImgHook().submit("a cat").task_id


@pytest.mark.parametrize("no_proxy", ["gptimg.example", "*", ".example"])
def test_a_host_may_be_exempt(monkeypatch, no_proxy):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert proxy_for(Origin.of(API)) == "http://127.0.0.1:9"
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for(Origin.of(API)) is None


NAME, ADDRESS, IPV6 = "https://gw.corp.example:8443", "https://10.1.2.3:8443", "https://[fd00::5]:8443"


@pytest.mark.parametrize(
    ("no_proxy", "exempt"),
    [
        ("gw.corp.example", {NAME}),
        ("GW.Corp.Example", {NAME}),
        (".corp.example", {NAME}),
        ("*.corp.example", {NAME}),
        ("corp.example", {NAME}),
        ("orp.example", set()),
        ("gw.corp.example:8443", {NAME}),
        ("gw.corp.example:443", set()),
        ("a.example, gw.corp.example", {NAME}),
        ("a.example gw.corp.example", {NAME}),
        ("10.1.2.3", {ADDRESS}),
        ("10.1.2.3:8443", {ADDRESS}),
        ("10.1.2.3:443", set()),
        ("10.0.0.0/8", {ADDRESS}),
        ("10.1.2.3/8", {ADDRESS}),
        ("192.168.0.0/16,fd00::/8", {IPV6}),
        ("fd00::5", {IPV6}),
        ("[fd00:0::5]", {IPV6}),
        ("[fd00::5]:8443", {IPV6}),
        ("[fd00::5]:443", set()),
        ("2.3", set()),
        ("10.1.2.3/99, /, :, [", set()),
        ("*", {NAME, ADDRESS, IPV6}),
        ("", set()),
    ],
)
def test_exemptions_are_read_as_curl_and_requests_read_them(monkeypatch, no_proxy, exempt):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert {url for url in (NAME, ADDRESS, IPV6) if proxy_for(Origin.of(url)) is None} == exempt
