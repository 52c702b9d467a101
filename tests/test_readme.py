# SPDX-License-Identifier: Apache-2.0
"""The README's promises and order; its blocks and links are tested with those of the docs."""

from __future__ import annotations

import re

from markdown_pages import PAGES, ROOT, blocks, names, rows, section

from airflow_provider_gptimg import exceptions
from airflow_provider_gptimg.verdicts import airflow_verdict

README = "README.md"


def test_the_first_dag_has_twelve_lines():
    first = next(block for block in blocks("python") if block.page == README)
    assert first.text in section(README, "A DAG")
    assert len(first.text.splitlines()) <= 12


def test_the_first_commands_need_no_account():
    first = next(block for block in blocks("console") if block.page == README)
    assert first.text == "$ make demo\n$ make test\n"


def test_it_fits_a_screen_and_a_half():
    assert len(PAGES[README].splitlines()) <= 130


def test_the_first_dag_follows_the_advice_of_the_docs():
    """It retries, waits in the triggerer, and has no sensor before the transfer."""
    first = next(block for block in blocks("python") if block.page == README)
    assert re.search(r'"retries": [2-9]', first.text)
    assert "deferrable=True" in first.text
    assert "Sensor" not in first.text


def test_the_table_of_errors_is_complete_and_true():
    table = {
        name.strip("`"): verdict for name, _, verdict in rows(section("docs/errors.md", "The errors")) if "`" in name
    }
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


PROMISES = {
    1: "tests/unit/test_journal.py::test_the_intent_stands_before_the_post_goes_out_and_the_outcome_after_it",
    2: "tests/compat/test_compat_journal.py::test_a_retry_takes_up_what_is_paid_for",
    3: "tests/operators/test_paid_once.py::test_a_cleared_success_means_make_new_ones",
    4: "tests/unit/test_journal.py::test_an_unknown_outcome_stops_the_next_attempt",
    5: "tests/unit/test_journal_interleavings.py::test_every_interleaving_of_two_attempts",
    6: "tests/unit/test_journal.py::test_a_frozen_one_looks_again",
}


def test_each_promise_of_what_is_paid_has_a_test():
    promised = re.findall(r"^(\d)\. ", section(README, "Failure and cost"), re.MULTILINE)
    assert list(map(int, promised)) == list(PROMISES)
    for test in PROMISES.values():
        path, name = test.split("::")
        assert f"def {name}(" in (ROOT / path).read_text()
