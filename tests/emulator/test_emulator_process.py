# SPDX-License-Identifier: Apache-2.0
"""The emulator as others run it: from the docstring, from a shell, from another process, under load."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

import aiohttp
import httpx
import pytest

import airflow_provider_gptimg.emulator as package
from airflow_provider_gptimg.emulator import Emulator

SUBMIT = "/api/v1/images/generate"


@contextmanager
def shell(*arguments: str) -> Iterator[tuple[subprocess.Popen, list[str]]]:
    """Run the command; yield it with the lines it introduces itself with. Kill it if it is there at the end."""
    command = [sys.executable, "-m", "airflow_provider_gptimg.emulator", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process, [process.stdout.readline() for _ in range(4)]
        finally:
            process.kill()


def test_the_docstring_names_every_fault():
    from airflow_provider_gptimg.emulator import faults

    known = {*faults._ANYWHERE, *faults._ON_SUBMIT, *faults._ON_IMAGE, "429"}
    assert set(re.findall(r"^``(\w+)``", inspect.getdoc(package), re.MULTILINE)) == known


def test_the_connection_says_where_it_is():
    with Emulator(api_key="a/k@y:", extra={"poll_interval": 0.5}) as emulator:
        expected = {"conn_type": "gptimg", "host": emulator.base_url, "password": "a/k@y:"}
        assert json.loads(emulator.connection_json) == {**expected, "extra": {"poll_interval": 0.5}}
        uri = urlsplit(emulator.connection_uri)
        assert (uri.scheme, uri.username, unquote(uri.password)) == ("gptimg", "", "a/k@y:")
        assert f"{uri.path[1:]}://{uri.hostname}:{uri.port}" == emulator.base_url
        assert json.loads(parse_qs(uri.query)["__extra__"][0]) == {"poll_interval": 0.5}
    with Emulator() as emulator:
        assert json.loads(emulator.connection_json)["extra"] == {}
        assert "?" not in emulator.connection_uri


def test_airflow_reads_the_connection_both_ways():
    from airflow.models.connection import Connection

    with Emulator(api_key="a/k@y:", extra={"poll_interval": 0.5}) as emulator:
        by_json, by_uri = Connection.from_json(emulator.connection_json), Connection(uri=emulator.connection_uri)
        for connection in (by_json, by_uri):
            assert (connection.conn_type, connection.password) == ("gptimg", "a/k@y:")
            assert connection.extra_dejson == {"poll_interval": 0.5}
        assert by_json.host == emulator.base_url
        assert f"{by_uri.schema}://{by_uri.host}:{by_uri.port}" == emulator.base_url


def test_it_can_be_stopped_and_started_again_with_all_it_knew():
    emulator = Emulator()
    with pytest.raises(RuntimeError):
        _ = emulator.base_url
    emulator.stop()
    with emulator:
        url, task_id = emulator.base_url, emulator.add_task()
        with pytest.raises(RuntimeError):
            emulator.start()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    with emulator:
        assert emulator.base_url == url
        headers = {"Authorization": f"Bearer {emulator.api_key}"}
        assert httpx.get(f"{url}/api/v1/images/task/{task_id}", headers=headers).status_code == 200


def test_a_taken_port_is_an_error(emulator):
    taken = Emulator(port=urlsplit(emulator.base_url).port)
    with pytest.raises(OSError, match="in use"):
        taken.start()
    taken.stop()


def test_it_listens_on_loopback_only(emulator):
    port = urlsplit(emulator.base_url).port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(number):
    with shell("--credits", "4", "--api-key", "k 'y", "--speed", "1000", "--latency", "0.05") as (process, lines):
        url = re.search(r"http://127\.0\.0\.1:\d+", lines[0])[0]
        add, export = shlex.split(lines[2]), shlex.split(lines[3])
        assert add[:4] == ["airflow", "connections", "add", "gptimg_default"]
        variable, _, value = export[1].partition("=")
        assert (variable, add[5]) == ("AIRFLOW_CONN_GPTIMG_DEFAULT", value)
        connection = json.loads(value)
        assert (connection["host"], connection["password"]) == (url, "k 'y")
        assert connection["extra"] == {"first_poll_after": 0.0395, "poll_interval": 1.0}, "as fast as its generations"
        headers = {"Authorization": "Bearer k 'y"}
        answers = [httpx.post(url + SUBMIT, headers=headers, json={"prompt": "x", "n": 2}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 402]
        assert httpx.get(f"{url}/a%0Ab?token=secret").status_code == 404
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(10) == 0
    assert [line.split()[2:5] for line in rest.splitlines()] == [
        ["POST", SUBMIT, "200"],
        ["POST", SUBMIT, "402"],
        ["GET", "/a%0Ab", "404"],
    ]
    assert all(float(line.split()[5]) >= 0.05 for line in rest.splitlines())


def test_the_command_says_what_it_cannot_do(emulator):
    port = urlsplit(emulator.base_url).port
    for arguments, message in ((["--port", str(port)], "in use"), (["--speed", "0"], "speed must be above 0")):
        command = [sys.executable, "-m", "airflow_provider_gptimg.emulator", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert ended.returncode == 2
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("missing", "named"), [("aiohttp", "aiohttp"), ("PIL", "Pillow")])
def test_what_is_missing_is_named_with_the_way_to_install_it(missing, named):
    said = f"The emulator needs {named}: pip install 'airflow-provider-gptimg[emulator]'\n"
    hidden = f"import sys; sys.modules[{missing!r}] = None; "
    imported = hidden + "from airflow_provider_gptimg.emulator import Emulator"
    ended = subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True, timeout=100)
    assert ended.stderr.endswith(f"\nImportError: {said}")
    started = hidden + "from airflow_provider_gptimg.emulator.__main__ import main; main([])"
    ended = subprocess.run([sys.executable, "-c", started], capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stderr) == (2, said)


def test_it_needs_neither_airflow_nor_the_client():
    code = """if True:
        import sys
        import airflow_provider_gptimg.emulator.__main__
        from airflow_provider_gptimg.emulator import Emulator
        for name in sys.modules:
            ours = name.startswith("airflow_provider_gptimg.") and ".emulator" not in name
            if ours or name.partition(".")[0] in ("airflow", "httpx"):
                print(name)
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout == ""


@pytest.fixture
def control(emulator) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{emulator.base_url}/_emulator") as client:
        yield client


def test_another_process_can_order_faults_and_read_what_happened(emulator, api, control, until):
    order = {"on": "submit", "what": 429, "times": 2, "retry_after": 3}
    assert control.post("/faults", json=order).status_code == 200
    assert api.submit().headers["retry-after"] == "3"
    assert control.delete("/faults").status_code == 200
    control.post("/faults", json={"on": "submit", "what": "fail", "error": "because"})
    task_id = api.submit("né", n=2).json()["data"]["task_id"]
    until(lambda: len(control.get("/ledger").json()) == 2)
    charge, refund = control.get("/ledger").json()
    assert (charge["kind"], charge["credits"], charge["task_id"]) == ("charge", 4, task_id)
    assert (refund["kind"], refund["user"], refund["at"] > charge["at"]) == ("refund", "default", True)
    (task,) = control.get("/tasks").json()
    assert (task["task_id"], task["status"], task["error"]) == (task_id, "failed", "because")
    assert (task["request"], task["charged"], task["refunded"]) == ({"prompt": "né", "n": 2}, 4, 4)
    refused, accepted = control.get("/calls").json()
    assert (refused["status"], accepted["status"], accepted["path"]) == (429, 200, SUBMIT)
    assert json.loads(accepted["body"]) == {"prompt": "né", "n": 2}
    assert accepted["headers"]["authorization"] == "***"
    assert len(emulator.calls) == 2

    done = emulator.add_task(n=2)
    shown = control.get("/tasks").json()[-1]
    assert shown["images"] == [picture.name for picture in emulator.task(done).pictures]

    emulator.fault("any", "hang_before")
    with httpx.Client(base_url=emulator.base_url) as client, pytest.raises(httpx.ReadTimeout):
        client.get(f"/api/v1/images/task/{done}", timeout=0.05)
    assert control.post("/release").status_code == 200
    assert control.post("/reset").status_code == 200
    assert [control.get(path).json() for path in ("/ledger", "/tasks", "/calls")] == [[], [], []]


@pytest.mark.parametrize(
    "order", [b"", b"[]", b"{}", b'{"on": "submit", "what": "explode"}', b'{"on": "submit", "what": 500, "x": 1}']
)
def test_a_wrong_order_is_refused(emulator, api, order):
    answer = httpx.post(f"{emulator.base_url}/_emulator/faults", content=order)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert api.submit().status_code == 200


async def test_thousands_of_tasks_are_polled_at_once():
    with Emulator(record_calls=False, durations=(0, 0), credits=10_000) as emulator:
        task_ids = [emulator.add_task(polls=2) for _ in range(5000)]
        headers = {"Authorization": f"Bearer {emulator.api_key}"}
        url = f"{emulator.base_url}/api/v1/images/task"
        limited = aiohttp.TCPConnector(limit=50)
        async with aiohttp.ClientSession(headers=headers, connector=limited) as session:

            async def status(task_id: str) -> str:
                async with session.get(f"{url}/{task_id}") as answer:
                    return (await answer.json())["data"]["status"]

            assert set(await asyncio.gather(*map(status, task_ids[:2500]))) == {"processing"}
            assert set(await asyncio.gather(*map(status, task_ids[:2500]))) == {"completed"}
        assert [task.polls for task in emulator.tasks] == [2] * 2500 + [0] * 2500
        assert emulator.calls == []
