# SPDX-License-Identifier: Apache-2.0
"""What parsing a DAG loads, on an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MODULES = [
    "airflow_provider_gptimg.operators.gptimg",
    "airflow_provider_gptimg.sensors.gptimg",
    "airflow_provider_gptimg.transfers.gptimg_to_s3",
    "airflow_provider_gptimg.operators.gptimg_batch",
    "airflow_provider_gptimg.decorators.gptimg",
    "airflow_provider_gptimg.decorators.gptimg_batch",
]
HOOK = "airflow_provider_gptimg.hooks.gptimg"
CLIENTS = ("boto3", "botocore", "aiohttp", "airflow_provider_gptimg.hooks")

SCRIPT = """
import importlib, json, sys
import airflow_provider_gptimg.airflow_compat as compat
# Its names are loaded when they are first used; a DAG uses these anyway.
compat.BaseOperator, compat.BaseSensorOperator, compat.conf
before, added = set(sys.modules), {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    added[name] = sorted(set(sys.modules) - before)
    before |= set(sys.modules)
print(json.dumps(added))
"""


@pytest.fixture(scope="module")
def added() -> dict[str, list[str]]:
    """What each module brings into `sys.modules`, one after another."""
    run = subprocess.run([sys.executable, "-c", SCRIPT, *MODULES, HOOK], check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", MODULES)
def test_brings_in_no_client(added, module):
    assert module in added[module]
    clients = [name for name in added[module] if any(f"{name}.".startswith(f"{client}.") for client in CLIENTS)]
    assert clients == []


def test_a_worker_does_without_the_triggerers_client(added):
    assert HOOK in added[HOOK]
    assert "aiohttp" not in added[HOOK]
