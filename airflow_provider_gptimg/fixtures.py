# SPDX-License-Identifier: Apache-2.0
"""Fixtures that pytest finds by itself: `gptimg_emulator` and `gptimg_s3` run DAGs without an account, free of charge.

Every run of pytest loads this module where the package is installed, so it imports nothing but pytest.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from airflow_provider_gptimg.emulator import Emulator
    from airflow_provider_gptimg.sandbox.s3 import S3Server

__all__ = ["gptimg_emulator", "gptimg_s3"]

_HASTY = {"poll_interval": 0.1, "first_poll_after": 0}
_LOOPBACK = "127.0.0.1,localhost"


@pytest.fixture(scope="session")
def _gptimg_s3_server() -> Iterator[S3Server | None]:
    """The S3 of all tests; None where moto is not installed."""
    if not all(map(importlib.util.find_spec, ("moto", "flask", "flask_cors"))):
        yield None
        return
    from airflow_provider_gptimg.sandbox.s3 import S3Server

    with S3Server(creates_buckets=True) as server:
        yield server


@pytest.fixture
def gptimg_emulator(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _gptimg_s3_server: S3Server | None
) -> Iterator[Emulator]:
    """A stand-in for the API behind the connection `gptimg_default`: an `Emulator`, 100 times as fast.

    Where `moto[server]` is installed, `aws_default` connects to an empty S3 in memory, which creates a bucket when it
    is first written to or listed. A test can set arguments of `Emulator`::

        @pytest.mark.parametrize("gptimg_emulator", [{"fail_rate": 0.1}], indirect=True)
    """
    try:
        from airflow_provider_gptimg.emulator import Emulator
    except ImportError as missing:
        pytest.fail(str(missing), pytrace=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, ",".join(filter(None, (os.environ.get(name), _LOOPBACK))))
    if _gptimg_s3_server is not None:
        _gptimg_s3_server.reset()
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", _gptimg_s3_server.connection_json)
    arguments: dict[str, Any] = {"speed": 100, "extra": _HASTY} | getattr(request, "param", {})
    with Emulator(**arguments) as emulator:
        monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", emulator.connection_json)
        yield emulator


@pytest.fixture
def gptimg_s3(gptimg_emulator: Emulator, _gptimg_s3_server: S3Server | None) -> Any:
    """A boto3 client of the S3 that `gptimg_emulator` has put behind `aws_default`."""
    if _gptimg_s3_server is None:
        pytest.fail("The fixture gptimg_s3 needs moto: pip install 'moto[server]'", pytrace=False)
    return _gptimg_s3_server.client()
