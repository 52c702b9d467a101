# SPDX-License-Identifier: Apache-2.0
"""The sandbox as a command: it brings pictures, says what went wrong, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import AirflowApi, StandaloneAirflow, show
from airflow_provider_gptimg.sandbox.rest import until
from airflow_provider_gptimg.sandbox.services import books

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

COMMAND = [sys.executable, "-m", "airflow_provider_gptimg.sandbox"]


def start(*arguments: str, folder: Path, **env: str) -> subprocess.Popen[str]:
    """Run the command in `folder`, with all that it makes below."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_in(folder: Path) -> list[object]:
    """Return the Airflow homes below `folder`, and the processes that belong to one."""
    left: list[object] = list(folder.glob("gptimg-airflow-*"))
    for process in psutil.process_iter():
        try:
            if process.environ().get("AIRFLOW_HOME", "").startswith(str(folder)):
                left.append(process)
        except psutil.Error:
            continue
    return left


def test_it_brings_the_pictures_of_an_example_and_stays_if_told_so(tmp_path):
    with start("--dag", "example_gptimg_edit", "--speed", "20", "--keep", folder=tmp_path) as command:
        output = ""
        for line in command.stdout:
            output += line
            if "Airflow stays at" in line:
                break
        (url,) = re.findall(r"Airflow stays at (http://127\.0\.0\.1:\d+)/dags/example_gptimg_edit/", output)
        ((username, password),) = re.findall(r"Log in as (\S+), password (\S+)", output)
        assert AirflowApi(url, username, password).call("GET", "/dags/example_gptimg_edit")
        command.send_signal(signal.SIGINT)
        command.communicate()
    assert command.returncode == 0, output
    ((uri, size, sha256),) = re.findall(r"^(s3://gptimg-demo/edits/\S+)\s+([\d,]+)\s+([0-9a-f]{64})$", output, re.M)
    (picture,) = (tmp_path / "gptimg-out").iterdir()
    content = picture.read_bytes()
    assert (f"{len(content):,}", hashlib.sha256(content).hexdigest()) == (size, sha256)
    assert picture.name == uri.removeprefix("s3://gptimg-demo/edits/").replace("/", "-")
    assert re.search(r"^\s+[\d.]+ s\s+2\s+0  mirror: done$", output, re.M), "elapsed, charged, refunded, stage"
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_nothing_is_left(number, tmp_path):
    with start(folder=tmp_path) as command:
        # Its home, and a process of Airflow.
        until(lambda: len(left_in(tmp_path)) > 1, 60, "Airflow to start")
        command.send_signal(number)
        command.communicate()
    assert command.returncode == (-number if number == signal.SIGKILL else 128 + number)
    until(lambda: not left_in(tmp_path), 30, "all to be gone")


def test_the_real_api_needs_a_bucket(tmp_path):
    with start(folder=tmp_path, GPTIMG_API_KEY="gptimg-key-of-somebody") as command:
        output, _ = command.communicate()
    assert command.returncode == 2
    assert "GPTIMG_BUCKET" in output
    assert "gptimg-key-of-somebody" not in output


@pytest.mark.parametrize(
    ("lack", "told"),
    [
        ("sys.modules['moto'] = None", "The sandbox needs moto"),
        ("metadata.version = lambda name: '2.11.2'", "The sandbox needs Airflow 3.3 or newer, and this is 2.11.2"),
    ],
    ids=["extra", "Airflow"],
)
def test_what_is_missing_is_named_with_the_way_to_install_it(lack, told):
    run = "from airflow_provider_gptimg.sandbox.__main__ import main; main([])"
    code = f"import sys; from importlib import metadata; {lack}; {run}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.endswith(f"error: {told}: pip install 'airflow-provider-gptimg[sandbox]'\n")


def test_a_failed_run_is_told_with_the_log_of_its_task(airflow: StandaloneAirflow, emulator: Emulator):
    emulator.fault("submit", "fail", error="The prompt was [bold]too bold[/bold]")
    console = Console(record=True, markup=False, width=200)
    run = airflow.trigger("example_gptimg_to_s3")
    assert show.follow(run, console, 120, lambda: books(emulator)) == "failed"
    assert run.credits()[0] == 4
    show.show_failures(run, console)
    told = console.export_text()
    assert re.search(r"^\s+[\d.]+ s\s+4\s+4  wait: failed$", told, re.M)
    assert re.search(r"^\s+[\d.]+ s\s+4\s+4  mirror: not run$", told, re.M)
    assert "log of wait, attempt 1" in told
    assert "The prompt was [bold]too bold[/bold]" in told
    assert "log of submit" not in told
