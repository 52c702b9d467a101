# SPDX-License-Identifier: Apache-2.0
"""Every name of `airflow_compat` resolves on this Airflow, from the place that was seen on it.

`make matrix` runs this on each supported Airflow. A new name needs a row here when its first place is younger than 3.0,
or older.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import warnings
from importlib import import_module

import pytest

from airflow_provider_gptimg import airflow_compat
from airflow_provider_gptimg.airflow_compat import AIRFLOW, HAS_TASK_STATE_STORE

LAST_SEEN = (3, 4)
"""The newest Airflow on which all places were looked at."""

FIRST_PLACE_SINCE = {
    (2, 11): {
        *("DagRun", "RenderedTaskInstanceFields", "SerializedDagModel", "TaskInstance", "VariableModel"),
        "create_session",
    },
    # (3, 0): all others
    (3, 1): {"AirflowException", "BaseHook", "context_merge"},
    (3, 2): {
        "AirflowFailException",
        "AirflowNotFoundException",
        "AirflowPlugin",
        "AirflowRescheduleException",
        "AirflowSensorTimeout",
        "AirflowSkipException",
        "AirflowTaskTimeout",
        "DagBag",
        "TaskInstanceKey",
        "determine_kwargs",
        "get_hook_lineage_collector",
    },
    (3, 3): {"NEVER_EXPIRE", "RetryDecision", "RetryPolicy", "TaskStateStoreModel", "conf"},
}
"""The Airflow from which on a name comes from the first of its places; before, from the next one, if it has one."""

PRIVATE = {
    "airflow.api_fastapi.auth.managers.models.resource_details": "3.0 to 3.4",
    "airflow.api_fastapi.core_api.security": "3.0 to 3.4",
    "airflow.dag_processing.dagbag": "3.2 to 3.4",
    "airflow.datasets": "2.11",
    "airflow.decorators": "2.11",
    "airflow.decorators.base": "2.11",
    "airflow.models.baseoperator": "2.11",
    "airflow.models.baseoperatorlink": "2.11",
    "airflow.models.connection": "2.11",
    "airflow.models.dagbag": "2.11 to 3.1",
    "airflow.models.dagrun": "2.11 to 3.4",
    "airflow.models.renderedtifields": "2.11 to 3.4",
    "airflow.models.serialized_dag": "3.1 to 3.3",
    "airflow.models.task_state_store": "3.3 and 3.4",
    "airflow.models.taskinstance": "2.11 to 3.4",
    "airflow.models.taskinstancekey": "2.11 to 3.1",
    "airflow.models.variable": "2.11 (Variable), 3.1 to 3.4 (VariableModel)",
    "airflow.models.xcom": "2.11 (XCom), 3.0 to 3.4 (XComModel)",
    "airflow.models.xcom_arg": "2.11",
    "airflow.sdk.bases.decorator": "3.0 to 3.4; determine_kwargs 3.2 to 3.4",
    "airflow.sdk.configuration": "3.2",
    "airflow.sdk.definitions.context": "3.1 to 3.4",
    "airflow.sdk.execution_time.task_runner": "3.0 to 3.4",
    "airflow.sdk.execution_time.xcom": "3.0 to 3.4",
    "airflow.sdk.lineage": "3.2 to 3.4",
    "airflow.sdk.log": "3.0 to 3.4",
    "airflow.sdk.plugins_manager": "3.2 to 3.4",
    "airflow.sdk.types": "3.2 to 3.4",
    "airflow.sensors.base": "2.11",
    "airflow.utils.context": "2.11 and 3.0",
    "airflow.utils.log.secrets_masker": "2.11",
    "airflow.utils.operator_helpers": "2.11 to 3.1",
    "airflow.utils.session": "3.1 to 3.3",
}
"""Where the names come from that no documented module has, and the versions on which they were used from there."""
PUBLIC = {
    "airflow.configuration",
    "airflow.exceptions",
    "airflow.hooks.base",
    "airflow.plugins_manager",
    "airflow.providers.common.compat.lineage.hook",
    "airflow.sdk",
    "airflow.sdk.exceptions",
}
PLACES = {name: [place.partition(":")[0] for place in places] for name, places in airflow_compat._PLACES.items()}


def first_place_since(name: str) -> tuple[int, int]:
    return next((since for since, names in FIRST_PLACE_SINCE.items() if name in names), (3, 0))


def test_this_airflow_was_looked_at():
    assert AIRFLOW <= LAST_SEEN, f"look through the private places on Airflow {AIRFLOW}, and say so here"


def test_each_private_place_says_where_it_was_seen():
    assert {place for places in PLACES.values() for place in places} == PUBLIC | set(PRIVATE)


@pytest.mark.parametrize("name", PLACES)
def test_each_name_comes_from_where_it_was_seen(name):
    if first_place_since(name) <= AIRFLOW:
        seen = PLACES[name][0]
    elif len(PLACES[name]) > 1:
        seen = "airflow.sdk.configuration" if (name, AIRFLOW) == ("conf", (3, 2)) else PLACES[name][-1]
    else:
        with pytest.raises(ImportError):
            exec(f"from airflow_provider_gptimg.airflow_compat import {name}")
        return
    renamed = airflow_compat._PLACES[name][PLACES[name].index(seen)].partition(":")[2]
    found = getattr(airflow_compat, name)
    with warnings.catch_warnings():  # of the place, not of what it imports
        warnings.simplefilter("error")
        assert airflow_compat.__getattr__(name) is found
    assert found is getattr(import_module(seen), renamed or name)


def test_a_name_that_nobody_has_is_reported_with_the_airflow():
    with pytest.raises(AttributeError, match=rf"'Nobody' on Airflow {AIRFLOW[0]}\.{AIRFLOW[1]}"):
        _ = airflow_compat.Nobody


def test_an_operator_fails_with_the_exceptions_that_airflow_catches():
    """3.1 has two modules of exceptions; its task runner knows those of one."""
    runner = import_module("airflow.sdk.execution_time.task_runner" if AIRFLOW >= (3, 0) else "airflow.exceptions")
    for name in ("AirflowFailException", "AirflowRescheduleException", "AirflowSkipException"):
        assert issubclass(getattr(airflow_compat, name), airflow_compat.AirflowException)
        if hasattr(runner, name):
            assert getattr(airflow_compat, name) is getattr(runner, name)


def test_loading_the_module_resolves_nothing():
    script = "import airflow_provider_gptimg.airflow_compat as compat; print(*set(compat._PLACES) & set(vars(compat)))"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.split() == []


def test_a_connection_is_read_without_blocking_the_loop(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SOMEWHERE", '{"conn_type": "gptimg", "host": "example.com"}')
    assert asyncio.run(airflow_compat.get_async_connection("somewhere")).host == "example.com"
    with pytest.raises(airflow_compat.AirflowNotFoundException):
        asyncio.run(airflow_compat.get_async_connection("nowhere"))


def test_a_task_and_the_triggerer_have_the_stats_that_airflow_sets_up():
    for in_triggerer in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stats = airflow_compat.get_stats(in_triggerer)
        stats.incr("gptimg.polls")
    assert (airflow_compat.get_stats() is airflow_compat.get_stats(True)) == (AIRFLOW < (3, 2))


def test_a_task_state_store_is_told_by_the_version():
    try:
        import airflow.sdk

        has_store = hasattr(airflow.sdk, "NEVER_EXPIRE")
    except ImportError:
        has_store = False
    assert has_store == HAS_TASK_STATE_STORE
