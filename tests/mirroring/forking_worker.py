# SPDX-License-Identifier: Apache-2.0
"""A process that forks one worker after the other, as Airflow's executors do, so that each starts at once.

On `start` it forks a worker, which mirrors, and prints its pid; on `reap` it prints the status of the worker's end. A
worker that has ended keeps its pid until then, so that whoever kills it hits nobody else.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from airflow.providers.amazon.aws.hooks.s3 import S3Hook  # noqa: F401 - what the transfer imports when it runs

from airflow_provider_gptimg import waiting  # noqa: F401
from airflow_provider_gptimg.hooks import gptimg  # noqa: F401
from airflow_provider_gptimg.mirroring import destination, lineage, manifest, mirror, store  # noqa: F401
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator


def work(task_ids: list[str], result: Path) -> None:
    operator = GptImgToS3Operator(task_id="mirror", gptimg_task_id=task_ids, s3_bucket="images")
    result.write_text(json.dumps(operator.execute({})))  # type: ignore[typeddict-item, arg-type]


def main() -> None:
    task_ids, result = json.loads(sys.argv[1]), Path(sys.argv[2])
    print("ready", flush=True)
    pid = 0
    for command in sys.stdin:
        if command.strip() == "reap":
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        pid = os.fork()
        if not pid:
            status = 1
            try:
                work(task_ids, result)
                status = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
