# SPDX-License-Identifier: Apache-2.0
"""What all tests stand on: a throw-away Airflow home, the emulator, an S3 server, and no network but loopback."""

from __future__ import annotations

import atexit
import fcntl
import functools
import gc
import ipaddress
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from hypothesis import HealthCheck, settings

# Helpers that assert: so that a failure shows the values.
pytest.register_assert_rewrite(
    *("api_answers", "attempts", "batch_instance", "batch_watch", "journal_world", "journals", "kill_gate"),
    *("kill_report", "real_stores", "running_airflow", "s3_proxy"),
)

# Airflow reads its home once, at its first import: it has to be known before any test module is.
_HOME = tempfile.mkdtemp(prefix="airflow-home-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
for _name in list(os.environ):
    if _name.startswith(("AIRFLOW_", "AWS_")) or _name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
        del os.environ[_name]
os.environ |= {
    "AIRFLOW_HOME": _HOME,
    "AIRFLOW__CORE__DAGS_FOLDER": f"{_HOME}/dags",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "PYTHONPATH": str(Path(__file__).parent),  # for the scripts that tests start
}

# The same examples at each run, and no machine is too slow for one.
settings.register_profile(
    "gptimg",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("gptimg")

BUCKET = "images"

# The longest first: begun last, they would keep one core waiting for the other.
LONG_FILES = [
    "test_batch_operator.py",
    "test_dag_runs.py",
    "test_paid_once.py",
    "test_hook_calls.py",
    "test_fixtures.py",
    "test_waiting.py",
    "test_gallery_limits.py",
    "test_any_store.py",
    "test_batch_ledger.py",
    "test_to_s3_images.py",
    "test_spending_chaos.py",
    "test_to_s3.py",
    "test_batch_bucket.py",
    "test_journal_interleavings.py",
    "test_batch_reuse.py",
    "test_compat.py",
    "test_batch_kills.py",
    "test_reuse.py",
    "test_docs_blocks.py",
    "test_task_trigger.py",
    "test_batch_changes.py",
    "test_error_verdicts.py",
    "test_lineage.py",
    "test_both_clients.py",
]


# What these are about, older Airflows do not have.
NEEDS_AIRFLOW = {
    "test_dag_runs.py": (3, 2),
    "test_lineage.py": (3, 2),
    "test_telemetry.py": (3, 2),
    "test_batch_dags.py": (3, 3),
    "test_error_verdicts.py": (3, 3),
    "test_frozen.py": (3, 3),
    "test_sensor_in_triggerer.py": (3, 3),
}
AIRFLOW = tuple(map(int, version("apache-airflow").split(".")[:2]))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what this Airflow does not have."""
    return True if NEEDS_AIRFLOW.get(collection_path.name, AIRFLOW) > AIRFLOW else None


def pytest_report_header() -> str:
    """Say what is left out."""
    left_out = ", ".join(sorted(name for name, needed in NEEDS_AIRFLOW.items() if needed > AIRFLOW))
    return f"Airflow {version('apache-airflow')}; left out: {left_out or 'nothing'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files; skip the state store where Airflow has none."""
    if AIRFLOW < (3, 3):
        for item in items:
            own_store = {"operators", "batch"} & set(item.path.parts)  # see _the_tests_own_state_store
            if not own_store and ("state store" in item.name or "first_release" in item.name):
                item.add_marker(pytest.mark.skip(reason="Airflow 3.3 and newer have a task state store"))
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Let the process end at once, rather than search all that it has loaded for garbage, which takes seconds."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> Iterator[None]:
    """Refuse every connection and every name look-up that would leave this machine."""
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def is_loopback(host: object) -> bool:
        try:
            return host in (None, "localhost") or ipaddress.ip_address(str(host)).is_loopback
        except ValueError:
            return False

    def connect_on_loopback(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
            raise OSError(f"tests must not leave this machine, but one connects to {address}")
        connect(self, address)

    def look_up_loopback(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if not is_loopback(name):
            raise socket.gaierror(f"tests must not leave this machine, but one looks up {name}")
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_on_loopback)
        patch.setattr(socket, "getaddrinfo", look_up_loopback)
        yield


@pytest.fixture(scope="session", autouse=True)
def _service_models_are_read_once() -> Iterator[None]:
    """Spare each new S3 client 0.1 s of reading the same models as the one before."""
    import botocore.session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture(autouse=True)
def _the_tests_own_state_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests of operators bring a state store where Airflow has none, or one that a clear empties."""
    if not {"unit", "operators", "batch"} & set(request.path.parts) or request.path.name == "test_dag_runs.py":
        return
    from airflow_provider_gptimg import airflow_compat
    from airflow_provider_gptimg.journal import stores

    if AIRFLOW < (3, 3):
        monkeypatch.setattr(airflow_compat, "NEVER_EXPIRE", None, raising=False)
    if "unit" not in request.path.parts or AIRFLOW >= (3, 3):
        monkeypatch.setattr(stores, "STATE_OUTLASTS_CLEARS", True)
        if AIRFLOW < (3, 0):  # which has Variables outside of tasks, too, but here without a database
            monkeypatch.setattr(stores, "has_variables", lambda: False)


@pytest.fixture
def log(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return a function that returns what was logged since its last call, by Airflow's loggers and all others."""

    def read() -> str:
        printed = "".join(capfd.readouterr())
        said = caplog.text if AIRFLOW < (3, 1) else printed + caplog.text  # older ones print what they log, too
        caplog.clear()
        return said

    caplog.set_level(logging.INFO)
    return read


class Clock:
    """Real time, which can be stopped."""

    def __init__(self) -> None:
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        return self._stopped_at or time.time()

    def stop(self) -> None:
        self._stopped_at = time.time()

    def go(self) -> None:
        self._stopped_at = None


@pytest.fixture(scope="session")
def _clock() -> Clock:
    return Clock()


@pytest.fixture
def clock(_clock: Clock) -> Iterator[Clock]:
    """The emulator's clock: while it is stopped, no generation ends."""
    yield _clock
    _clock.go()


@pytest.fixture(scope="session")
def _emulator_server(_clock: Clock) -> Iterator[Any]:
    from airflow_provider_gptimg.emulator import Emulator

    with Emulator(speed=100, seed=1, clock=_clock) as server:
        yield server


@pytest.fixture
def emulator(_emulator_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The API, as new, behind the connection `gptimg_default`."""
    _emulator_server.reset()
    monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", _emulator_server.connection_json)
    yield _emulator_server
    _emulator_server.reset()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the connection `gptimg_default` anew: `connect(emulator, timeout=1)` has that extra."""

    def set_connection(emulator: Any, *, host: str | None = None, password: str | None = None, **extra: Any) -> None:
        fields = {
            "conn_type": "gptimg",
            "host": emulator.base_url if host is None else host,
            "password": emulator.api_key if password is None else password,
            "extra": extra,
        }
        monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", json.dumps(fields))

    return set_connection


@pytest.fixture(params=[False, True], ids=["held", "deferred"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    """Both ways to wait."""
    return bool(request.param)


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def _s3_client(_s3_server: str, _service_models_are_read_once: None) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=_s3_server,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


@pytest.fixture
def s3(_s3_server: str, _s3_client: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A boto3 client of an S3 that holds one empty bucket, `images`, behind the connection `aws_default`."""
    # Not httpx, which reads all certificates first.
    with urlopen(Request(f"{_s3_server}/moto-api/reset", method="POST")):
        pass
    fields = {
        "conn_type": "aws",
        "login": "testing",
        "password": "testing",
        "extra": {"endpoint_url": _s3_server, "region_name": "us-east-1"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(fields))
    _s3_client.create_bucket(Bucket=BUCKET)
    return _s3_client


@pytest.fixture(scope="session")
def airflow_db(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Airflow's database, made once for the tests that run whole DAGs; returns the Airflow home."""
    migrate = [sys.executable, "-m", "airflow", "db", "migrate"]
    if "PYTEST_XDIST_WORKER" not in os.environ:
        subprocess.run(migrate, check=True, capture_output=True)
        return _HOME
    own, first = Path(_HOME) / "airflow.db", tmp_path_factory.getbasetemp().parent / "airflow.db"
    with first.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not first.exists():
            subprocess.run(migrate, check=True, capture_output=True)
            shutil.copy(own, first)
    shutil.copy(first, own)
    return _HOME


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for tests that look at pages. While it runs, so does an event loop: no longer than a module."""
    # Only the environment of development has it.
    playwright_api = pytest.importorskip("playwright.sync_api")
    playwright_api.expect.set_options(timeout=60_000)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        # The gate has to see these tests run.
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no Chromium here: `make browser` installs it")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield running
        running.close()
