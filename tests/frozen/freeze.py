# SPDX-License-Identifier: Apache-2.0
"""Write down how this release leaves its tasks half-way: `PYTHONPATH=tests python tests/frozen/freeze.py`.

A release is frozen once, with the code that was released; `test_frozen.py` resumes it with all later code.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"AIRFLOW_HOME": tempfile.mkdtemp(), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}

from airflow_names import TaskDeferred
from frozen_tasks import IDS, TASKS, Instance, Killed, State

from airflow_provider_gptimg import __version__
from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import S3Server


def freeze(emulator: Emulator, name: str) -> dict[str, Any]:
    """Return the state in which the task `name` waits in the triggerer, or in which its worker died."""
    emulator.reset()
    operator, state = TASKS[name](), State()
    waits_for = [emulator.add_task(status="processing") for _ in IDS] if name in ("sensor", "to_s3") else []
    if waits_for:
        operator.gptimg_task_id = waits_for
    frozen: dict[str, Any] = {}
    try:
        operator.execute(Instance(name, state, is_killed=name == "submit").context)
    except Killed:
        pass
    except TaskDeferred as deferred:
        frozen["trigger"] = deferred.trigger.serialize()
        frozen["method"], frozen["kwargs"] = deferred.method_name, deferred.kwargs or {}
    text = json.dumps({**frozen, "state": state})
    for task_id, stands_in in zip(waits_for or [task.task_id for task in emulator.tasks], IDS, strict=False):
        text = text.replace(task_id, stands_in)
    return json.loads(text)


def main() -> None:
    with S3Server("images") as s3, Emulator(seed=1) as emulator:
        os.environ["AIRFLOW_CONN_AWS_DEFAULT"] = s3.connection_json
        os.environ["AIRFLOW_CONN_GPTIMG_DEFAULT"] = emulator.connection_json
        tasks = {name: freeze(emulator, name) for name in TASKS}
    frozen = {"version": __version__, "at": time.time(), "tasks": tasks}
    Path(__file__).with_name(f"{__version__}.json").write_text(json.dumps(frozen, indent=1) + "\n")


if __name__ == "__main__":
    main()
