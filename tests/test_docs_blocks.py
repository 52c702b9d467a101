# SPDX-License-Identifier: Apache-2.0
"""Every block of code in the README and the docs does what it says: DAGs run, tests pass, commands and queries work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from markdown_pages import PAGES, ROOT, Block, blocks

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import S3Server

TESTING = "docs/testing.md"
BUCKETS = ("my-images", "my-data")
SAMPLES = ROOT / "docs/samples"

DAG_BLOCKS = [block for block in blocks("python") if block.page != TESTING]
COMMANDS = [
    pytest.param(command, block, id=f"{block.page}: {command[:60]}")
    for block in blocks("console")
    for command in re.findall(r"^\$ (.*)$", block.text.replace("\\\n", ""), re.MULTILINE)
]

# One process for all, since Airflow's imports take seconds.
RUN_EACH = """
import json, runpy, sys

for sys.argv in json.loads(sys.argv[1]):
    print("\\x1e")
    try:
        runpy.run_module(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, sys.argv
"""


def run(*command: str, cwd: Path | None = None, **env: str) -> str:
    """Return what a command printed; the test fails with it if the command does."""
    ended = subprocess.run(
        command, cwd=cwd, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert ended.returncode == 0, f"{shlex.join(command)[:200]}\n{ended.stdout[-8000:]}"
    return ended.stdout


def run_each(commands: list[list[str]], **env: str) -> list[str]:
    """Return what each of some commands printed, `module argument …`, run one after another in one process."""
    return run(sys.executable, "-u", "-c", RUN_EACH, json.dumps(commands), **env).split("\x1e\n")[1:]


def test_blocks_are_of_kinds_that_are_tested():
    kinds = {block.language for block in blocks() if not block.language.startswith("{")}
    assert kinds == {"python", "console", "json", "ini", "sql", "text"}


@pytest.fixture(scope="module")
def dag_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DAGs folder with each block as a file, and the sample that one of them reads."""
    folder = tmp_path_factory.mktemp("dags-of-the-docs")
    for block in DAG_BLOCKS:
        folder.joinpath(re.sub(r"\W", "_", block.name) + ".py").write_text(block.text)
    shutil.copy(SAMPLES / "prompts.csv", folder)
    return folder


@pytest.fixture(scope="module")
def dag_ids(dag_folder: Path) -> list[str]:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder)
    assert bag.import_errors == {}
    return sorted(bag.dags)


def test_each_python_block_is_a_dag_file(dag_ids):
    assert len(dag_ids) == len(DAG_BLOCKS) > 8


@dataclass(frozen=True)
class Made:
    emulator: Emulator
    objects: dict[str, bytes]


@pytest.fixture(scope="module")
def made(airflow_db: str, dag_folder: Path, dag_ids: list[str]) -> Iterator[Made]:
    """What comes of all DAGs, each run by `airflow dags test`."""
    with (
        Emulator(durations=(1, 1), extra={"poll_interval": 0.2, "first_poll_after": 0}) as emulator,
        S3Server(BUCKETS[0]) as server,
    ):
        s3 = server.client()
        s3.create_bucket(Bucket=BUCKETS[1])
        s3.put_object(Bucket="my-data", Key="prompts.csv", Body=(SAMPLES / "prompts.csv").read_bytes())
        (table,) = (block.text for block in blocks("text") if block.text.startswith("sku,"))
        s3.put_object(Bucket="my-data", Key="products.csv", Body=f"\ufeff{table}".encode())
        run_each(
            [["airflow", "dags", "test", dag_id, "--mark-success-pattern", "approve"] for dag_id in dag_ids],
            AIRFLOW__CORE__DAGS_FOLDER=str(dag_folder),
            AIRFLOW_CONN_GPTIMG_DEFAULT=emulator.connection_json,
            AIRFLOW_CONN_AWS_DEFAULT=server.connection_json,
            AIRFLOW__GPTIMG__JOURNAL="s3://my-data/gptimg-journal",
        )
        keys = [found["Key"] for found in s3.list_objects_v2(Bucket="my-images")["Contents"]]
        yield Made(emulator, {key: s3.get_object(Bucket="my-images", Key=key)["Body"].read() for key in keys})


@pytest.mark.system
@pytest.mark.timeout(400)
def test_airflow_runs_each_dag_to_its_end(made):
    assert {task.status for task in made.emulator.tasks} == {"completed"}
    images = {image for task in made.emulator.tasks for image in task.images}
    assert images > {content for key, content in made.objects.items() if not key.endswith(".jsonl")} > set()
    assert {entry.kind for entry in made.emulator.ledger} == {"charge"}


@pytest.mark.system
@pytest.mark.timeout(400)
def test_a_table_of_products_becomes_images_with_their_numbers(made):
    assert {key for key in made.objects if key.startswith("by-sku/")} == {
        "by-sku/T-1/0.png",
        "by-sku/T-1/1.png",
        "by-sku/T-2/0.png",
    }


@pytest.fixture(scope="module")
def manifest(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the manifests that these DAGs wrote."""
    folder = tmp_path_factory.mktemp("manifests")
    for key, content in made.objects.items():
        if key.startswith("manifests/"):
            folder.joinpath(key.replace("/", "_")).write_bytes(content)
    assert list(folder.iterdir())
    return folder


@pytest.mark.system
@pytest.mark.timeout(400)
def test_duckdb_answers_the_query(manifest, made, tmp_path):
    import duckdb

    (query,) = (block.text for block in blocks("sql") if "read_json" in block.text)
    assert "'s3://my-images/manifests/" in query
    taken_again = "".join(
        json.dumps(json.loads(line) | {"credits": 0}) + "\n" for path in manifest.iterdir() for line in path.open()
    )
    with_reuse = tmp_path / "manifests"
    shutil.copytree(manifest, with_reuse)
    with_reuse.joinpath("of_another_run.jsonl").write_text(taken_again)
    answer = duckdb.sql(query.replace("s3://my-images/manifests/", f"{with_reuse}/"))
    assert answer.columns == ["day", "images", "credits", "bytes"]
    ((day, images, credits, size),) = answer.fetchall()
    assert abs(day.replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(days=2)
    rows = [json.loads(line) for path in manifest.iterdir() for line in path.read_text().splitlines()]
    assert (images, credits) == (len(rows), 2 * len(rows))
    assert images >= 4, "as many as the sample of a batch asks for"
    assert size == sum(row["size"] for row in rows)


@pytest.mark.system
@pytest.mark.timeout(400)
def test_athena_is_told_the_fields_that_a_manifest_has(manifest):
    (statement,) = (block.text for block in blocks("sql") if block.text.startswith("CREATE EXTERNAL TABLE"))
    columns = dict(re.findall(r"^  `?(\w+)`? (\w+),?$", statement, re.MULTILINE))
    sql_types = {str: {"string"}, bool: {"boolean"}, int: {"int", "bigint"}}
    rows: list[dict[str, Any]] = [json.loads(line) for path in manifest.iterdir() for line in path.open()]
    assert {tuple(columns)} == {tuple(row) for row in rows}
    for name, column in columns.items():
        types = {type(row[name]) for row in rows} - {type(None)}  # a transfer does not know the prompt
        assert types, name
        assert all(column in sql_types[each] for each in types), name
    assert columns["size"] == "bigint", "an image may be larger than 2 GiB"
    assert re.fullmatch(
        r"CREATE EXTERNAL TABLE \w+ \(\n(  `?\w+`? \w+,\n)+  `?\w+`? \w+\n\)\n"
        r"ROW FORMAT SERDE 'org\.openx\.data\.jsonserde\.JsonSerDe'\nLOCATION 's3://my-images/manifests/'\n",
        statement,
    )


CONSTRAINTS = r"https://raw\.githubusercontent\.com/apache/airflow"


@pytest.mark.system
@pytest.mark.timeout(400)
def test_the_page_on_testing_is_a_test_suite_that_passes(airflow_db, tmp_path):
    """Its blocks, put into the files that they name."""
    for block in blocks("python", "ini"):
        if block.page == TESTING:
            name = "pytest.ini" if block.language == "ini" else block.text.splitlines()[0].removeprefix("# ")
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text((path.read_text() + "\n\n" if path.exists() else "") + block.text)
    told = run(
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "--color=no"),
        cwd=tmp_path,
        AIRFLOW__CORE__DAGS_FOLDER=str(tmp_path / "dags"),
    )
    shown = [name for block in blocks("python") for name in re.findall(r"^def (test_\w+)", block.text, re.MULTILINE)]
    assert set(re.findall(r"::(test_\w+).* PASSED", told)) == set(shown)


@pytest.fixture(scope="module")
def printed(airflow_db: str, dag_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the commands print that start a program of Airflow's or of this package."""
    started = {}
    for parameters in COMMANDS:
        match shlex.split(parameters.values[0]):
            case ["python", "-m", "airflow_provider_gptimg.cost" as module, dag_id]:
                started[parameters.values[0]] = [module, dag_id]
            case ["python", "-m", module, *arguments] if module != "pytest":
                started[parameters.values[0]] = [module, *arguments, "--help"]  # which refuses wrong values too
            case ["airflow", *_] as words:
                started[parameters.values[0]] = words
    told = run_each(
        list(started.values()),
        AIRFLOW_HOME=str(tmp_path_factory.mktemp("home")),
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{airflow_db}/airflow.db",
        AIRFLOW__CORE__DAGS_FOLDER=str(dag_folder),
    )
    return dict(zip(started, told, strict=True))


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("command", "block"), COMMANDS)
def test_commands_work(command: str, block: Block, printed):
    if setting := re.fullmatch(r"export (.*)", command):
        for assignment in shlex.split(setting[1]):
            check_variable(*assignment.split("=", 1))
        return
    words = shlex.split(command)
    match words:
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["pip", "install", *requirements]:
            if "--constraint" in requirements:
                requirements.remove("--constraint")
                constraints = requirements.pop()
                assert re.fullmatch(rf"{CONSTRAINTS}/constraints-3\.\d+\.\d+/constraints-3\.\d+\.txt", constraints)
            for requirement in requirements:
                check_requirement(requirement)
        case ["python", "-m", "pytest"]:
            assert block.page == TESTING, "which is run as a whole"
        case ["python", "-m", "airflow_provider_gptimg.cost", _]:
            assert block.text.split("\n", 1)[1] in printed[command]
        case ["python", "-m", module, *_]:
            assert module.startswith("airflow_provider_gptimg.")
            options = set(re.findall(r"--[\w-]+", printed[command]))
            assert {word for word in words if word.startswith("--")} <= options
        case ["airflow", *_]:
            assert command in printed
        case _:
            raise AssertionError(f"nothing tests {command!r} in {block.page}")


def check_variable(name: str, value: str) -> None:
    from airflow.configuration import conf

    if name.startswith("AIRFLOW_CONN_"):
        check_connection(json.loads(value))
        return
    matched = re.fullmatch(r"AIRFLOW__([A-Z]+)__([A-Z_]+)", name)
    assert matched, name
    assert matched[2].lower() in conf.configuration_description[matched[1].lower()]["options"]


def check_connection(fields: dict[str, Any]) -> None:
    from airflow_provider_gptimg.airflow_compat import Connection
    from airflow_provider_gptimg.hooks.connection import ConnectionSettings

    assert fields["conn_type"] == "gptimg"
    fields["extra"] = json.dumps(fields.get("extra", {}))
    settings = ConnectionSettings.read(Connection(conn_id="gptimg_default", **fields))
    known = {"timeout", "media_hosts", "reference_images_field", "verify", "poll_interval", "first_poll_after"}
    assert set(json.loads(fields["extra"])) <= known | {"on_unknown_submission"}
    assert settings.api_key == fields["password"]


def check_extra_of_aws(extra: dict[str, Any]) -> None:
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper

    from airflow_provider_gptimg.airflow_compat import Connection

    connection = AwsConnectionWrapper(Connection(conn_id="aws", conn_type="aws", extra=json.dumps(extra)))
    config = connection.botocore_config
    assert all(getattr(config, name) == value for name, value in extra["config_kwargs"].items())
    assert connection.get_service_endpoint_url("s3") == extra["endpoint_url"]


def check_requirement(text: str) -> None:
    from importlib.metadata import version

    from packaging.requirements import Requirement

    requirement = Requirement(text)
    assert version(requirement.name)
    if requirement.name == "airflow-provider-gptimg":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert requirement.extras <= set(project["optional-dependencies"])


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.name)
def test_json_is_what_it_is_shown_as(block):
    from airflow_provider_gptimg.batch.requests import read_requests

    value = json.loads(block.text)
    if "conn_type" in value:
        check_connection(value)
    elif "endpoint_url" in value:
        check_extra_of_aws(value)
    else:
        (asked,) = read_requests("s3://bucket/key.jsonl", lambda *_: json.dumps(value))
        assert asked.request.prompt == value["prompt"]


def test_the_samples_of_a_batch_are_the_same_requests():
    from airflow_provider_gptimg.batch.requests import read_requests

    csv, lines = (
        read_requests(f"s3://bucket/{path.name}", lambda *_, path=path: path.read_text())
        for path in sorted(SAMPLES.iterdir())
    )
    assert [asked.request for asked in csv] == [asked.request for asked in lines]
    assert sum(asked.request.n for asked in csv) == 4


@pytest.mark.parametrize("block", blocks("ini"), ids=lambda block: block.name)
def test_settings_are_airflows(block):
    from airflow.configuration import conf

    parser = ConfigParser()
    parser.read_string(block.text)
    for name in parser.sections():
        if (name, block.page) != ("pytest", TESTING):  # read by the run of that page
            assert set(parser[name]) <= set(conf.configuration_description[name]["options"])


def test_pages_name_settings_that_airflow_has():
    from airflow.configuration import conf

    named = {found for text in PAGES.values() for found in re.findall(r"`\[(\w+)\] (\w+)`", text)}
    assert named
    for name, option in named:
        assert option in conf.configuration_description[name]["options"], f"[{name}] {option}"
