# SPDX-License-Identifier: Apache-2.0
"""Which calls of Airflow's API the tasks of one image make, and what each is for."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from test_dag_runs import run_dag  # noqa: F401

from airflow_provider_gptimg.airflow_compat import AIRFLOW

pytestmark = pytest.mark.skipif(AIRFLOW < (3, 3), reason="counted as Airflow 3.3 makes them")

CHAIN = """
generate = GptImgGenerateOperator.partial(task_id="generate", deferrable={deferrable}).expand(prompt=["a cat"])
GptImgToS3Operator.partial(task_id="mirror", s3_bucket="images").expand(gptimg_task_id=generate.output)
"""


# By call and key, "*" for any: at most how many an image takes, and what for. Airflow makes those marked so itself, for
# any task; each task process also starts and sends heartbeats.
PURPOSES = {
    "SetRenderedFields": (3, "Airflow: rendered fields, at the start of each leg"),
    "DeferTask": (1, "Airflow: the generate task goes to the triggerer"),
    "SucceedTask": (2, "Airflow: the end of each task"),
    "GetXComCount return_value": (1, "Airflow: the transfer is mapped over the generate task's output"),
    "GetXComSequenceItem return_value": (1, "Airflow: the one of its results that this transfer takes"),
    "SetXCom return_value": (2, "Airflow: the result of each task"),
    # Four, and five more here: dag.test() drops what a task deferred with, so that it has to look for its submission.
    "GetTaskStateStore *": (9, "journal: what earlier attempts did, and whether a later one has begun"),
    "SetTaskStateStore *": (3, "journal: before the POST, after it, and once the success is recorded"),
    "GetTaskStates": (1, "journal: whether Airflow has recorded the success"),
    "SetXCom credits": (1, "what the submit was charged, for the gallery and for cost reports"),
    "SetXCom prompt": (1, "what was asked for, for the gallery"),
    "SetXCom _link_FirstImageLink": (1, "the link to the first image"),
    # Its link to the objects would be one more, at a store that people can reach: this one is private.
}


@pytest.fixture
def calls(monkeypatch):
    """The calls of Airflow's API that task processes make."""
    from airflow.sdk.execution_time import supervisor

    seen: list[str] = []
    send = supervisor.InProcessSupervisorComms.send

    def count(self, msg):
        name = type(msg).__name__
        if name != "MaskSecret":  # the supervisor's own
            seen.append(f"{name} {getattr(msg, 'key', '')}".strip())
        return send(self, msg)

    monkeypatch.setattr(supervisor.InProcessSupervisorComms, "send", count)
    return seen


def test_what_each_call_is_for(run_dag, emulator, s3, calls, deferrable):  # noqa: F811
    if deferrable:
        emulator.fault("poll", 503)  # so that there is something to wait for
    assert run_dag(CHAIN.format(deferrable=deferrable)).succeeded
    made = Counter(re.sub(r"(TaskStateStore) .*", r"\1 *", call) for call in calls)
    assert ("DeferTask" in made) is deferrable
    assert {call: number for call, number in made.items() if number > PURPOSES.get(call, (0,))[0]} == {}


def test_a_link_that_leads_nowhere_takes_no_call(run_dag, emulator, clock, calls):  # noqa: F811
    clock.stop()
    run = run_dag(
        """
submit = GptImgSubmitOperator(task_id="submit", prompt="a cat")
wait = GptImgTaskSensor(task_id="wait", gptimg_task_id=submit.output, deferrable=True, timeout=0.3)
other = GptImgTaskSensor(task_id="other", gptimg_task_id=submit.output, mode="reschedule", soft_fail=True, timeout=0.3)
"""
    )
    assert run.states["submit", -1] == "success"
    assert [call for call in calls if "_link_" in call] == []
