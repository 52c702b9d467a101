# SPDX-License-Identifier: Apache-2.0
"""The tables in the docs name what the code has: all of it, and nothing else."""

from __future__ import annotations

import inspect
import re
import time
import tomllib
from typing import Any

import pytest
from markdown_pages import ROOT, blocks, names, rows, section

from airflow_provider_gptimg import get_provider_info
from airflow_provider_gptimg.api.tasks import Image, ImageTask
from airflow_provider_gptimg.batch.report import Report
from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.emulator.faults import _ANYWHERE, _ERROR_OPTIONS, _ON_IMAGE, _ON_SUBMIT
from airflow_provider_gptimg.hooks import connection
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.journal.attempt import FIRST_RELEASE_KEY
from airflow_provider_gptimg.mirroring.manifest import manifest_lines
from airflow_provider_gptimg.mirroring.mirror import MirroredObject
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.polling import Schedule
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator
from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger

PACKAGE = ROOT / "airflow_provider_gptimg"
MIRRORED = MirroredObject(
    bucket="b",
    key="k",
    task_id="t",
    index=0,
    source_url="https://gptimg.co/a.png",
    content_type="image/png",
    size=1,
    sha256="0",
    etag="e",
    skipped=False,
)


def documented(page: str, title: str) -> list[str]:
    found = names(rows(section(page, title))[1:])
    assert len(found) == len(set(found)), "something is said twice"
    return found


def test_the_finished_task():
    task = ImageTask("t", "completed", images=(Image("https://gptimg.co/a.png"),))
    assert set(documented("docs/classes/generate.md", "The finished task")) == set(task.as_dict())


ARGUMENTS = {
    "submit": GptImgSubmitOperator,
    "generate": GptImgGenerateOperator,
    "sensor": GptImgTaskSensor,
    "to-s3": GptImgToS3Operator,
    "trigger": GptImgTaskTrigger,
    "emulator": Emulator,
}


@pytest.mark.parametrize("page", ARGUMENTS)
def test_the_arguments_of_a_class_with_their_defaults(page):
    table = rows(section(f"docs/classes/{page}.md", "Arguments"))[1:]
    said = {name.strip("`"): default.strip("`") for name, default, _ in table}
    parameters = inspect.signature(ARGUMENTS[page]).parameters.values()
    known = {each.name: each.default for each in parameters if each.kind is not each.VAR_KEYWORD}
    assert list(said) == list(known)
    assert said.pop("deferrable", "Airflow's") == "Airflow's"
    for name, default in said.items():
        assert (inspect.Parameter.empty if default == "–" else eval(default, {"time": time})) == known[name], name
    templated = {name.strip("`") for name, _, meaning in table if "(templated)" in meaning}
    assert templated == set(getattr(ARGUMENTS[page], "template_fields", ())) & set(said)


def test_the_methods_of_the_hook():
    for method in documented("docs/classes/hook.md", "Methods"):
        name, _, arguments = method.partition("(")
        parameters = inspect.signature(getattr(GptImgHook, name)).parameters.values()
        bare = [each.replace(annotation=inspect.Parameter.empty) for each in parameters if each.name != "self"]
        assert inspect.signature(eval(f"lambda {arguments[:-1]}: 0")) == inspect.Signature(bare)


def test_the_faults_of_the_emulator():
    table = rows(section("docs/classes/emulator.md", "Faults"))[1:]
    said = {what.split("`")[1]: (on, re.findall(r"`(\w+)", options)) for what, on, _, options in table}
    known = {"429": ("any", [*_ERROR_OPTIONS])}
    for on, faults in {"any": _ANYWHERE, "submit": _ON_SUBMIT, "image": _ON_IMAGE}.items():
        known |= {what: (on, [*options]) for what, options in faults.items()}
    assert {what: (on, sorted(options)) for what, (on, options) in said.items()} == {
        what: (on, sorted(options)) for what, (on, options) in known.items()
    }


def test_a_mirrored_object():
    assert set(documented("docs/classes/to-s3.md", "A mirrored object")) == set(MIRRORED.as_dict())


def test_the_manifest():
    import json

    (row,) = map(json.loads, manifest_lines([MIRRORED], {"t": ImageTask("t", "completed")}).splitlines())
    assert set(documented("docs/classes/to-s3.md", "The manifest")) == set(row)


def test_the_summary_of_a_batch():
    report = Report([], [], [], [], None, on_unknown="fail", try_number=1, charged=0, way_to_drop="")
    assert set(documented("docs/classes/batch.md", "The summary")) == set(report.summary(None))


def test_the_connections_extra():
    table = rows(section_of_connection())
    extras = {name for field, _ in table for name in re.findall(r"`(\w+)`", field)}
    assert extras == set(get_provider_info()["connection-types"][0]["conn-fields"])


def test_the_connections_defaults():
    table = dict(rows(section_of_connection())[1:])
    assert f"`{connection.DEFAULT_BASE_URL}`" in table["host"]
    assert f"({connection.DEFAULT_CALL_TIMEOUT:g})" in table["extra `timeout`"]
    schedule = table["extra `poll_interval`, `first_poll_after`"]
    assert f"({Schedule().poll_interval:g})" in schedule
    assert f"({Schedule().first_poll_after:g})" in schedule
    assert all(f"`{host}`" in table["extra `media_hosts`"] for host in connection.DEFAULT_MEDIA_HOSTS)


def section_of_connection() -> str:
    return (ROOT / "docs/connection.md").read_text().split("\n## ")[0]


def test_the_metrics_with_their_tags():
    table = rows(section("docs/operating.md", "Metrics, and what to alert on"))[1:]
    said = {metric.strip("`"): set(re.findall(r"`(\w+)`", tags)) for metric, tags, _ in table}
    sources = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py") if "emulator" not in path.parts)
    sent: dict[str, set[str]] = {}
    for name, tags in re.findall(r"(?<![.\w])count\(\"(\w+)\"([^)]*)\)", sources):
        sent.setdefault(f"gptimg.{name}", set()).update(re.findall(r"(\w+)=", tags))
    for name, tags in re.findall(r"stats\.\w+\(\"(gptimg\.\w+)\", [^\n]*tags=\{([^}]*)\}", sources):
        sent.setdefault(name, set()).update(re.findall(r"\"(\w+)\":", tags))
    assert len(sent) > 5
    assert said == sent


def test_the_spans():
    text = section("docs/operating.md", "Metrics, and what to alert on")
    sources = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    spans = {f"gptimg.{name}" for name in re.findall(r"\bspan\(\"(\w+)\"", sources)}
    assert spans
    assert all(f"`{name}`" in text for name in spans)


def test_the_links_on_a_task_instance():
    table = rows(section("docs/gallery.md", "Links on a task instance"))[1:]
    modules: dict[str, Any] = {}
    for path in get_provider_info()["extra-links"]:
        module, _, name = path.rpartition(".")
        modules[name] = getattr(__import__(module, fromlist=[name]), name)
    assert [cell.strip("*") for cell, *_ in table] == [link.name for link in modules.values()]


def test_the_key_of_the_first_releases_record():
    assert f"`{FIRST_RELEASE_KEY}`" in (ROOT / "docs/upgrading.md").read_text()


def test_the_settings_of_the_journal():
    options = get_provider_info()["config"]["gptimg"]["options"]
    text = (ROOT / "docs/operating.md").read_text()
    assert re.findall(r"^(journal\w*) = ", text, re.MULTILINE) == list(options)


def test_each_class_has_a_page_in_the_index_and_in_the_readme():
    index = rows((ROOT / "docs/classes/index.md").read_text())[1:]
    pages = {page for first, *_ in index for page in re.findall(r"\((\S+\.md)\)", first)}
    assert pages == {path.name for path in ROOT.glob("docs/classes/*.md")} - {"index.md"}
    linked = re.findall(r"\(docs/classes/(\S+\.md)\)", section("README.md", "Classes"))
    assert set(linked) == pages - {"emulator.md"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/classes/*.md")), ids=lambda path: path.stem)
def test_each_class_page_links_to_its_source_and_has_a_whole_dag(path):
    """Blocks and examples run in other tests."""
    text = path.read_text()
    if path.stem != "index":
        assert re.search(r"\]\(\.\./\.\./airflow_provider_gptimg/[^)]*\.py\)", text)
    if path.stem not in {"index", "emulator"}:
        python = [block for block in blocks("python") if block.page == str(path.relative_to(ROOT))]
        whole = re.findall(r'literalinclude\} \.\./\.\./example_dags/.*\n.*\n:start-after: "\[START howto_dag_', text)
        assert python or whole


def test_the_requirements():
    table = re.findall(
        r"^\| `([\w-]+)` \| `(>=[\d.]+)` \|$", section("docs/getting-started.md", "Requirements"), re.MULTILINE
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ["".join(row) for row in table] == project["dependencies"]


def test_the_examples():
    table = rows((ROOT / "docs/examples.md").read_text())[1:]
    assert set(names(table)) == {path.stem for path in ROOT.glob("example_dags/*.py")}
