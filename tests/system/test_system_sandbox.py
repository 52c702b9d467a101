# SPDX-License-Identifier: Apache-2.0
"""The sandbox as a command: it brings pictures, says what went wrong, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import AirflowApi, StandaloneAirflow, show
from airflow_provider_gptimg.sandbox.rest import until
from airflow_provider_gptimg.sandbox.services import books

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

COMMAND = [sys.executable, "-m", "airflow_provider_gptimg.sandbox"]


@contextmanager
def start(*arguments: str, folder: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command in `folder`, with all that it makes below, until it ends or the test fails."""
    with subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as command:
        try:
            yield command
        except BaseException:
            command.terminate()
            raise


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
        ((username, password),) = re.findall(r"Login +(\S+), password (\S+)", output)
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
        until(lambda: len(left_in(tmp_path)) > 1, 200, "Airflow to start")
        command.send_signal(number)
        command.communicate()
    assert command.returncode == (-number if number == signal.SIGKILL else 128 + number)
    until(lambda: not left_in(tmp_path), 100, "all to be gone")


def test_the_real_api_needs_a_bucket(tmp_path):
    with start(folder=tmp_path, GPTIMG_API_KEY="gptimg-key-of-somebody") as command:
        output, _ = command.communicate()
    assert command.returncode == 2
    assert "GPTIMG_BUCKET" in output
    assert "gptimg-key-of-somebody" not in output


@pytest.mark.parametrize(
    ("lack", "told"),
    [
        ("sys.modules['PIL'] = None", "The sandbox needs Pillow"),
        ("sys.modules['moto'] = None", "The sandbox needs moto"),
        ("metadata.version = lambda name: '2.11.2'", "The sandbox needs Airflow 3.3 or newer, and this is 2.11.2"),
    ],
    ids=["Pillow", "moto", "Airflow"],
)
def test_what_is_missing_is_named_with_the_way_to_install_it(lack, told):
    run = "from airflow_provider_gptimg.sandbox.__main__ import main; main([])"
    code = f"import sys; from importlib import metadata; {lack}; {run}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == f"{told}: pip install 'airflow-provider-gptimg[sandbox]'\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dags-folder", "nowhere"], "--dags-folder: nowhere is not a folder"),
        (["--put", "empty"], "--put: empty holds no file BUCKET/KEY, such as empty/my-bucket/prompts.csv"),
        (["--dags-folder", "empty"], "--dags-folder: empty has no Python file, so no DAG"),
        (
            ["--dag", "example_gptimg_bach"],
            "No DAG 'example_gptimg_bach' in the examples: did you mean 'example_gptimg_batch'?",
        ),
    ],
)
def test_a_slip_of_the_command_is_told_in_one_line_before_anything_starts(arguments, told, tmp_path):
    (tmp_path / "empty").mkdir()
    with start(*arguments, folder=tmp_path) as command:
        output, _ = command.communicate()
    assert (command.returncode, output) == (2, f"{told}\n")
    assert left_in(tmp_path) == []


OWN_DAG = """
from airflow.sdk import DAG, Asset
from airflow_provider_gptimg.operators.gptimg import GptImgSubmitOperator
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator
from beside import PROMPT

with DAG("poster", schedule=[Asset("photos")]):
    submit = GptImgSubmitOperator(task_id="submit", prompt=PROMPT)
    key = "s3://my-images/{{ ds }}/{task_id}-{index}{ext}"
    GptImgToS3Operator(task_id="mirror", gptimg_task_id=submit.output, s3_key=key, deferrable=True)
"""
ASKS = """
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG

with DAG("asks", schedule=None):
    ApprovalOperator(task_id="ask", subject="Publish?")
"""
BATCH = """
from airflow.sdk import DAG
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator

with DAG("catalogue"):
    GptImgBatchToS3Operator(task_id="pictures", requests="s3://my-data/prompts.csv", s3_bucket="my-images")
"""
BROKEN = "from airflow.sdk import DAG\nimport no_such_module\n"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a DAG, a module that it imports, and a DAG file that cannot be imported."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name, text in (("poster.py", OWN_DAG), ("beside.py", 'PROMPT = "A cat"\n'), ("broken.py", BROKEN)):
        folder.joinpath(name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("dag", "told"),
    [
        ("postr", "No DAG 'postr' in own: did you mean 'poster'?"),
        ("catalogue", "No DAG 'catalogue' in own: it has poster"),
    ],
)
def test_a_dag_that_is_not_in_the_folder_is_told_with_what_is(dag, told, own, tmp_path):
    with start("--dags-folder", "own", "--dag", dag, folder=tmp_path) as command:
        output, _ = command.communicate()
    assert command.returncode == 1
    assert "broken.py cannot be imported: line 2: ModuleNotFoundError: No module named 'no_such_module'\n" in output
    assert f"{told}\n" in output
    assert "Traceback" not in output
    assert left_in(tmp_path) == []


def test_it_runs_ones_own_dags_and_reads_them_again_when_they_change(own, tmp_path):
    files = tmp_path / "files" / "my-data"
    files.mkdir(parents=True)
    files.joinpath("prompts.csv").write_text("prompt\nA bird\n")
    with start("--dags-folder", "own", "--put", "files", "--speed", "20", "--keep", folder=tmp_path) as command:
        lines: list[str] = []

        def read_until(pattern: str) -> re.Match[str]:
            for line in command.stdout:
                lines.append(line)
                if found := re.search(pattern, line):
                    return found
            raise AssertionError("".join(lines))

        read_until(r"^Uploaded s3://my-data/prompts\.csv\.$")
        read_until(r"^poster is run once Airflow is up, since it is the only DAG in own\.$")
        url = read_until(r"^Airflow +(http://\S+)")[1]
        username, password = read_until(r"^Login +(\S+), password (\S+)").groups()
        tasks = read_until(r"^API +(http://\S+) .*, key gptimg-emulator-key;")[1] + "/_emulator/tasks"
        variables, home = read_until(r"^Shell +(AIRFLOW_HOME=(\S+) .*) airflow tasks clear …").groups()
        assert Path(home, "airflow.db").exists()
        estimate = f"{variables} {sys.executable} -m airflow_provider_gptimg.cost poster"
        cost = subprocess.run(estimate, shell=True, capture_output=True, text=True)
        assert re.search(r"^known in all +1 +2$", cost.stdout, re.M), cost
        spending = read_until(r"^Spending +(AIRFLOW_HOME=.* python -m airflow_provider_gptimg\.spending)$")[1]
        read_until(r"^poster is switched on and follows its schedule \(Asset\)")
        read_until(r"^2 credits charged while it ran, 0 refunded")
        read_until(r"^Airflow stays at ")
        command_line = spending.replace(" python ", f" {sys.executable} ")
        spent = subprocess.run(command_line, shell=True, capture_output=True, text=True)
        assert re.search(r"^poster +2 +0 +0 +0 +2$", spent.stdout, re.M), spent
        api = AirflowApi(url, username, password)
        for conn_id in ("gptimg_default", "aws_default"):
            stored = api.call("GET", f"/connections/{conn_id}")
            form = {name: stored[name] for name in ("connection_id", "conn_type", "host", "login", "extra")}
            form["port"] = stored["port"] or 0  # as the UI's button sends it
            assert api.call("POST", "/connections/test", form)["status"], "with the password from the database"
        own.joinpath("broken.py").write_text("")
        read_until(r"^broken\.py can be imported again")
        own.joinpath("beside.py").write_text('PROMPT = "A dog"\n')
        own.joinpath("poster.py").write_text(OWN_DAG.replace('"poster"', '"placard"'))
        assert api.trigger("placard").wait() == "success"
        read_until(r"^2 credits charged for gpt-image-2-\S+; in all 4 charged, 0 refunded")
        read_until(r"^placard has ended: success; 1 images saved to ")
        own.joinpath("batch.py").write_text(BATCH)
        catalogue = api.trigger("catalogue")
        assert catalogue.wait() == "success"
        read_until(r"^catalogue has ended: success")
        read_until(r"^pictures: 1 of 1 requests mirrored; 1 images of [\d,]+ bytes, 2 credits; listed in no manifest$")
        assert catalogue.xcom("pictures")["requests"] == 1
        catalogue.clear("pictures")
        read_until(r"^catalogue has ended: success")
        httpx.post(tasks.replace("tasks", "faults"), json={"on": "submit", "what": 402}, trust_env=False)
        catalogue.clear("pictures")
        read_until(r"^catalogue has ended: failed")
        read_until(r"^pictures failed: AirflowFailException: ")
        prompts = [task["prompt"] for task in httpx.get(tasks, trust_env=False).json()]
        assert prompts == ["A cat", "A dog", "A bird", "A bird"]
        own.joinpath("asks.py").write_text(ASKS)
        asks = api.trigger("asks")
        read_until(rf"^asks: ask: waiting for a person, answer at {re.escape(asks.url)}/tasks/ask/required_actions$")
        command.send_signal(signal.SIGINT)
        command.communicate()
    assert command.returncode == 0
    assert len(list((tmp_path / "gptimg-out").iterdir())) == 2
    assert left_in(tmp_path) == []


def test_a_failed_run_is_told_with_the_log_of_its_task(airflow: StandaloneAirflow, emulator: Emulator):
    emulator.fault("submit", "fail", error="The prompt was [bold]too bold[/bold]")
    console = Console(record=True, markup=False, width=200)
    run = airflow.trigger("example_gptimg_to_s3")
    assert show.follow(run, console, 120, lambda: books(emulator)) == "failed"
    assert run.credits()[0] == 4
    show.show_failures(run, console)
    told = console.export_text()
    assert re.search(r"^\s+[\d.]+ s\s+4\s+4  mirror: failed$", told, re.M)
    assert "log of mirror, attempt 3" in told
    assert "The prompt was [bold]too bold[/bold]" in told
    assert "log of submit" not in told
