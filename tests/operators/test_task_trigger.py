# SPDX-License-Identifier: Apache-2.0
"""GptImgTaskTrigger against the API over sockets, rebuilt from what it serialized, as a triggerer does."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import time
from datetime import timedelta

import pytest
from attempts import fire, rebuilt

from airflow_provider_gptimg.hooks import shared_client
from airflow_provider_gptimg.hooks.connection import DEFAULT_MAX_CONNECTIONS
from airflow_provider_gptimg.polling import Schedule
from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger


def trigger_for(gptimg_task_id, *, wait: float = 20, **arguments) -> GptImgTaskTrigger:
    return GptImgTaskTrigger(gptimg_task_id, deadline=time.time() + wait, **arguments)


async def until(condition) -> None:
    """Wait for a condition, 10 seconds at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        await asyncio.sleep(0.005)


def clients() -> dict:
    """The shared clients of the running loop."""
    return shared_client._clients.get(asyncio.get_running_loop(), {})


class TestSerialization:
    FULL = {  # noqa: RUF012
        "gptimg_task_id": ["a", "b"],
        "gptimg_conn_id": "my_gptimg",
        "poll_interval": 6.0,
        "first_poll_after": 30.0,
        "deadline": 1_800_000_000.5,
        "timeout": 600.0,
        "submitted_at": 1_799_999_400.25,
        "first_poll_at": 1_799_999_439.0,
        "end_from_trigger": True,
    }

    def test_round_trip(self):
        trigger = GptImgTaskTrigger(**self.FULL)
        assert trigger.serialize()[1] == self.FULL
        assert rebuilt(rebuilt(trigger)).serialize() == trigger.serialize()

    def test_round_trip_through_airflows_database(self):
        from airflow.models.trigger import Trigger

        row = Trigger.from_object(GptImgTaskTrigger(**self.FULL))
        assert row.kwargs == self.FULL

    def test_arguments_of_release_0_1_still_make_one(self):
        """Frozen: what was deferred before an upgrade must go on after it."""
        frozen = json.loads(
            '{"gptimg_task_id": "gpt-image-2-x", "gptimg_conn_id": "gptimg_default", "poll_interval": null, '
            '"first_poll_after": null, "deadline": 1800000000.5, "timeout": null, "submitted_at": null, '
            '"first_poll_at": 1799999439.0, "end_from_trigger": false}'
        )
        assert GptImgTaskTrigger(**frozen).serialize()[1] == frozen

    @pytest.mark.parametrize(
        "frozen",
        [
            '{"gptimg_task_id": ["gpt-image-2-x", "gpt-image-2-y"], "gptimg_conn_id": "gptimg_default", '
            '"poll_interval": 7.0, "first_poll_after": 0.0, "deadline": 1800000000.5, "timeout": null, '
            '"submitted_at": null, "first_poll_at": [1799999439.0, 1799999440.5], "end_from_trigger": false, '
            '"wake_after": 1}',
            '{"gptimg_task_id": "gpt-image-2-x", "gptimg_conn_id": "gptimg_default", "poll_interval": null, '
            '"first_poll_after": null, "deadline": null, "timeout": 600.0, "submitted_at": null, '
            '"first_poll_at": null, "end_from_trigger": true}',
        ],
        ids=["of a batch", "started in the triggerer"],
    )
    def test_arguments_of_release_1_0_still_make_one(self, frozen):
        """Frozen as well."""
        assert GptImgTaskTrigger(**json.loads(frozen)).serialize()[1] == json.loads(frozen)

    def test_a_timedelta_becomes_seconds(self):
        trigger = GptImgTaskTrigger(
            "id", timeout=timedelta(minutes=1), poll_interval=timedelta(seconds=6), first_poll_after=timedelta(0)
        )
        arguments = rebuilt(trigger).serialize()[1]
        assert [arguments[name] for name in ("timeout", "poll_interval", "first_poll_after")] == [60, 6, 0]

    def test_holds_no_key(self, emulator, instance):
        assert emulator.api_key not in repr(GptImgTaskTrigger(**self.FULL).serialize())


class TestEvent:
    @pytest.mark.parametrize("final", [{}, {"error": "no"}], ids=["completed", "failed"])
    async def test_fires_once_when_the_task_is_final(self, emulator, final):
        task_id = emulator.add_task(polls=4, **final)
        assert await fire(trigger_for(task_id)) == {"status": "finished", "gptimg_task_id": task_id}
        assert emulator.task(task_id).polls == 4

    async def test_fires_once_when_all_of_a_list_are(self, emulator):
        tasks = [emulator.add_task(polls=polls, error=error) for polls, error in [(5, None), (1, "no"), (3, None)]]
        assert await fire(trigger_for(tasks)) == {"status": "finished"}
        assert [emulator.task(task_id).polls for task_id in tasks] == [5, 1, 3]

    async def test_stays_small_with_a_thousand_ids(self, emulator):
        tasks = [emulator.add_task(polls=1 + number % 2) for number in range(1000)]
        event = await fire(trigger_for(tasks, wait=60))
        assert event["status"] == "finished"
        assert len(json.dumps(event)) < 1024

    async def test_stays_small_whatever_the_api_says(self, emulator):
        emulator.fault("poll", 401, times=None, message="no " * 10_000, code="C" * 10_000, request_id="r" * 10_000)
        event = await fire(trigger_for(emulator.add_task()))
        assert event["status"] == "error"
        assert len(json.dumps(event)) < 4096

    async def test_a_task_that_is_not_there_ends_the_wait(self, emulator):
        """The resumed task asks again, and raises what it then hears."""
        assert (await fire(trigger_for("gpt-image-2-unknown")))["status"] == "finished"

    async def test_a_foreign_task_does_not_end_the_others_wait(self, emulator):
        emulator.add_key("other-key", user="other")
        foreign, own = emulator.add_task(user="other"), emulator.add_task(polls=4)
        assert await fire(trigger_for([foreign, own])) == {"status": "finished"}
        assert emulator.task(own).polls == 4

    async def test_a_rejected_key_is_an_error(self, emulator):
        emulator.revoke_key(emulator.api_key)
        event = await fire(trigger_for([emulator.add_task(status="processing") for _ in range(20)]))
        assert event["status"] == "error"
        assert event["error"]["type"] == "GptImgAuthError"
        assert event["error"]["http_status"] == 401
        assert emulator.api_key not in json.dumps(event)

    @pytest.mark.parametrize(
        ("connection", "error_type"),
        [({"password": ""}, "GptImgAuthError"), ({"poll_interval": "often"}, "GptImgRequestError")],
        ids=["no key", "wrong extra"],
    )
    async def test_a_connection_that_is_wrong_is_an_error(self, emulator, quick, connection, error_type):
        quick(**connection)
        event = await fire(trigger_for(emulator.add_task()))
        assert event["error"]["type"] == error_type

    async def test_a_connection_that_is_missing_is_an_error(self, emulator, monkeypatch):
        monkeypatch.delenv("AIRFLOW_CONN_GPTIMG_DEFAULT")
        event = await fire(trigger_for(emulator.add_task(), gptimg_conn_id="not_there"))
        assert event["status"] == "error"
        assert "not_there" in event["error"]["message"]

    async def test_an_exception_that_nobody_foresaw_is_an_error(self, emulator, monkeypatch):
        def fall_over(*args, **kwargs):
            raise ZeroDivisionError("unforeseen")

        monkeypatch.setattr("airflow_provider_gptimg.polling.Wait.record", fall_over)
        event = await fire(trigger_for(emulator.add_task()))
        assert event["status"] == "error"
        assert "ZeroDivisionError: unforeseen" in event["error"]["message"]


class TestWaiting:
    @pytest.mark.parametrize(
        "fault", [429, 500, 503, "html", "empty", "redirect", "lost_before", "lost_after", "cut_after", "hang_before"]
    )
    async def test_rides_out_an_outage(self, emulator, quick, fault):
        quick(timeout=0.3)
        emulator.fault("poll", fault, times=3)
        task_id = emulator.add_task(polls=2)
        assert (await fire(trigger_for(task_id)))["status"] == "finished"

    async def test_rides_out_an_api_that_is_not_there_at_all(self, emulator):
        task_id = emulator.add_task(polls=2)
        emulator.stop()
        waiting = asyncio.create_task(fire(trigger_for(task_id)))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(emulator.start)
        assert (await waiting)["status"] == "finished"

    async def test_a_rotated_key_is_picked_up(self, emulator, quick):
        task_id = emulator.add_task(status="processing")
        waiting = asyncio.create_task(fire(trigger_for(task_id)))
        await until(lambda: emulator.task(task_id).polls > 2)
        emulator.add_key("rotated-key", user="default")
        quick(password="rotated-key")
        # A connection is read anew once in a second at the most.
        await asyncio.sleep(1)
        emulator.revoke_key(emulator.api_key)
        polls = emulator.task(task_id).polls
        await until(lambda: emulator.task(task_id).polls > polls + 2 or waiting.done())
        emulator.finish(task_id)
        assert (await waiting)["status"] == "finished"

    async def test_gives_up_at_its_deadline(self, emulator):
        tasks = [emulator.add_task(status="processing"), emulator.add_task()]
        assert await fire(trigger_for(tasks, wait=0.2)) == {"status": "timeout"}

    async def test_a_poll_that_hangs_ends_with_the_time_since_submission(self, emulator, quick):
        """The first poll says when that was."""
        quick(timeout=600)
        task_id = emulator.add_task(polls=99, created_at=time.time() - 597)
        waiting = asyncio.create_task(fire(GptImgTaskTrigger(task_id, timeout=600)))
        await until(lambda: emulator.task(task_id).polls)
        emulator.fault("poll", "hang_before", times=None)
        event = await asyncio.wait_for(waiting, 60)
        assert event["status"] == "timeout"

    async def test_a_restart_keeps_the_deadline(self, emulator):
        task_id = emulator.add_task(status="processing")
        trigger = trigger_for(task_id, wait=0.3)
        first = asyncio.create_task(fire(trigger))
        await until(lambda: emulator.task(task_id).polls)
        first.cancel()
        again = rebuilt(trigger)
        assert again.deadline == trigger.deadline
        assert (await fire(again))["status"] == "timeout"
        assert time.time() >= trigger.deadline

    async def test_a_restart_after_the_deadline_asks_no_more(self, emulator):
        task_id = emulator.add_task(status="processing")
        assert (await fire(trigger_for(task_id, wait=-5)))["status"] == "timeout"
        assert emulator.calls == []

    async def test_waits_until_the_first_poll_is_due(self, emulator):
        task_id = emulator.add_task()
        due = time.time() + 0.3
        await fire(trigger_for(task_id, first_poll_at=due))
        assert emulator.task(task_id).poll_times[0] >= due

    @pytest.mark.parametrize("listed", [False, True])
    async def test_polls_in_step_with_other_triggers(self, emulator, listed):
        task_id = emulator.add_task()
        step = Schedule().in_step(time.time() + 0.2)
        due = step - 0.09
        await fire(trigger_for([task_id] if listed else task_id, first_poll_at=due, poll_interval=5))
        assert emulator.task(task_id).poll_times[0] >= step - 0.001

    async def test_polls_no_faster_than_told(self, emulator):
        task_id = emulator.add_task(polls=4)
        await fire(trigger_for(task_id, poll_interval=0.1))
        times = emulator.task(task_id).poll_times
        assert all(later - earlier >= 0.1 for earlier, later in itertools.pairwise(times))

    async def test_its_own_schedule_wins_over_the_connections(self, emulator, quick):
        quick(poll_interval=300, first_poll_after=300)
        assert (await fire(trigger_for(emulator.add_task(polls=3), poll_interval=0.02, first_poll_after=0)))[
            "status"
        ] == "finished"

    async def test_a_task_named_twice_is_asked_for_once(self, emulator):
        task_id = emulator.add_task(polls=3)
        await fire(trigger_for([task_id, task_id]))
        assert emulator.task(task_id).polls == 3

    async def test_two_starts_of_one_trigger_do_no_harm(self, emulator):
        """As when a triggerer is thought dead, and another takes over."""
        task_id = emulator.add_task(polls=6)
        trigger = trigger_for(task_id)
        assert await fire(trigger) == await fire(trigger)
        events = await asyncio.gather(*(fire(trigger_for(emulator.add_task(polls=4))) for _ in range(2)))
        assert [event["status"] for event in events] == ["finished"] * 2
        assert {call.method for call in emulator.calls} == {"GET"}
        assert emulator.ledger == []


class TestEventLoop:
    async def test_stays_free(self, emulator):
        """Polls that take their time take nobody else's: a blocking call would leave next to no beats."""
        emulator.latency, beats = 0.5, 0
        waiting = [asyncio.create_task(fire(trigger_for(emulator.add_task(polls=2)))) for _ in range(5)]
        while not all(task.done() for task in waiting):
            await asyncio.sleep(0.01)
            beats += 1
        assert beats > 15

    async def test_one_client_serves_all_and_is_closed_with_the_last(self, emulator):
        tasks = [emulator.add_task(status="processing") for _ in range(50)]
        waiting = [asyncio.create_task(fire(trigger_for(task_id))) for task_id in tasks]
        await until(lambda: all(emulator.task(task_id).polls for task_id in tasks))
        (client,) = clients().values()
        assert client.users == 50
        for task_id in tasks:
            emulator.finish(task_id)
        await asyncio.gather(*waiting)
        assert clients() == {}
        assert client._ways[-1].session.closed
        assert len({call.connection for call in emulator.calls}) <= DEFAULT_MAX_CONNECTIONS

    async def test_a_cancelled_trigger_leaves_nothing_behind(self, emulator, quick):
        quick(timeout=300)
        emulator.fault("poll", "hang_before", times=None)
        trigger = trigger_for([emulator.add_task() for _ in range(20)])
        waiting = asyncio.create_task(fire(trigger))
        await until(lambda: emulator.waiting("hang_before") == 8)
        (client,) = clients().values()
        before = asyncio.all_tasks()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 60)
        assert clients() == {}
        assert client._ways[-1].session.closed
        await until(lambda: emulator.waiting() == 0)
        assert asyncio.all_tasks() < before

    async def test_a_trigger_that_times_out_leaves_nothing_behind(self, emulator, quick):
        quick(timeout=300)
        emulator.fault("poll", "hang_before", times=None)
        trigger = trigger_for([emulator.add_task() for _ in range(20)], wait=0.3)
        event = await asyncio.wait_for(fire(trigger), 60)
        assert event["status"] == "timeout"
        assert clients() == {}
        await until(lambda: emulator.waiting() == 0)

    async def test_errors_that_come_at_once_leave_nothing_behind(self, emulator):
        complaints: list[dict] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, complaint: complaints.append(complaint))
        emulator.fault("poll", "hang_before", times=None)
        trigger = trigger_for([emulator.add_task() for _ in range(20)])
        waiting = asyncio.create_task(fire(trigger))
        await until(lambda: emulator.waiting("hang_before") == 8)
        emulator.clear_faults()
        emulator.revoke_key(emulator.api_key)
        emulator.release()
        while sum(call.status == 401 for call in emulator.calls) < 8:
            time.sleep(0.01)  # noqa: ASYNC251 - all eight answers are to be here when this loop looks again
        time.sleep(0.1)  # noqa: ASYNC251
        assert (await waiting)["error"]["type"] == "GptImgAuthError"
        assert clients() == {}
        gc.collect()
        assert complaints == []


async def test_on_kill_says_that_the_images_are_paid_for(log):
    await trigger_for("id").on_kill()
    assert "paid for" in log()


async def test_logs_say_how_it_goes(emulator, log):
    task_id = emulator.add_task(polls=40)
    emulator.fault("poll", 503, message="down for maintenance")
    await fire(trigger_for(task_id))
    lines = [line for line in log().splitlines() if task_id in line and "GET" not in line]
    assert ["down for maintenance" in lines[0], "processing" in lines[1], "completed" in lines[2]] == [True] * 3
    assert len(lines) == 3


async def test_ends_no_task_where_it_knows_none_as_in_dag_test(emulator):
    trigger = GptImgTaskTrigger(emulator.add_task(status="completed"), end_from_trigger=True)
    assert [event.payload["status"] async for event in trigger.run()] == ["finished"]
