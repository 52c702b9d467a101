# SPDX-License-Identifier: Apache-2.0
"""A worker that runs attempts at a batch, each in a process of its own, so that a test can kill it at any moment.

It reads one JSON object a line: what the attempt is. It answers with the process id of the attempt, then with how it
ended: `{"summary": …}`, `{"error": …}`, or `{"killed": true}`.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def attempt(order: dict[str, Any]) -> dict[str, Any]:
    from batch_instance import FileStore, Instance, batch

    os.environ |= order["env"]
    instance = Instance(FileStore(Path(order["store"])), order["number"], order["max_tries"])
    try:
        return {"summary": instance.run(batch(**order["batch"]))}
    except Exception as error:
        return {"error": type(error.__cause__ or error).__name__, "message": str(error)}


def prepare() -> None:
    """Let attempts bring a state store where Airflow has none, or one that a clear empties."""
    from airflow_provider_gptimg import airflow_compat
    from airflow_provider_gptimg.journal import stores

    vars(airflow_compat).setdefault("NEVER_EXPIRE", None)
    stores.STATE_OUTLASTS_CLEARS = True


def main() -> None:
    # An import may print something, too: that must not be read as an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # All that an attempt imports is imported once.
    for module in (
        "airflow.providers.amazon.aws.hooks.s3",
        "airflow_provider_gptimg.batch.run",
        "airflow_provider_gptimg.journal.attempt",
        "airflow_provider_gptimg.hooks.gptimg",
        "airflow_provider_gptimg.mirroring.lineage",
        "airflow_provider_gptimg.mirroring.manifest",
        "batch_instance",
    ):
        import_module(module)
    prepare()
    print("ready", file=answers)
    for line in sys.stdin:
        receiver, sender = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(sender, json.dumps(attempt(json.loads(line))).encode())
            os._exit(0)
        os.close(sender)
        print(pid, file=answers)
        with os.fdopen(receiver) as ending:
            said = ending.read()
        os.waitpid(pid, 0)
        print(said or json.dumps({"killed": True}), file=answers)


if __name__ == "__main__":
    main()
