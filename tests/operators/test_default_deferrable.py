# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys

SCRIPT = """
import json
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator
made = [
    GptImgGenerateOperator(task_id="generate", prompt="a cat"),
    GptImgTaskSensor(task_id="wait", gptimg_task_id="id"),
    GptImgToS3Operator(task_id="mirror", gptimg_task_id="id"),
]
print(json.dumps([operator.deferrable for operator in made]))
"""


def test_deferrable_is_as_airflow_says_unless_the_author_does():
    environment = {**os.environ, "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True"}
    output = subprocess.check_output([sys.executable, "-c", SCRIPT], env=environment, text=True)
    assert json.loads(output.splitlines()[-1]) == [True] * 3
