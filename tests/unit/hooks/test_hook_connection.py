# SPDX-License-Identifier: Apache-2.0
"""What a connection may say, what it is then taken for, and which image hosts it allows; before any network."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, strategies as st

from airflow_provider_gptimg.airflow_compat import Connection
from airflow_provider_gptimg.exceptions import GptImgAuthError, GptImgError, GptImgMediaError, GptImgRequestError
from airflow_provider_gptimg.hooks import extras
from airflow_provider_gptimg.hooks.connection import ConnectionSettings
from airflow_provider_gptimg.hooks.gptimg import GptImgHook

KEY = "sk-very-secret-key"


def make_connection(extra: Any = None, **fields: Any) -> Connection:
    extra = json.dumps(extra) if extra is not None and not isinstance(extra, str) else extra
    return Connection(conn_id="c", conn_type="gptimg", extra=extra, **{"password": KEY, **fields})


def settings(extra: Any = None, **fields: Any) -> ConnectionSettings:
    return ConnectionSettings.read(make_connection(extra, **fields))


class TestBaseUrl:
    @pytest.mark.parametrize(
        ("fields", "base_url"),
        [
            pytest.param({}, "https://gptimg.co", id="empty"),
            pytest.param({"host": ""}, "https://gptimg.co", id="empty-text"),
            pytest.param({"host": "  "}, "https://gptimg.co", id="blank"),
            pytest.param({"port": 8443}, "https://gptimg.co:8443", id="empty-with-port"),
            pytest.param({"schema": "https"}, "https://gptimg.co", id="empty-with-schema"),
            pytest.param({"host": "gptimg.co"}, "https://gptimg.co", id="without-scheme"),
            pytest.param({"host": "https://gptimg.co"}, "https://gptimg.co", id="with-scheme"),
            pytest.param({"host": "https://gptimg.co/"}, "https://gptimg.co", id="trailing-slash"),
            pytest.param({"host": " https://gptimg.co\n"}, "https://gptimg.co", id="pasted-with-white-space"),
            pytest.param({"host": "HTTPS://GPTIMG.CO"}, "https://gptimg.co", id="upper-case"),
            pytest.param({"host": "gptimg.co."}, "https://gptimg.co", id="fully-qualified"),
            pytest.param({"host": "gptimg.co:443"}, "https://gptimg.co", id="default-port"),
            pytest.param({"host": "gptimg.co:8443"}, "https://gptimg.co:8443", id="port-in-host"),
            pytest.param({"host": "gptimg.co", "port": 8443}, "https://gptimg.co:8443", id="port-field"),
            pytest.param({"host": "gptimg.co:8443", "port": 8443}, "https://gptimg.co:8443", id="port-twice-the-same"),
            pytest.param({"host": "gptimg.co", "schema": "https"}, "https://gptimg.co", id="schema-field"),
            pytest.param({"host": "localhost", "schema": "http"}, "http://localhost", id="schema-field-http"),
            pytest.param(
                {"host": "https://gptimg.co", "schema": "http"}, "https://gptimg.co", id="scheme-of-host-wins"
            ),
            pytest.param({"host": "proxy.example/gptimg/v2/"}, "https://proxy.example/gptimg/v2", id="path-prefix"),
            pytest.param({"host": "proxy.example/x", "port": 81}, "https://proxy.example:81/x", id="prefix-and-port"),
            pytest.param({"host": "https://[2001:db8::1]:8443/x"}, "https://[2001:db8::1]:8443/x", id="ipv6"),
            pytest.param({"host": "https://[2001:DB8:0::1]"}, "https://[2001:db8::1]", id="ipv6-in-one-form"),
            pytest.param(
                {"host": "2001:db8::1", "port": 8443}, "https://[2001:db8::1]:8443", id="ipv6-without-brackets"
            ),
            pytest.param({"host": "http://localhost:8099"}, "http://localhost:8099", id="loopback-name"),
            pytest.param({"host": "http://127.0.0.1:8099"}, "http://127.0.0.1:8099", id="loopback"),
            pytest.param({"host": "http://127.8.9.10"}, "http://127.8.9.10", id="loopback-net"),
            pytest.param({"host": "http://[::1]:8099"}, "http://[::1]:8099", id="loopback-ipv6"),
            pytest.param({"host": "http://localhost."}, "http://localhost", id="loopback-fully-qualified"),
            pytest.param(
                {"host": "127.0.0.1", "schema": "http", "port": 80}, "http://127.0.0.1", id="as-a-uri-gives-it"
            ),
        ],
    )
    def test_is(self, fields, base_url):
        assert settings(**fields).base_url == base_url

    @pytest.mark.parametrize(
        ("uri", "base_url"),
        [
            ("gptimg://:key-of-mine@", "https://gptimg.co"),
            ("gptimg://:key-of-mine@gptimg.co", "https://gptimg.co"),
            ("gptimg://:key-of-mine@127.0.0.1:8099/http", "http://127.0.0.1:8099"),
            ("gptimg://:key-of-mine@[::1]:8099/http", "http://[::1]:8099"),
            ("gptimg://:key-of-mine@[2001:db8::5]:8443", "https://[2001:db8::5]:8443"),
            ("gptimg://:key-of-mine@https%3A%2F%2Fproxy.example%2Fx", "https://proxy.example/x"),
        ],
    )
    def test_is_read_from_a_uri_too(self, monkeypatch, uri, base_url):
        monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", uri)
        read = GptImgHook().settings
        assert (read.base_url, read.api_key) == (base_url, "key-of-mine")

    REFUSED = (
        *(
            ({"host": host}, "clear")
            for host in (
                "http://gptimg.co",
                "HTTP://gptimg.co",
                "http://localhost.evil.com",
                "http://127.0.0.1.evil.com",
                "http://evil.com/localhost",
                "http://notlocalhost",
                "http://localhost.localdomain",
                "http://10.0.0.1",
                "http://192.168.0.1",
                "http://0.0.0.0",
                "http://169.254.169.254",
                "http://[::]",
                "http://[::ffff:10.0.0.1]",
                "http://[fe80::1]",
            )
        ),
        ({"host": "gptimg.co", "schema": "http"}, "clear"),
        ({"schema": "http"}, "clear"),
        ({"schema": "http", "port": 8080}, "clear"),
        *(({"host": host}, "query") for host in ("gptimg.co?key=x", "https://gptimg.co/?", "https://gptimg.co?a=b")),
        *(
            ({"host": host}, "fragment")
            for host in ("gptimg.co#x", "https://gptimg.co/#", "https://evil.com#gptimg.co")
        ),
        *(
            ({"host": host}, "user-info")
            for host in (
                "user@gptimg.co",
                "https://user:pw@gptimg.co",
                "https://gptimg.co@evil.com",
                "http://localhost@evil.com",
                "https://@gptimg.co",
                "https://user:p/w@gptimg.co",
                "gptimg.co:443@evil.com",
            )
        ),
        *(
            ({"host": host}, "white space, a backslash or a control")
            for host in (
                "https://gptimg.co\\@evil.com".replace("@", "."),
                "https://gptimg.co\\.evil.com",
                "https:\\\\gptimg.co",
                "http://localhost\\.evil.com",
                "gptimg.co evil.com",
                "gptimg\t.co",
                "gptimg.co\r\nHost: evil.com",
                "gptimg.co\x00",
                "gptimg.co\x7f",
                "gptimg.co\u00a0.evil.com",
                "https://gptimg.co/a b",
            )
        ),
        *(
            ({"host": host}, "neither https")
            for host in (
                "ftp://gptimg.co",
                "file:///etc/passwd",
                "javascript://x",
                "://gptimg.co",
                "httpss://gptimg.co",
            )
        ),
        *(
            ({"host": host, "schema": schema}, f"schema={schema!r} is neither https nor http")
            for host, schema in (("gptimg.co", "ftp"), ("", "gptimg"), ("gptimg.co", "api/v1"), ("x", "https://y?"))
        ),
        ({"schema": "http"}, "host='' with schema='http' is refused"),
        *(
            ({"host": host}, "host")
            for host in (
                "https://",
                "https:///x",
                "//gptimg.co",
                "/",
                ":8080",
                "-gptimg.co",
                "gptimg,co",
                "gptimg.co%2eevil.com",
                "gptimg。co",
                "gptimg.co\u3002evil.com",
                "ｌocalhost",
                "https://[::1",
                "https://[gptimg.co]",
                "https://[1::2::3]",
                "https://gptimg.co:port",
                "https://gptimg.co:70000",
                "https://gptimg.co:-1",
                "https://gptimg.co:0",
                "https://ex_ample_/x",
                "a..b",
                "gptimg.co..",
                f"{64 * 'a'}.example",
                ".".join(43 * ["label"]),
                "xn--a.com",
                "http://127.1",
                "http://2130706433",
                "http://0x7f000001",
                "https://[fd00:ec2::254%25.gptimg.co]",
                "http://[::1%25.gptimg.co]:8099",
                "http://[::1%lo]",
            )
        ),
        *(
            ({"host": host}, "leave that out")
            for host in (
                "https://gptimg.co/api/v1",
                "https://gptimg.co/api/v1/",
                "gptimg.co/api/v1/images/generate",
                "https://proxy.example/gptimg/api/v1",
            )
        ),
        ({"host": "gptimg.co:8443", "port": 443}, "port"),
        ({"host": "gptimg.co", "port": 70000}, "port"),
        ({"host": "gptimg.co", "port": -1}, "port"),
    )

    @pytest.mark.parametrize(
        ("fields", "why"), REFUSED, ids=lambda value: repr(value)[:50] if isinstance(value, dict) else ""
    )
    def test_refuses(self, fields, why):
        with pytest.raises(GptImgRequestError) as refusal:
            settings(**fields)
        assert why.lower() in str(refusal.value).lower()
        assert "'c'" in str(refusal.value)

    @pytest.mark.parametrize(
        "host",
        [
            f"{KEY}@gptimg.co",
            f"https://{KEY}@gptimg.co",
            f"https://user:{KEY}@gptimg.co",
            f"https://a/{KEY}@gptimg.co",
            f"https://user:{KEY[:9]}/{KEY}@gptimg.co",
            f"gptimg.co?api_key={KEY}",
            f"https://gptimg.co/#{KEY}",
            f"gptimg.co:{KEY}@x",
        ],
    )
    def test_a_refusal_shows_no_key_that_was_put_into_the_host(self, host):
        with pytest.raises(GptImgRequestError) as refusal:
            settings(host=host)
        assert KEY not in str(refusal.value)
        assert KEY[:9] not in str(refusal.value)

    @given(
        st.text(st.sampled_from("abc.:/@\\?#%[]-_ \t\n。１localhost127.0.0.1htps")) | st.text(),
        st.none() | st.sampled_from(["http", "https", "", "x"]),
        st.none() | st.integers(-1, 70_000),
    )
    def test_nothing_but_https_or_loopback_comes_out(self, host, schema, port):
        try:
            read = settings(host=host, schema=schema, port=port)
        except GptImgError:
            return
        import httpx

        url = httpx.URL(read.base_url + "/api")
        assert url.scheme == "https" or url.host in ("localhost", "::1") or url.host.startswith("127.")
        assert (url.scheme, url.host) == (read.origin.scheme, str(read.origin.host))
        assert (url.port or {"https": 443, "http": 80}[url.scheme]) == read.origin.port
        assert 1 <= read.origin.port <= 65535
        assert not url.userinfo
        assert not url.query
        assert not url.fragment


class TestKey:
    @pytest.mark.parametrize("password", [None, "", " ", "\n"])
    def test_must_be_there(self, password):
        with pytest.raises(GptImgAuthError, match="'c' has no API key"):
            settings(password=password)

    @pytest.mark.parametrize("password", ["a key", "a\nkey", "a\r\nX-Evil: 1", "schlüssel", "key\x00", "key\u200b"])
    def test_must_fit_into_a_header_and_is_not_shown(self, password):
        with pytest.raises(GptImgAuthError) as refusal:
            settings(password=password)
        assert password not in str(refusal.value)

    def test_may_have_been_pasted_with_white_space_around_it(self):
        assert settings(password=f" {KEY}\n").api_key == KEY

    def test_is_in_no_repr(self):
        read = settings()
        assert KEY not in repr(read)
        assert KEY not in str(read)


class TestExtra:
    def test_defaults(self):
        read = settings()
        assert read.call_timeout == 30
        assert (read.poll_interval, read.first_poll_after, read.on_unknown_submission) == (None, None, None)
        assert read.media_hosts == ("gptimg.co", "*.gptimg.co")
        assert read.reference_images_field == "image_urls"
        assert read.verify is True

    @pytest.mark.parametrize(
        ("name", "attribute"),
        [
            ("timeout", "call_timeout"),
            ("poll_interval", "poll_interval"),
            ("first_poll_after", "first_poll_after"),
        ],
    )
    @pytest.mark.parametrize(("value", "seconds"), [(7, 7.0), (0.5, 0.5), ("7", 7.0), (" 7.5 ", 7.5)])
    def test_seconds(self, name, attribute, value, seconds):
        assert getattr(settings({name: value}), attribute) == seconds

    @pytest.mark.parametrize("name", ["timeout", "poll_interval", "first_poll_after"])
    @pytest.mark.parametrize("value", [None, ""])
    def test_empty_fields_of_the_form_mean_the_default(self, name, value):
        assert settings({name: value}) == settings()

    @pytest.mark.parametrize("name", ["timeout", "poll_interval", "first_poll_after"])
    @pytest.mark.parametrize(
        "value", [-1, "-1", "soon", "nan", "inf", "1e999", 1e10, True, False, [5], {"a": 1}], ids=repr
    )
    def test_refuses_what_is_no_number_of_seconds(self, name, value):
        with pytest.raises(GptImgRequestError, match=name):
            settings({name: value})

    @pytest.mark.parametrize("name", ["timeout", "poll_interval"])
    @pytest.mark.parametrize("value", [0, "0", 0.0])
    def test_refuses_no_time_at_all(self, name, value):
        with pytest.raises(GptImgRequestError, match=name):
            settings({name: value})

    def test_the_first_poll_may_come_at_once(self):
        assert settings({"first_poll_after": 0}).first_poll_after == 0

    @pytest.mark.parametrize(
        ("value", "hosts"),
        [
            (["cdn.example.com"], ("cdn.example.com",)),
            (["CDN.example.com", "*.b.example:8443"], ("cdn.example.com", "*.b.example:8443")),
            ("a.example, *.b.example", ("a.example", "*.b.example")),
            ("a.example\nb.example ", ("a.example", "b.example")),
            ("", ("gptimg.co", "*.gptimg.co")),
            ([], ("gptimg.co", "*.gptimg.co")),
            (None, ("gptimg.co", "*.gptimg.co")),
        ],
    )
    def test_media_hosts(self, value, hosts):
        assert settings({"media_hosts": value}).media_hosts == hosts

    @pytest.mark.parametrize(
        "value",
        [
            "*",
            ["*"],
            "*.*",
            "a.*.example",
            "https://a.example",
            "a.example/x",
            "a.example:",
            "a.example:port",
            ["a b"],
            [None],
            [["a.example"]],
            7,
            True,
        ],
        ids=repr,
    )
    def test_refuses_what_is_no_host_pattern(self, value):
        with pytest.raises(GptImgRequestError, match="media_hosts"):
            settings({"media_hosts": value})

    @pytest.mark.parametrize(
        ("value", "verify"),
        [
            (True, True),
            (False, False),
            ("true", True),
            ("False", False),
            ("", True),
            (None, True),
            ("/ca.pem", "/ca.pem"),
            *((value, True) for value in (1, "1", "yes", "on", " True ", "None", "null")),
            *((value, False) for value in (0, "0", "no", "off", "False ")),
        ],
        ids=repr,
    )
    def test_verify(self, value, verify):
        assert settings({"verify": value}).verify == verify

    @pytest.mark.parametrize("value", [2, ["/ca.pem"], {}], ids=repr)
    def test_refuses_another_verify(self, value):
        with pytest.raises(GptImgRequestError, match="verify"):
            settings({"verify": value})

    @pytest.mark.parametrize(
        ("value", "policy"), [("fail", "fail"), ("resubmit", "resubmit"), ("", None), (None, None)]
    )
    def test_on_unknown_submission(self, value, policy):
        assert settings({"on_unknown_submission": value}).on_unknown_submission == policy

    @pytest.mark.parametrize("value", ["retry", "FAIL", True, ["fail"]], ids=repr)
    def test_refuses_another_policy(self, value):
        with pytest.raises(GptImgRequestError, match="on_unknown_submission"):
            settings({"on_unknown_submission": value})

    @pytest.mark.parametrize("value", ["", None])
    def test_reference_images_field_left_empty(self, value):
        assert settings({"reference_images_field": value}).reference_images_field == "image_urls"

    def test_reference_images_field(self):
        assert settings({"reference_images_field": "refs"}).reference_images_field == "refs"

    @pytest.mark.parametrize("value", [7, ["image_urls"], True, "prompt", "n", "aspect_ratio"], ids=repr)
    def test_refuses_another_reference_images_field(self, value):
        """Under the name of another field, the references would take its place."""
        with pytest.raises(GptImgRequestError, match="reference_images_field"):
            settings({"reference_images_field": value})

    @pytest.mark.parametrize(("value", "count"), [(None, 128), ("", 128), (1, 1), ("32", 32), (200.0, 200)])
    def test_max_connections(self, value, count):
        assert settings({"max_connections": value}).max_connections == count

    @pytest.mark.parametrize("value", [0, -1, "many", 1.5, True, 10_000, [5], float("nan")], ids=repr)
    def test_refuses_another_number_of_connections(self, value):
        with pytest.raises(GptImgRequestError, match="max_connections"):
            ConnectionSettings.read(FakeConnection(json.dumps({"max_connections": value})))

    @pytest.mark.parametrize(
        ("name", "near"), [("poll_intervall", "poll_interval"), ("Verify", "verify"), ("api_key", "media_hosts")]
    )
    def test_warns_once_of_a_name_that_is_not_known(self, caplog, name, near):
        extras._warn_of_extra.cache_clear()
        for _ in range(2):
            settings({name: KEY})
        (line,) = [record.getMessage() for record in caplog.records if "not known" in record.getMessage()]
        assert f"'c': extra '{name}'" in line
        assert near in line
        assert KEY not in line

    @pytest.mark.parametrize("extra", ["[]", "7", '"text"', "null"])
    def test_refuses_extra_that_is_no_object(self, extra):
        with pytest.raises(GptImgRequestError, match="extra"):
            ConnectionSettings.read(FakeConnection(extra))

    def test_refuses_extra_that_is_no_json(self):
        with pytest.raises(GptImgRequestError, match="extra"):
            ConnectionSettings.read(FakeConnection("{"))

    @pytest.mark.parametrize("extra", [None, "", "{}"])
    def test_empty_extra(self, extra):
        assert ConnectionSettings.read(FakeConnection(extra)).call_timeout == 30

    names = st.sampled_from(
        [
            "timeout",
            "poll_interval",
            "first_poll_after",
            "media_hosts",
            "reference_images_field",
            "verify",
            "on_unknown_submission",
        ]
    )
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    )

    @given(st.dictionaries(names, values, max_size=2))
    def test_no_extra_is_too_strange(self, extra):
        try:
            read = ConnectionSettings.read(FakeConnection(json.dumps(extra)))
        except GptImgError:
            return
        assert 0 < read.call_timeout < float("inf")
        assert read.media_hosts is not None


class FakeConnection:
    """A connection whose extra Airflow itself would not take, as an older release may have stored it."""

    conn_id, host, port, schema, password = "c", None, None, None, KEY

    def __init__(self, extra: str | None) -> None:
        self.extra = extra


@pytest.mark.parametrize(
    ("extra", "told", "schedule"),
    [
        ({}, {}, (5.0, 39.5)),
        ({"poll_interval": 7, "first_poll_after": 20}, {}, (7.0, 20.0)),
        ({"poll_interval": 7, "first_poll_after": 20}, {"poll_interval": 9}, (9.0, 20.0)),
        ({"poll_interval": 7, "first_poll_after": 20}, {"first_poll_after": 0}, (7.0, 0.0)),
        ({}, {"poll_interval": "9", "first_poll_after": "1.5"}, (9.0, 1.5)),
        ({}, {"poll_interval": timedelta(seconds=9), "first_poll_after": timedelta(0)}, (9.0, 0.0)),
    ],
)
def test_a_task_says_when_to_poll_else_its_connection(extra, told, schedule):
    chosen = settings(extra).schedule(**told)
    assert (chosen.poll_interval, chosen.first_poll_after) == schedule


@pytest.mark.parametrize("name", ["poll_interval", "first_poll_after"])
@pytest.mark.parametrize("value", [-1, "soon", float("nan"), float("inf"), "", [5]], ids=repr)
def test_refuses_to_poll_at_another_time(name, value):
    with pytest.raises(GptImgRequestError, match=name):
        settings().schedule(**{name: value})


class TestMediaUrls:
    ALLOWED = (
        "https://gptimg.co/x.png",
        "https://file.gptimg.co/gpt-image-2-outputs/f063a662.png",
        "https://a.b.gptimg.co/x.png?sig=1#f",
        "HTTPS://FILE.GPTIMG.CO/x.png",
        "https://file.gptimg.co:443/x.png",
        "https://file.gptimg.co./x.png",
    )
    REFUSED = (
        "http://gptimg.co/x.png",
        "http://file.gptimg.co/x.png",
        "http://file.gptimg.co:443/x.png",
        "https://evilgptimg.co/x.png",
        "https://gptimg.co.evil.com/x.png",
        "https://evil.com/gptimg.co",
        "https://evil.com/?gptimg.co",
        "https://evil.com#.gptimg.co",
        "https://gptimg.co@evil.com/x.png",
        "https://user:pw@gptimg.co/x.png",
        "https://evil.com\\.gptimg.co/x.png",
        "https://evil.com\\@gptimg.co/x.png",
        "https://evil.com /.gptimg.co",
        "https://evil.com\t.gptimg.co/x.png",
        "https://evil.com%2f.gptimg.co/x.png",
        "https://evil.com／.gptimg.co/x.png",
        "https://gptimg.co\u3002evil.com/x.png",
        "https://gptimg.co:8443/x.png",
        "https://gptimg.co:0/x.png",
        "https://gptimg.co:x/x.png",
        "https://169.254.169.254/latest/meta-data",
        "https://127.0.0.1/x.png",
        "https://[::1]/x.png",
        "https://[::1/x.png",
        "https://[fd00:ec2::254%25.gptimg.co]/x.png",
        "https://[::1%25.gptimg.co]/x.png",
        "https://2852039166/x.png",
        "https://0xa9fea9fe/x.png",
        "https://gptimg.co/\x9b31m.png",
        "https://gptimg.co/\u202egnp.x",
        "https://gptimg.co/\x00.png",
        "http://localhost/x.png",
        "//gptimg.co/x.png",
        "gptimg.co/x.png",
        "/x.png",
        "https:gptimg.co/x.png",
        "https:///gptimg.co/x.png",
        "file:///etc/passwd",
        "ftp://gptimg.co/x.png",
        "data:image/png;base64,iVBORw0KGgo=",
        "javascript:alert(1)//gptimg.co",
        "",
    )

    @pytest.mark.parametrize("url", ALLOWED)
    def test_the_vendors_hosts_are_allowed(self, url):
        assert settings().check_media_url(url) == url

    @pytest.mark.parametrize("url", REFUSED)
    def test_all_else_is_refused(self, url):
        with pytest.raises(GptImgMediaError):
            settings().check_media_url(url)

    @pytest.mark.parametrize(
        ("host", "url", "allowed"),
        [
            ("http://127.0.0.1:8099", "http://127.0.0.1:8099/x.png", True),
            ("http://127.0.0.1:8099", "http://127.0.0.1:8098/x.png", False),
            ("http://127.0.0.1:8099", "https://127.0.0.1:8099/x.png", False),
            ("http://127.0.0.1:8099", "http://localhost:8099/x.png", False),
            ("http://[::1]:8099", "http://[0:0::1]:8099/x.png", True),
            ("https://proxy.example/x", "https://proxy.example/y.png", True),
            ("https://proxy.example/x", "https://cdn.proxy.example/y.png", False),
            ("https://proxy.example", "https://gptimg.co/x.png", True),
        ],
    )
    def test_the_connections_own_origin_is_allowed(self, host, url, allowed):
        read = settings(host=host)
        if allowed:
            assert read.check_media_url(url) == url
        else:
            with pytest.raises(GptImgMediaError):
                read.check_media_url(url)

    @pytest.mark.parametrize(
        ("pattern", "url", "allowed"),
        [
            ("cdn.example.com", "https://cdn.example.com/x", True),
            ("cdn.example.com", "https://a.cdn.example.com/x", False),
            ("cdn.example.com", "https://cdn.example.com:8443/x", False),
            ("cdn.example.com:8443", "https://cdn.example.com:8443/x", True),
            ("cdn.example.com:8443", "https://cdn.example.com/x", False),
            ("cdn.example.com", "http://cdn.example.com/x", False),
            ("*.example.com", "https://a.example.com/x", True),
            ("*.example.com", "https://example.com/x", False),
            ("*.example.com:8443", "https://a.example.com:8443/x", True),
            ("*.example.com", "https://gptimg.co/x", False),
            ("[fd00::5]:8443", "https://[fd00:0::5]:8443/x", True),
            ("[fd00::5]", "https://[fd00::6]/x", False),
            ("10.0.0.5", "https://10.0.0.5/x", True),
            ("10.0.0.5", "https://a.10.0.0.5/x", False),
        ],
    )
    def test_host_patterns(self, pattern, url, allowed):
        read = settings({"media_hosts": [pattern]}, host="https://api.example.org")
        if allowed:
            assert read.check_media_url(url) == url
        else:
            with pytest.raises(GptImgMediaError):
                read.check_media_url(url)

    def test_a_refusal_says_what_to_do_and_shows_no_signature(self):
        with pytest.raises(GptImgMediaError) as refusal:
            settings().check_media_url("https://cdn.example.com/x.png?signature=secret")
        assert "media_hosts" in str(refusal.value)
        assert "secret" not in str(refusal.value)

    @pytest.mark.parametrize("url", ["https://cdn.example.com/\x9b31m", "https://cdn.example.com/\u202e", "\x1b[31m"])
    def test_a_refusal_shows_no_control_characters(self, url):
        with pytest.raises(GptImgMediaError) as refusal:
            settings().check_media_url(url)
        assert str(refusal.value).isprintable()

    @given(
        st.sampled_from(["https://", "http://", "https:", "//", ""]),
        st.lists(
            st.sampled_from(["gptimg.co", "evil.com", ".", "@", "/", "\\", "?", "#", ":", "443", "%", "。", "[::1]"])
        ),
    )
    def test_what_is_allowed_is_fetched_from_there(self, scheme, parts):
        """The HTTP client must read a URL the way the check did."""
        import httpx

        url = scheme + "".join(parts)
        try:
            settings().check_media_url(url)
        except GptImgMediaError:
            return
        read = httpx.URL(url)
        assert read.scheme == "https"
        assert read.port in (None, 443)
        assert read.host.rstrip(".") == "gptimg.co" or read.host.rstrip(".").endswith(".gptimg.co")
