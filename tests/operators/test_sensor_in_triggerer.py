# SPDX-License-Identifier: Apache-2.0
"""A sensor that starts in the triggerer, and ends there: what it hands over, and where it falls back."""

from __future__ import annotations

import asyncio

import pytest
from airflow.serialization.serialized_objects import BaseSerialization, DagSerialization
from airflow.triggers.base import TaskSuccessEvent, TriggerEvent
from airflow_names import DAG, task
from attempts import fire

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger


def sensor(gptimg_task_id, **arguments) -> GptImgTaskSensor:
    own = {"task_id": "wait", "deferrable": True, "start_from_trigger": True}
    return GptImgTaskSensor(**own | arguments, gptimg_task_id=gptimg_task_id)


class TriggererTi:
    """What a template finds as `ti` in the triggerer, where a pull without `map_indexes` never returns."""

    def __init__(self, **xcoms) -> None:
        self.xcoms = xcoms

    def xcom_pull(self, *, task_ids, map_indexes, key="return_value"):
        assert key == "return_value"
        assert map_indexes == -1
        return self.xcoms[task_ids]


def started(operator, **xcoms) -> GptImgTaskTrigger:
    """Return the trigger as the triggerer makes it of what the scheduler knows of the operator."""
    scheduled = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(operator.dag)).get_task("wait")
    assert scheduled.start_from_trigger
    arguments = scheduled.start_trigger_args
    assert arguments.trigger_cls == f"{GptImgTaskTrigger.__module__}.{GptImgTaskTrigger.__name__}"
    assert arguments.next_method == "execute_complete"
    assert arguments.timeout is None
    trigger = GptImgTaskTrigger(**BaseSerialization.deserialize(arguments.trigger_kwargs))
    # As BaseTrigger does: the operator's fields that are the trigger's too.
    trigger.template_fields = [name for name in scheduled.template_fields if hasattr(trigger, name)]
    trigger.render_template_fields({"ti": TriggererTi(**xcoms), "run_id": "run-1", "params": {"conn": "gptimg"}})
    return trigger


@pytest.fixture(autouse=True)
def dag():
    with DAG("in_triggerer") as dag:
        yield dag


class TestStart:
    def test_an_id_is_handed_over(self):
        trigger = started(sensor("gpt-image-2-x", timeout=77, poll_interval=6, first_poll_after=20))
        assert trigger.gptimg_task_id == "gpt-image-2-x"
        assert (trigger.timeout, trigger.poll_interval, trigger.first_poll_after) == (77, 6, 20)
        assert trigger.deadline is None
        assert trigger.end_from_trigger is False

    def test_submit_output_simply_works(self, dag):
        submit = GptImgSubmitOperator(task_id="submit", prompt="a cat")
        operator = sensor(submit.output)
        assert operator.upstream_task_ids == {"submit"}
        assert started(operator, submit="gpt-image-2-x").gptimg_task_id == "gpt-image-2-x"

    def test_generate_output_works_too(self):
        generate = GptImgGenerateOperator(task_id="generate", prompt="a cat")
        finished = {"task_id": "gpt-image-2-x", "status": "completed"}
        assert started(sensor(generate.output), generate=finished).gptimg_task_id == "gpt-image-2-x"

    def test_a_list_of_all_kinds(self):
        submit = GptImgSubmitOperator(task_id="submit", prompt="a cat")
        template = "{{ ti.xcom_pull(task_ids='submit', map_indexes=-1) }}"
        trigger = started(sensor(["gpt-image-2-x", submit.output, template]), submit="gpt-image-2-y")
        assert trigger.gptimg_task_id == ["gpt-image-2-x", "gpt-image-2-y", "gpt-image-2-y"]

    @pytest.mark.parametrize(
        "template",
        [
            "{{ ti.xcom_pull(task_ids='submit', map_indexes=-1) | default('none') | trim }}",
            "{{ ti.xcom_pull(task_ids='submit', map_indexes=-1) if run_id is string else ti.task_id }}",
            "{% set id = ti.xcom_pull(task_ids='submit', map_indexes=-1) %}{{ id }}",
            "{{ (ti.xcom_pull(task_ids='submit', map_indexes=-1)) ~ params.get('suffix', '') }}",
        ],
    )
    def test_templates_of_what_the_triggerer_knows(self, template):
        assert started(sensor(template), submit="gpt-image-2-y").gptimg_task_id == "gpt-image-2-y"

    def test_templates_that_pull_nothing(self):
        trigger = started(sensor("id-of-{{ run_id }}", gptimg_conn_id="{{ params.conn }}_default"))
        assert trigger.gptimg_task_id == "id-of-run-1"
        assert trigger.gptimg_conn_id == "gptimg_default"


class TestFallBack:
    """Where Airflow cannot start it there, it defers as usual, with a line in its log."""

    @pytest.mark.parametrize(
        "gptimg_task_id",
        [
            "{{ ti.xcom_pull(task_ids='submit') }}",
            "{{ task_instance.xcom_pull('submit') }}",
            ["gpt-image-2-x", "{{ ti.xcom_pull(task_ids='submit') }}"],
            "{{ ti.xcom_pull(task_ids='a', map_indexes=-1) or ti.xcom_pull(task_ids='b') }}",
            "{{ ti.xcom_pull(task_ids='a', map_indexes=-1) }}{% set t = ti %}{{ t.xcom_pull(task_ids='b') }}",
            "{{ ti['xcom_pull'](task_ids='a') }}",
            "{{ ti.xcom_pull(**{'task_ids': 'a'}) }}",
            "{{ ti.get_previous_dagrun() }}",
            "{{ macros.ds_add(ds, 1) }}",
            "{{ my_own_macro(run_id) }}",
            "{{ run_id | my_own_filter }}",
            "{{ logical_date | ds_nodash }}",
            "{{ triggering_asset_events.values() | first }}",
            "{{ var.value.which }}",
            "{{ conn.s3.extra_dejson.which }}",
            "{{ not a template",
            {"task_id": "gpt-image-2-x"},
            [],
            None,
        ],
        ids=repr,
    )
    def test_for_what_the_triggerer_cannot_render(self, gptimg_task_id):
        operator = sensor(gptimg_task_id)
        assert operator.start_from_trigger is False
        assert operator.start_trigger_args is None

    def test_for_a_connection_that_the_triggerer_cannot_render(self):
        pull = "{{ ti.xcom_pull(task_ids='which') }}"
        assert sensor("gpt-image-2-x", gptimg_conn_id=pull).start_from_trigger is False

    def test_for_a_mapped_submit(self):
        submit = GptImgSubmitOperator.partial(task_id="submit").expand(prompt=["a", "b"])
        assert sensor(submit.output).start_from_trigger is False

    def test_for_a_submit_in_a_mapped_group(self):
        from airflow_names import task_group

        @task_group
        def group(prompt):
            return GptImgSubmitOperator(task_id="submit", prompt=prompt).output

        assert sensor(group.expand(prompt=["a", "b"])).start_from_trigger is False

    def test_for_a_transformed_xcom(self):
        submit = GptImgSubmitOperator(task_id="submit", prompt="a cat")
        assert sensor(submit.output.map(lambda value: value)).start_from_trigger is False

    def test_for_a_sensor_that_holds_a_worker(self):
        assert sensor("id", deferrable=False).start_from_trigger is False

    def test_for_a_mapped_sensor(self, dag):
        mapped = GptImgTaskSensor.partial(
            task_id="wait", deferrable=True, start_from_trigger=True, end_from_trigger=True
        ).expand(gptimg_task_id=["a", "b"])
        assert mapped is dag.get_task("wait")
        scheduled = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag)).get_task("wait")
        assert not scheduled.expand_start_from_trigger(context={})

    @pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
    def test_for_an_xcom_that_proves_to_be_a_list(self, emulator, instance, dag, native):
        """Jinja can only make text of it there, so the trigger wakes a worker, which has the list."""
        dag.render_template_as_native_obj = native
        ids = [emulator.add_task(polls=2), emulator.add_task()]

        @task
        def choose():
            return ids

        operator = sensor(choose())
        trigger = started(operator, choose=ids)
        event = asyncio.run(fire(trigger))
        assert event["status"] not in ("finished", "timeout", "error")
        operator.gptimg_task_id = ids
        operator.execute = lambda context: operator.execute_complete(context, event)
        assert [one["task_id"] for one in instance.attempt(operator)] == ids

    def test_defers_and_says_so(self, emulator, instance, log):
        instance.attempt(sensor({"task_id": emulator.add_task(polls=2)}))
        assert len(instance.deferrals) == 1
        assert "did not start in the triggerer" in log()

    def test_is_off_by_default(self, emulator, instance, log):
        operator = sensor(emulator.add_task(polls=2), start_from_trigger=False)
        assert operator.start_from_trigger is False
        instance.attempt(operator)
        assert instance.deferrals[0].trigger.end_from_trigger is False
        assert "did not start in the triggerer" not in log()


class TestEnd:
    """The trigger itself ends the Airflow task once all is well; else the worker raises what is wrong."""

    @pytest.fixture
    def xcoms(self, monkeypatch) -> list:
        """What a trigger writes; a real triggerer brings it to Airflow's database."""
        from airflow_provider_gptimg.airflow_compat import XCom

        written: list[dict] = []
        monkeypatch.setattr(XCom, "set", lambda **arguments: written.append(arguments))
        return written

    async def events(self, trigger) -> list[TriggerEvent]:
        from types import SimpleNamespace

        trigger._task_instance = SimpleNamespace(dag_id="d", task_id="wait", run_id="r", map_index=-1)
        return [event async for event in trigger.run()]

    async def test_with_the_finished_task_as_xcom(self, emulator, xcoms):
        task_id = emulator.add_task(n=2, polls=3)
        (event,) = await self.events(GptImgTaskTrigger(task_id, end_from_trigger=True))
        assert isinstance(event, TaskSuccessEvent)
        assert not event.xcoms
        (xcom,) = [xcom for xcom in xcoms if xcom["key"] == "return_value"]
        value = xcom.pop("value")
        assert (value["task_id"], value["credits"]) == (task_id, 4)
        assert xcom == {"key": "return_value", "dag_id": "d", "task_id": "wait", "run_id": "r", "map_index": -1}

    async def test_with_a_list_for_a_list(self, emulator, xcoms):
        tasks = [emulator.add_task(polls=3), emulator.add_task(), emulator.add_task(polls=2)]
        (event,) = await self.events(GptImgTaskTrigger([tasks[0], *tasks], end_from_trigger=True))
        assert isinstance(event, TaskSuccessEvent)
        (value,) = [xcom["value"] for xcom in xcoms if xcom["key"] == "return_value"]
        assert [task["task_id"] for task in value] == [tasks[0], *tasks]

    @pytest.mark.parametrize("other", [{"error": "no"}, {"user": "other"}], ids=["failed", "unknown"])
    async def test_not_when_one_failed(self, emulator, xcoms, other):
        emulator.add_key("other-key", user="other")
        tasks = [emulator.add_task(), emulator.add_task(**other)]
        (event,) = await self.events(GptImgTaskTrigger(tasks, end_from_trigger=True))
        assert event.payload == {"status": "finished"}
        assert xcoms == []

    def test_a_deferred_sensor_hands_all_ids_over(self, emulator, instance):
        done, waiting = emulator.add_task(), emulator.add_task(status="processing")
        operator = sensor([done, waiting], start_from_trigger=False, end_from_trigger=True)
        trigger = instance.defer(operator).trigger
        assert trigger.gptimg_task_id == [done, waiting]
        assert trigger.end_from_trigger

    def test_a_deferred_sensor_of_one_id_is_of_one_id(self, emulator, instance):
        operator = sensor(emulator.add_task(status="processing"), start_from_trigger=False, end_from_trigger=True)
        assert isinstance(instance.defer(operator).trigger.gptimg_task_id, str)


class TestDeadline:
    """Started in the triggerer there is no worker to say when time is up."""

    async def test_is_timeout_after_submission(self, emulator):
        task_id = emulator.add_task(status="processing")
        assert await fire(GptImgTaskTrigger([task_id], timeout=0.3)) == {"status": "timeout"}

    async def test_is_there_though_polls_overlap_without_end(self, emulator):
        for number in range(2000):
            emulator.fault("poll", "hang_before", seconds=0.004 * (1 + number % 7))
        task_ids = [emulator.add_task(status="processing") for _ in range(60)]
        trigger = GptImgTaskTrigger(task_ids, poll_interval=0.001, timeout=0.5)
        assert await asyncio.wait_for(fire(trigger), 60) == {"status": "timeout"}
        assert len(emulator.calls) < 2000

    async def test_is_there_though_the_first_poll_hangs(self, emulator, quick):
        quick(timeout=60)
        emulator.fault("poll", "hang_before", times=None)
        trigger = GptImgTaskTrigger([emulator.add_task(), emulator.add_task()], timeout=0.2)
        assert await asyncio.wait_for(fire(trigger), 60) == {"status": "timeout"}

    async def test_is_there_though_the_api_is_down(self, emulator):
        emulator.fault("poll", 503, times=None)
        assert await fire(GptImgTaskTrigger([emulator.add_task()], timeout=0.2)) == {"status": "timeout"}
