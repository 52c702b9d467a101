# SPDX-License-Identifier: Apache-2.0
"""The pytest fixtures that come with the package, in a run of pytest that has nothing but them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_gptimg.airflow_compat import AIRFLOW

DAG = f"""
from {"airflow.sdk" if AIRFLOW >= (3, 0) else "airflow"} import DAG
from airflow_provider_gptimg.operators.gptimg import GptImgSubmitOperator
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

with DAG("poster") as dag:
    submit = GptImgSubmitOperator(task_id="submit", prompt="A lighthouse", n=2)
    GptImgToS3Operator(task_id="mirror", gptimg_task_id=submit.output, s3_bucket="my-images", deferrable=True)
"""


def run_pytest(folder: Path, test: str, **env: str) -> str:
    """Run a test file in a folder of its own, with the plugin as pytest finds it; return what pytest printed."""
    folder.joinpath("test_it.py").write_text(test)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "--color=no"],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return ended.stdout


@pytest.mark.timeout(240)
def test_a_dag_test_takes_three_lines(tmp_path, airflow_db):
    dags = tmp_path / "dags"
    dags.mkdir()
    dags.joinpath("poster.py").write_text(DAG)
    test = """
from poster import dag

def test_poster(gptimg_emulator, gptimg_s3):
    assert dag.test().state == "success"
    assert gptimg_emulator.balance() == 996
    assert gptimg_s3.list_objects_v2(Bucket="my-images")["KeyCount"] == 2
"""
    # A proxy that is not there: neither service may be asked through it.
    proxy = "http://127.0.0.1:9"
    told = run_pytest(
        tmp_path,
        test,
        PYTHONPATH=str(dags),
        AIRFLOW__CORE__DAGS_FOLDER=str(dags),
        HTTP_PROXY=proxy,
        HTTPS_PROXY=proxy,
    )
    assert "1 passed" in told, told


def test_each_test_begins_with_nothing(tmp_path):
    test = """
import os
import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_empty(number, gptimg_emulator, gptimg_s3):
    assert gptimg_emulator.tasks == [] and gptimg_s3.list_buckets()["Buckets"] == []
    gptimg_emulator.add_task()
    for read in gptimg_s3.get_object, gptimg_s3.head_object:
        with pytest.raises(gptimg_s3.exceptions.ClientError):
            read(Bucket="any", Key="key")
    assert gptimg_s3.list_buckets()["Buckets"] == [], "reading creates none"
    gptimg_s3.put_object(Bucket="any", Key="key", Body=b"")
    assert gptimg_s3.head_object(Bucket="any", Key="key")
    assert gptimg_s3.list_buckets()["Buckets"][0]["Name"] == "any"

@pytest.mark.parametrize("gptimg_emulator", [{"credits": 3}], indirect=True)
def test_arguments(gptimg_emulator):
    assert gptimg_emulator.balance() == 3
    assert os.environ["AIRFLOW_CONN_GPTIMG_DEFAULT"] == gptimg_emulator.connection_json
    assert "AIRFLOW_CONN_AWS_DEFAULT" in os.environ

def test_gone():
    assert not {"AIRFLOW_CONN_GPTIMG_DEFAULT", "AIRFLOW_CONN_AWS_DEFAULT"} & set(os.environ)
"""
    assert "4 passed" in (told := run_pytest(tmp_path, test)), told


def test_other_tests_do_not_notice_the_plugin(tmp_path):
    test = """
import sys

HEAVY = {"airflow", "httpx", "aiohttp", "boto3", "moto", "PIL", "starlette", "flask"}

def test_it(request):
    assert request.config.pluginmanager.has_plugin("gptimg")
    assert not [name for name in request.fixturenames if "gptimg" in name]
    loaded = {name for name in sys.modules if name.startswith("airflow_provider_gptimg")}
    assert loaded == {"airflow_provider_gptimg", "airflow_provider_gptimg.fixtures"}
    assert not HEAVY & set(sys.modules)
"""
    assert "1 passed" in (told := run_pytest(tmp_path, test)), told


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("PIL", r"^The emulator needs Pillow: pip install 'airflow-provider-gptimg\[emulator\]'$"),
        ("moto", r"^The fixture gptimg_s3 needs moto: pip install 'moto\[server\]'$"),
    ],
)
def test_what_is_missing_is_said_in_one_line(missing, told, tmp_path):
    """As Python reports a package that is not installed, to all who ask."""
    tmp_path.joinpath("conftest.py").write_text(f"""
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == {missing!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
""")
    answer = run_pytest(tmp_path, "def test_it(gptimg_s3):\n    pass\n")
    assert re.search(told, answer, re.MULTILINE), answer
    assert "Traceback" not in answer
    assert "1 error" in answer
