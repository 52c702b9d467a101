# SPDX-License-Identifier: Apache-2.0
"""What Airflow and package indexes read of this distribution."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager

from airflow_provider_gptimg import __version__, get_provider_info

ROOT = Path(__file__).parent.parent
NAME = "airflow-provider-gptimg"
INFO = get_provider_info()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def schema(name: str) -> dict[str, Any]:
    return json.loads((Path(airflow.__file__).parent / name).read_text())


def test_fits_the_schema_that_airflow_checks_at_run_time():
    jsonschema.validate(INFO, schema("provider_info.schema.json"))


def test_its_parts_fit_the_schema_of_airflows_own_providers():
    """That one asks for more of each part; as a whole it is about provider.yaml, which we have none of."""
    whole = schema("provider.yaml.schema.json")
    for part, value in INFO.items():
        if part in whole["properties"]:
            jsonschema.validate(value, {**whole["properties"][part], "definitions": whole.get("definitions", {})})


def named_modules() -> list[str]:
    parts = [entry for part in ("hooks", "operators", "sensors", "triggers") for entry in INFO[part]]
    listed = [module for entry in parts for module in entry["python-modules"]]
    return listed + [entry["python-module"] for entry in INFO["transfers"]]


def named_classes() -> list[str]:
    return [
        *INFO["extra-links"],
        *(entry["class-name"] for entry in INFO["task-decorators"]),
        *(entry["hook-class-name"] for entry in INFO["connection-types"]),
    ]


@pytest.mark.parametrize("module", named_modules())
def test_a_named_module_can_be_imported(module):
    assert importlib.import_module(module).__all__


@pytest.mark.parametrize("path", named_classes())
def test_a_named_class_can_be_imported(path):
    module, _, name = path.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("kind", ["hooks", "operators", "sensors", "triggers", "transfers", "decorators"])
def test_every_module_of_a_kind_is_named(kind):
    found = {
        f"airflow_provider_gptimg.{kind}.{path.stem}"
        for path in (ROOT / "airflow_provider_gptimg" / kind).glob("gptimg*.py")
    }
    named = {path.rpartition(".")[0] for path in named_classes()} | set(named_modules())
    assert found
    assert found <= named


def test_integrations_that_are_referred_to_exist():
    ours = {entry["integration-name"] for entry in INFO["integrations"]}
    used = {entry["integration-name"] for part in ("hooks", "operators", "sensors", "triggers") for entry in INFO[part]}
    assert used == ours
    assert {entry["source-integration-name"] for entry in INFO["transfers"]} <= ours


def test_returns_a_fresh_dict_each_time():
    """Airflow keeps and changes what it is given."""
    get_provider_info()["connection-types"].clear()
    assert get_provider_info()["connection-types"]


class TestProvidersManager:
    """Airflow finds it by its entry point."""

    def test_knows_the_provider(self):
        found = ProvidersManager().providers[NAME]
        assert found.version == __version__
        assert found.data["name"] == "gpt-image-2"

    def test_knows_the_hook_of_the_connection_type(self):
        hook = ProvidersManager().hooks["gptimg"]
        assert hook is not None
        assert hook.hook_class_name == "airflow_provider_gptimg.hooks.gptimg.GptImgHook"
        assert hook.hook_name == INFO["connection-types"][0]["hook-name"]
        assert hook.package_name == NAME

    def test_knows_the_decorators(self):
        known = dict(ProvidersManager().taskflow_decorators)
        assert {entry["name"] for entry in INFO["task-decorators"]} <= set(known)


class TestConnectionType:
    """The form, and what the hook says of itself, speak of the same fields."""

    TYPE = INFO["connection-types"][0]

    def test_the_hook_agrees(self):
        from airflow_provider_gptimg.hooks.gptimg import GptImgHook

        assert (GptImgHook.conn_type, GptImgHook.hook_name) == (self.TYPE["connection-type"], self.TYPE["hook-name"])
        assert GptImgHook.default_conn_name == "gptimg_default"
        assert GptImgHook.get_ui_field_behaviour() == {
            name.replace("-", "_"): value for name, value in self.TYPE["ui-field-behaviour"].items()
        }

    def test_the_form_has_the_extras_of_the_contract(self):
        assert set(self.TYPE["conn-fields"]) == {
            "timeout",
            "poll_interval",
            "first_poll_after",
            "media_hosts",
            "reference_images_field",
            "verify",
            "final_failure_codes",
            "max_connections",
            "on_unknown_submission",
        }

    @pytest.mark.parametrize("field", sorted(TYPE["conn-fields"]))
    def test_a_field_of_the_form_may_be_left_empty(self, field):
        described = self.TYPE["conn-fields"][field]
        assert described["label"]
        assert described["description"]
        jsonschema.validate(None, described["schema"])
        jsonschema.Draft202012Validator.check_schema(described["schema"])

    def test_what_the_form_says_are_the_defaults_are_the_defaults(self):
        from airflow_provider_gptimg.hooks.connection import DEFAULT_CALL_TIMEOUT, DEFAULT_MEDIA_HOSTS
        from airflow_provider_gptimg.polling import DEFAULT_FIRST_POLL_AFTER, DEFAULT_POLL_INTERVAL

        fields = self.TYPE["conn-fields"]
        assert f"{DEFAULT_CALL_TIMEOUT:g} if empty" in fields["timeout"]["description"]
        assert f"{DEFAULT_POLL_INTERVAL:g} if empty" in fields["poll_interval"]["description"]
        assert f"{DEFAULT_FIRST_POLL_AFTER:g} if empty" in fields["first_poll_after"]["description"]
        assert ", ".join(DEFAULT_MEDIA_HOSTS) in fields["media_hosts"]["description"]


class TestVersion:
    def test_stands_in_one_place(self):
        assert "version" not in PROJECT
        assert "version" in PROJECT["dynamic"]
        others = [
            path
            for path in (ROOT / "airflow_provider_gptimg").rglob("*.py")
            if re.search(rf"['\"/]{re.escape(__version__)}['\"]", path.read_text())
        ]
        assert others == [ROOT / "airflow_provider_gptimg" / "__init__.py"]

    def test_is_the_newest_one_named(self):
        assert INFO["versions"][0] == __version__

    def test_is_what_is_installed(self):
        assert distribution(NAME).version == __version__

    def test_is_sent_to_the_api(self, emulator):
        from airflow_provider_gptimg.hooks.gptimg import GptImgHook

        GptImgHook().test_connection()
        assert emulator.calls[0].headers["user-agent"] == f"airflow-provider-gptimg/{__version__}"


LOCKS = ["requirements.lock", "benchmarks/requirements.lock", "tests/cluster/requirements.lock"]


@pytest.mark.parametrize("path", [*LOCKS, *sorted(str(path) for path in (ROOT / "tests/compat").glob("*.lock"))])
def test_no_lock_names_an_address(path):
    """Else it would tie each user to one package index."""
    lock = (ROOT / path).read_text()
    assert not re.findall(r"https?://|--(?:extra-)?index|--find-links", lock)
    assert "--hash=sha256:" in lock
