# SPDX-License-Identifier: Apache-2.0
"""SECURITY.md, CONTRIBUTING.md and the registry's metadata say what is there."""

from __future__ import annotations

import ast
import importlib
import re

import pytest
import yaml
from markdown_pages import PAGES, ROOT, blocks, rows

from airflow_provider_gptimg import get_provider_info

PACKAGE = ROOT / "airflow_provider_gptimg"
THREATS = rows(PAGES["SECURITY.md"])[1:]
REGISTRY = yaml.safe_load((ROOT / ".airflow-registry.yaml").read_text())


@pytest.mark.parametrize("threat", THREATS, ids=lambda row: row[0])
def test_each_threat_names_tests_that_exist(threat):
    named = re.findall(r"`(tests/[^`]+)::(test_\w+)`", threat[-1])
    assert named
    assert len(named) == threat[-1].count("`") // 2
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        assert name in {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }


def test_the_threats_are_those_that_were_thought_of():
    assert [row[0] for row in THREATS] == [
        "Stolen key",
        "Hostile answer",
        "Hostile image host",
        "Hostile prompt",
        "Curious viewer",
        "Poisoned XCom",
        "Replaced attempt",
    ]


def test_the_layout_names_each_part_of_the_package_once():
    (layout,) = [block.text for block in blocks("text") if block.page == "CONTRIBUTING.md"]
    named = re.findall(r"\w+(?:/|\.py)", layout)
    assert all((PACKAGE / name).exists() for name in named)
    assert len(named) == len(set(named))
    packages = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert packages | {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"} == set(named)


def test_commands_in_contributing_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", PAGES["CONTRIBUTING.md"])) <= targets


def test_the_registry_names_every_public_class():
    info = get_provider_info()
    parts = [entry for part in ("hooks", "operators", "sensors", "triggers") for entry in info[part]]
    modules = [module for entry in parts for module in entry["python-modules"]]
    modules += [entry["python-module"] for entry in info["transfers"]]
    public = {
        f"{module}.{name}"
        for module in modules
        for name in importlib.import_module(module).__all__
        if re.match("GptImg.*(Hook|Operator|Sensor|Trigger)$", name)
    } | {entry["class-name"] for entry in info["task-decorators"]}
    entries = [entry for part in REGISTRY.values() if isinstance(part, list) for entry in part]
    assert {entry["module"] for entry in entries} == public
    assert all(entry["description"] for entry in entries)
    assert (REGISTRY["package-name"], REGISTRY["display-name"]) == (info["package-name"], info["name"])


def test_no_address_is_promised_that_does_not_exist():
    for name in (".airflow-registry.yaml", "pyproject.toml", "SECURITY.md", "CONTRIBUTING.md"):
        assert not re.search(r"https?://\w|\w@\w", (ROOT / name).read_text()), name
