# SPDX-License-Identifier: Apache-2.0
"""The only module that asks which Airflow this is, with the names that are not public on every Airflow.

A name is resolved on first use, from the first of its places that this Airflow has; public places come first. Some
places are private: `tests/test_airflow_compat.py` names the versions on which each was seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow import __version__ as AIRFLOW_VERSION

if TYPE_CHECKING:
    NEVER_EXPIRE: Any
    from airflow.dag_processing.dagbag import DagBag as DagBag
    from airflow.sdk import (
        Asset as Asset,
        AssetAlias as AssetAlias,
        BaseHook as BaseHook,
        BaseOperator as BaseOperator,
        BaseOperatorLink as BaseOperatorLink,
        BaseSensorOperator as BaseSensorOperator,
        Connection as Connection,
        Context as Context,
        PokeReturnValue as PokeReturnValue,
        Variable as Variable,
        XComArg as XComArg,
    )
    from airflow.sdk.bases.decorator import (
        DecoratedOperator as DecoratedOperator,
        TaskDecorator as TaskDecorator,
        determine_kwargs as determine_kwargs,
        task_decorator_factory as task_decorator_factory,
    )
    from airflow.sdk.configuration import conf as conf
    from airflow.sdk.definitions.context import context_merge as context_merge
    from airflow.sdk.exceptions import (
        AirflowException as AirflowException,
        AirflowFailException as AirflowFailException,
        AirflowNotFoundException as AirflowNotFoundException,
        AirflowRescheduleException as AirflowRescheduleException,
        AirflowSensorTimeout as AirflowSensorTimeout,
        AirflowSkipException as AirflowSkipException,
        AirflowTaskTimeout as AirflowTaskTimeout,
    )
    from airflow.sdk.execution_time.xcom import XCom as XCom
    from airflow.sdk.lineage import get_hook_lineage_collector as get_hook_lineage_collector
    from airflow.sdk.log import mask_secret as mask_secret
    from airflow.sdk.plugins_manager import AirflowPlugin as AirflowPlugin
    from airflow.sdk.types import TaskInstanceKey as TaskInstanceKey

AIRFLOW = tuple(int(part) for part in AIRFLOW_VERSION.split(".")[:2])
"""Major and minor version, e.g. `(3, 3)`."""

HAS_GALLERY = AIRFLOW >= (3, 1)
"""Airflow shows pages of plugins on runs and task instances."""
HAS_TASK_STATE_STORE = AIRFLOW >= (3, 3)
"""The task's context has a state store; triggers can start and end tasks."""
STATE_OUTLASTS_CLEARS = (3, 3) <= AIRFLOW < (3, 4)
"""The task's state store is kept when a person clears the task: 3.4 empties it then."""

_EXCEPTIONS = ("airflow.sdk.exceptions", "airflow.exceptions")
_DECORATOR = ("airflow.sdk.bases.decorator", "airflow.decorators.base")
_PLACES: dict[str, tuple[str, ...]] = {
    "AirflowException": _EXCEPTIONS,
    "AirflowFailException": _EXCEPTIONS,
    "AirflowNotFoundException": _EXCEPTIONS,
    "AirflowPlugin": ("airflow.sdk.plugins_manager", "airflow.plugins_manager"),
    "AirflowRescheduleException": _EXCEPTIONS,
    "AirflowSensorTimeout": _EXCEPTIONS,
    "AirflowSkipException": _EXCEPTIONS,
    "AirflowTaskTimeout": _EXCEPTIONS,
    "Asset": ("airflow.sdk", "airflow.datasets:Dataset"),
    "AssetAlias": ("airflow.sdk", "airflow.datasets:DatasetAlias"),
    "BaseHook": ("airflow.sdk", "airflow.hooks.base"),
    "BaseOperator": ("airflow.sdk", "airflow.models.baseoperator"),
    "BaseOperatorLink": ("airflow.sdk", "airflow.models.baseoperatorlink"),
    "BaseSensorOperator": ("airflow.sdk", "airflow.sensors.base"),
    "Connection": ("airflow.sdk", "airflow.models.connection"),
    "Context": ("airflow.sdk", "airflow.utils.context"),
    "DagBag": ("airflow.dag_processing.dagbag", "airflow.models.dagbag"),
    "DecoratedOperator": _DECORATOR,
    "NEVER_EXPIRE": ("airflow.sdk",),
    "PokeReturnValue": ("airflow.sdk", "airflow.sensors.base"),
    "RuntimeTaskInstance": ("airflow.sdk.execution_time.task_runner", "airflow.models.taskinstance:TaskInstance"),
    "RetryDecision": ("airflow.sdk",),
    "RetryPolicy": ("airflow.sdk",),
    "TaskDecorator": ("airflow.sdk.bases.decorator", "airflow.decorators"),
    "TaskInstanceKey": ("airflow.sdk.types", "airflow.models.taskinstancekey"),
    "Variable": ("airflow.sdk", "airflow.models.variable"),
    "XCom": ("airflow.sdk.execution_time.xcom", "airflow.models.xcom"),
    "XComArg": ("airflow.sdk", "airflow.models.xcom_arg"),
    "conf": ("airflow.sdk", "airflow.sdk.configuration", "airflow.configuration"),
    "context_merge": ("airflow.sdk.definitions.context", "airflow.utils.context"),
    "determine_kwargs": ("airflow.sdk.bases.decorator", "airflow.utils.operator_helpers"),
    "get_hook_lineage_collector": ("airflow.sdk.lineage", "airflow.providers.common.compat.lineage.hook"),
    "mask_secret": ("airflow.sdk.log", "airflow.utils.log.secrets_masker"),
    "task_decorator_factory": _DECORATOR,
    # The API server's, for the gallery (Airflow 3.1 and newer).
    "DagAccessEntity": ("airflow.api_fastapi.auth.managers.models.resource_details",),
    "DagRun": ("airflow.models.dagrun",),
    "RenderedTaskInstanceFields": ("airflow.models.renderedtifields",),
    "SerializedDagModel": ("airflow.models.serialized_dag",),
    "TaskInstance": ("airflow.models.taskinstance",),
    "TaskStateStoreModel": ("airflow.models.task_state_store",),
    "VariableModel": ("airflow.models.variable:Variable",),
    "XComModel": ("airflow.models.xcom",),
    "create_session": ("airflow.utils.session",),
    "requires_access_dag": ("airflow.api_fastapi.core_api.security",),
}


def __getattr__(name: str) -> Any:
    """Resolve an Airflow name; where this Airflow does not have it, `from … import` raises an ImportError."""
    for place in _PLACES.get(name, ()):
        module, _, renamed = place.partition(":")
        try:
            found = getattr(import_module(module), renamed or name)
        except (ImportError, AttributeError):
            continue
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r} on Airflow {AIRFLOW_VERSION}")


async def get_async_connection(conn_id: str) -> Connection:
    """Return a connection without blocking the event loop.

    :raises AirflowNotFoundException: There is no such connection.
    """
    from airflow_provider_gptimg.airflow_compat import BaseHook, Connection

    # From 3.1 to 3.3.1 aget_connection masks secrets by a blocking call, which fails while another is under way.
    if hasattr(Connection, "aextra_dejson"):
        return await BaseHook.aget_connection(conn_id)
    from asgiref.sync import sync_to_async

    return await sync_to_async(BaseHook.get_connection)(conn_id)


def act_as_server() -> None:
    """Let this process, a command line of ours, read connections from Airflow's database, as `airflow` commands do."""
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"


def is_run_by_airflow(ti: Any) -> bool:
    """Return whether `ti` is the task instance that Airflow itself runs in this process, not one made by hand."""
    from airflow_provider_gptimg.airflow_compat import RuntimeTaskInstance

    return isinstance(ti, RuntimeTaskInstance)


def once_ended_well(ti: Any, note: Callable[[], None]) -> None:
    """Call `note` in this process when its task has ended well, which Airflow may have refused to record.

    Not by a listener of a plugin: Airflow then refuses DAGs with `end_from_trigger=True`.
    """
    if AIRFLOW >= (3, 0):
        # First of all: the author's own callbacks may take their time.
        ti.task.on_success_callback = [lambda _context: note(), *(ti.task.on_success_callback or ())]
        return
    # Airflow 2 calls callbacks before it records the success, and listeners after it.
    from airflow.listeners import hookimpl
    from airflow.listeners.listener import get_listener_manager

    class EndedWell:
        @hookimpl
        def on_task_instance_success(self, task_instance: Any) -> None:
            if task_instance.key.primary == ti.key.primary:
                get_listener_manager().pm.unregister(self)
                note()

    get_listener_manager().add_listener(EndedWell())


def recorded_state(ti: Any) -> str | None:
    """Return the state of a running task instance in Airflow's own records, e.g. `success`; None: it has none.

    :raises Exception: It cannot be asked.
    """
    if AIRFLOW < (3, 0):
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        with create_session() as session:
            of = TaskInstance
            state = session.query(of.state).filter(
                of.dag_id == ti.dag_id,
                of.run_id == ti.run_id,
                of.task_id == ti.task_id,
                of.map_index == ti.map_index,
            )
            return state.scalar() and str(state.scalar())
    mapped = ti.map_index is not None and ti.map_index >= 0
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id])
    state = states.get(ti.run_id, {}).get(f"{ti.task_id}_{ti.map_index}" if mapped else ti.task_id)
    return state and str(getattr(state, "value", state))


def has_variables() -> bool:
    """Return whether this process can read and write Airflow Variables: from 3.0 on, only one that runs a task can."""
    if AIRFLOW < (3, 0):
        return True
    return hasattr(import_module("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS")


def read_variable(key: str) -> str | None:
    """Return the value of an Airflow Variable; None: there is none.

    `Variable.get` would ask all secrets backends first, and takes a failure to read for "there is none".

    :raises Exception: It cannot be read.
    """
    if AIRFLOW < (3, 0):
        from airflow.models.variable import Variable
        from airflow.utils.session import create_session

        with create_session() as session:
            found = session.query(Variable).filter(Variable.key == key).one_or_none()
            if found is None:
                return None
            if (value := found.get_val()) is None:
                raise ValueError(f"The Variable {key} cannot be decrypted")
            return str(value)
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.sdk.execution_time.comms import ErrorResponse, GetVariable
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    try:
        answer: Any = SUPERVISOR_COMMS.send(GetVariable(key=key))
    except AirflowRuntimeError as error:
        answer = error.error
    if not isinstance(answer, ErrorResponse):
        return answer.value  # type: ignore[no-any-return]
    if str(getattr(answer.error, "value", answer.error)) == "VARIABLE_NOT_FOUND":
        return None
    raise AirflowRuntimeError(answer)


def get_stats(in_triggerer: bool = False) -> Any:
    """Return the Stats that this process has set up: from 3.2 on, a task and the triggerer have one each."""
    places = ["airflow.sdk.observability.stats", "airflow.observability.stats", "airflow.stats"]
    if in_triggerer:
        places.remove("airflow.sdk.observability.stats")
    for place in places:
        try:
            return import_module(place).Stats
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"Airflow {AIRFLOW_VERSION} has no Stats in {', '.join(places)}")
