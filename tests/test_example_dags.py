# SPDX-License-Identifier: Apache-2.0
"""The example DAGs parse anywhere; `tests/system` runs them."""

from __future__ import annotations

import importlib.util
import re
import socket
from pathlib import Path

import pytest

from airflow_provider_gptimg.exceptions import GptImgMediaError

FOLDER = Path(__file__).parents[1] / "example_dags"
FILES = sorted(FOLDER.glob("*.py"))


def test_they_parse_with_no_connection_and_no_network(monkeypatch):
    from airflow.dag_processing.dagbag import DagBag

    def refuse(*args):
        raise AssertionError("a DAG file must not connect to anything when it is parsed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    bag = DagBag(FOLDER)
    assert bag.import_errors == {}
    assert {path.stem for path in FILES} <= set(bag.dags)
    for dag_id, dag in bag.dags.items():
        # What is started by an asset of an example stands beside it.
        assert dag_id.startswith(Path(dag.fileloc).stem)


def test_none_has_a_timetable_so_that_nothing_is_paid_for_unasked():
    from airflow.dag_processing.dagbag import DagBag

    kinds = {type(dag.timetable).__name__ for dag in DagBag(FOLDER).dags.values()}
    assert kinds == {"NullTimetable", "AssetTriggeredTimetable"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_the_docs_quote_is_marked_from_start_to_end(path):
    marks = re.findall(r"# \[(START|END) (\w+)\]", path.read_text())
    assert marks
    assert [mark for mark, _ in marks] == ["START", "END"] * (len(marks) // 2)
    assert [name for _, name in marks[::2]] == [name for _, name in marks[1::2]]


def test_a_form_shows_images_of_allowed_hosts_alone_and_nothing_breaks_its_markdown(emulator):
    spec = importlib.util.spec_from_file_location("approval", FOLDER / "example_gptimg_approval.py")
    approval = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(approval)
    assert approval.shown("https://file.gptimg.co/a-1.png?s=1&t=%2F") == "https://file.gptimg.co/a-1.png?s=1&t=%2F"
    assert (
        approval.shown("https://file.gptimg.co/a)<b>[c](d)|e") == "https://file.gptimg.co/a%29%3Cb%3E%5Bc%5D%28d%29%7Ce"
    )
    with pytest.raises(GptImgMediaError):
        approval.shown("https://evil.example/a.png")
