# SPDX-License-Identifier: Apache-2.0
"""The README keeps its word where a table or a promise stands in it; its blocks and links are tested with the docs'."""

from __future__ import annotations

from markdown_pages import blocks, names, rows, section

from airflow_provider_gptimg import exceptions
from airflow_provider_gptimg.verdicts import airflow_verdict

README = "README.md"


def test_the_first_dag_has_twelve_lines():
    first = next(block for block in blocks("python") if block.page == README)
    assert first.text in section(README, "A DAG")
    assert len(first.text.splitlines()) <= 12


def test_it_leads_with_what_needs_no_account():
    first = next(block for block in blocks() if block.page == README)
    assert first.text == "$ make demo\n$ make test\n"


def test_the_table_of_errors_is_complete_and_true():
    table = {name.strip("`"): verdict for name, _, verdict in rows(section(README, "Failure and cost")) if "`" in name}
    assert set(table) == {name for name in exceptions.__all__ if name != "GptImgError"}
    for name, verdict in table.items():
        assert retried(getattr(exceptions, name)) is verdict.startswith("yes"), name


def retried(error_type: type[exceptions.GptImgError]) -> bool:
    from airflow_provider_gptimg.airflow_compat import AirflowFailException

    try:
        with airflow_verdict():
            raise error_type("example")
    except AirflowFailException:
        return False
    except exceptions.GptImgError:
        return True
    raise AssertionError("no error came through")


def test_what_to_do_is_said_of_each_error():
    page = section("docs/errors.md", "What to do")
    assert set(names(rows(page)[1:])) == {name for name in exceptions.__all__ if name != "GptImgError"}
