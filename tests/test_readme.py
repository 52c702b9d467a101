# SPDX-License-Identifier: Apache-2.0
"""The README keeps its word: its blocks run, its tables say what the code does, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from airflow_provider_gptimg import exceptions
from airflow_provider_gptimg.hooks import connection
from airflow_provider_gptimg.polling import Schedule
from airflow_provider_gptimg.verdicts import airflow_verdict

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(title: str) -> list[list[str]]:
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not re.fullmatch(r"[|-]+", line)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1].strip()[:40])
def test_python_blocks_run_as_pasted(block):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_first_dag_has_twelve_lines():
    assert len(section("A DAG").split("```python\n")[1].split("```")[0].splitlines()) <= 12


def test_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"^\$ make (\w+)", README, re.MULTILINE)
    assert commands == ["demo", "test"]
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)


def test_relative_links_lead_to_files():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_table_of_errors_is_complete_and_true():
    table = {name.strip("`"): verdict for name, _, verdict in rows("Failure and cost") if "`" in name}
    classes = {name for name in exceptions.__all__ if name != "GptImgError"}
    assert set(table) == classes
    for name, verdict in table.items():
        assert retried(getattr(exceptions, name)) is verdict.startswith("yes"), name


def retried(error_type: type[exceptions.GptImgError]) -> bool:
    from airflow.providers.common.compat.sdk import AirflowFailException

    try:
        with airflow_verdict():
            raise error_type("example")
    except AirflowFailException:
        return False
    except exceptions.GptImgError:
        return True
    raise AssertionError("no error came through")


def test_defaults_in_the_connection_table_are_those_of_the_code():
    table = dict(rows("Connection")[1:])
    assert f"`{connection.DEFAULT_BASE_URL}`" in table["host"]
    assert f"({connection.DEFAULT_CALL_TIMEOUT:g})" in table["extra `timeout`"]
    schedule = table["extra `poll_interval`, `first_poll_after`"]
    assert f"({Schedule().poll_interval:g})" in schedule
    assert f"({Schedule().first_poll_after:g})" in schedule
    assert all(f"`{host}`" in table["extra `media_hosts`"] for host in connection.DEFAULT_MEDIA_HOSTS)
