# SPDX-License-Identifier: Apache-2.0
"""When an image task is asked for, what a waiting person reads, and what became of it: on a clock that is a number."""

from __future__ import annotations

import math
import random
from datetime import timedelta
from statistics import mean

import pytest
from hypothesis import example, given, strategies as st

from airflow_provider_gptimg.api.tasks import Image, ImageTask
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgError,
    GptImgInsufficientCreditsError,
    GptImgProtocolError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgTaskFailedError,
    GptImgTaskNotFoundError,
    GptImgTimeoutError,
)
from airflow_provider_gptimg.polling import (
    LOG_EVERY,
    UNSEEN_FOR,
    Progress,
    Schedule,
    Wait,
    check_timeout,
    may_have_ended,
)

START = 1_776_816_723.0


def low(least: float, most: float) -> float:
    return least


def high(least: float, most: float) -> float:
    return most


def task(status: str = "processing", age: float | None = None, task_id: str = "t") -> ImageTask:
    images = (Image("https://a.example/1.png"),) if status == "completed" else ()
    return ImageTask(task_id, status, images=images, age=age, error="no luck" if status == "failed" else None)


class TestSchedule:
    @pytest.mark.parametrize(
        ("age", "soonest", "latest"),
        [(0, 39.5, 41.475), (1, 38.5, 40.475), (30, 9.5, 11.475), (37, 5, 5), (39.4, 5, 5), (39.5, 5, 5), (1000, 5, 5)],
    )
    def test_first_poll_after_most_of_a_generation_then_one_each_interval(self, age, soonest, latest):
        schedule = Schedule()
        assert schedule.next_poll_in(age, low) == pytest.approx(soonest)
        assert schedule.next_poll_in(age, high) == pytest.approx(latest)

    def test_as_told(self):
        schedule = Schedule(poll_interval=7, first_poll_after=20)
        assert schedule.next_poll_in(0, low) == 20
        assert schedule.next_poll_in(20, low) == 7

    def test_an_interval_is_kept_after_the_question_at_once(self):
        assert Schedule(poll_interval=60, first_poll_after=10).next_poll_in(0, low) == 60

    def test_polls_at_once_if_told_so(self):
        assert Schedule(poll_interval=5, first_poll_after=0).next_poll_in(0, high) == 5

    @given(st.floats(0, 0.09), st.floats(0, 0.09))
    def test_polls_of_a_triggerer_that_are_due_within_a_tenth_of_a_second_begin_together(self, earlier, later):
        begin = Schedule().in_step(START + 0.015 + earlier, phase=0.01)
        assert begin == Schedule().in_step(START + 0.015 + later, phase=0.01) == pytest.approx(START + 0.11, abs=1e-3)

    @given(st.floats(START, 2 * START), st.floats(0.001, 86_400), st.floats(0, 0.1))
    def test_and_none_begins_early_or_much_later(self, due, interval, phase):
        late = Schedule(interval).in_step(due, phase) - due
        assert 0 <= late <= min(0.1, interval / 50) + 1e-6

    @pytest.mark.parametrize(("failures", "pause"), [(1, 5), (2, 10), (3, 20), (4, 40), (5, 60), (50, 60)])
    def test_failures_slow_the_polls_down_up_to_a_minute(self, failures, pause):
        assert Schedule().next_try_in(failures, None, low) == pause
        assert Schedule().next_try_in(failures, None, high) == pytest.approx(1.2 * pause)

    def test_a_long_interval_is_no_shorter_after_a_failure(self):
        assert Schedule(poll_interval=300).next_try_in(1, None, low) == 300

    @pytest.mark.parametrize("retry_after", [90, 3600])
    def test_comes_back_no_sooner_than_the_api_allows(self, retry_after):
        assert Schedule().next_try_in(1, retry_after, low) == retry_after

    @given(
        st.floats(0.001, 1000),
        st.floats(0, 1000),
        st.floats(0, 5000),
        st.integers(1, 1000),
        st.none() | st.floats(0, 1e5),
    )
    def test_two_polls_are_never_closer_than_the_interval(self, interval, first, age, failures, retry_after):
        schedule = Schedule(interval, first)
        assert schedule.next_poll_in(age) >= interval
        assert schedule.next_try_in(failures, retry_after) >= max(interval, retry_after or 0)


def uniform_durations(chance: random.Random) -> float:
    return chance.uniform(45, 60)


def log_normal_durations(chance: random.Random) -> float:
    # Median 52 s, 5 % beyond 90 s.
    return chance.lognormvariate(math.log(52), math.log(90 / 52) / 1.6448536)


@pytest.mark.parametrize(
    ("duration", "most_polls", "most_delay"),
    [(uniform_durations, 4.0, 2.6), (log_normal_durations, 4.8, 3.6)],
    ids=["uniform", "log-normal"],
)
def test_few_polls_see_the_end_soon(duration, most_polls, most_delay):
    """As measured: the poll at submission is not counted."""
    chance = random.Random(7)
    schedule = Schedule()
    polls, delays = [], []
    for _ in range(40_000):
        ends, now, count = duration(chance), 0.0, 0
        while count == 0 or now < ends:
            now += schedule.next_poll_in(now, chance.uniform)
            count += 1
        polls.append(count)
        delays.append(now - ends)
    assert mean(polls) <= most_polls
    assert mean(delays) <= most_delay


class TestWait:
    def wait(self, **arguments) -> Wait:
        wait = Wait(Schedule(), uniform=low, **arguments)
        wait.add(["t"], START)
        return wait

    def asked(self, wait: Wait, now: float) -> str:
        task_id = wait.pop_due(now)
        assert task_id is not None
        return task_id

    def test_asks_when_a_task_is_due_and_not_before(self):
        wait = self.wait()
        assert wait.pop_due(START - 0.1) is None
        assert wait.next_at == START
        assert wait.pop_due(START) == "t"
        assert wait.pop_due(START) is None
        assert wait.next_at is None

    def test_asks_in_the_order_in_which_tasks_are_due(self):
        wait = Wait(Schedule(), uniform=low)
        wait.add(["b"], START + 2)
        wait.add(["a"], START + 3)
        wait.add(["c"], START + 1)
        assert [wait.pop_due(START + 9) for _ in range(4)] == ["c", "b", "a", None]

    def test_first_polls_can_be_spread(self):
        wait = Wait(Schedule(), uniform=random.Random(1).uniform)
        wait.add([str(number) for number in range(100)], START, spread=5.0)
        times = [at for at, _ in wait._queue]
        assert START <= min(times) < START + 1
        assert START + 4 < max(times) <= START + 5

    @pytest.mark.parametrize(
        ("submitted_at", "age", "next_at"),
        [
            pytest.param(START, None, START + 39.5, id="told-when"),
            pytest.param(START - 10, None, START + 29.5, id="told-when-earlier"),
            pytest.param(START, 30.0, START + 39.5, id="what-the-task-is-told-counts"),
            pytest.param(None, 10.0, START + 29.5, id="as-the-api-says"),
            pytest.param(None, 38.0, START + 5, id="as-the-api-says-soon"),
            pytest.param(None, 100.0, START + 5, id="as-the-api-says-old"),
            pytest.param(None, None, START + 39.5, id="unknown-counts-from-now"),
        ],
    )
    def test_plans_the_next_poll_by_the_age_of_the_task(self, submitted_at, age, next_at):
        wait = self.wait(submitted_at=submitted_at)
        wait.record(self.asked(wait, START), task(age=age), START)
        assert wait.next_at == pytest.approx(next_at)

    def test_a_task_that_never_tells_its_age_is_counted_from_when_it_was_first_seen(self):
        wait = self.wait()
        wait.record(self.asked(wait, START), task(), START)
        wait.record(self.asked(wait, START + 39.5), task(), START + 39.5)
        assert wait.next_at == START + 44.5
        assert wait.submission_of("t") == START

    @pytest.mark.parametrize("status", ["completed", "failed"])
    def test_what_is_final_is_asked_for_no_more(self, status):
        wait = self.wait()
        wait.record(self.asked(wait, START), task(status), START)
        assert wait.next_at is None
        assert wait.outcomes["t"].status == status

    @pytest.mark.parametrize(
        "error",
        [GptImgRequestError("bad"), GptImgInsufficientCreditsError("no credits")],
        ids=lambda error: type(error).__name__,
    )
    def test_so_is_what_no_waiting_mends(self, error):
        wait = self.wait()
        wait.record(self.asked(wait, START), error, START)
        assert wait.next_at is None
        assert wait.outcome("t") is error

    @pytest.mark.parametrize(
        "error",
        [GptImgServerError("down"), GptImgProtocolError("html"), GptImgRateLimitError("slow down")],
        ids=lambda error: type(error).__name__,
    )
    def test_rides_out_an_outage_of_any_length(self, error):
        wait, now, pauses = self.wait(submitted_at=START), START, []
        for _ in range(20):
            wait.record(self.asked(wait, now), error, now)
            pauses.append(wait.next_at - now)
            now = wait.next_at
        assert pauses[:5] == [5, 10, 20, 40, 60]
        assert set(pauses[5:]) == {60}
        wait.record(self.asked(wait, now), task(), now)
        assert wait.next_at - now == 5
        wait.record(self.asked(wait, now + 5), error, now + 5)
        assert wait.next_at - now == 10, "the outage before is over and counts no more"

    def test_honours_retry_after(self):
        wait = self.wait()
        wait.record(self.asked(wait, START), GptImgRateLimitError("slow down", retry_after=77), START)
        assert wait.next_at == START + 77

    @pytest.mark.parametrize(
        ("submitted_at", "age", "final_after"),
        [
            pytest.param(START - 20, None, 40, id="told-when"),
            pytest.param(START - 100, None, 0, id="told-when-long-ago"),
            pytest.param(None, 20.0, 40, id="as-the-api-said"),
            pytest.param(None, None, 15, id="unknown"),
        ],
    )
    def test_a_task_that_is_not_found_may_be_new(self, submitted_at, age, final_after):
        """A minute after its submission; if nobody knows that, for 15 s after the first 404 of the wait."""
        wait, now = self.wait(submitted_at=submitted_at), START
        if age is not None:
            wait.record(self.asked(wait, now), task(age=age), now)
            now, final_after = wait.next_at, final_after - (wait.next_at - START)
        first, lost = now, GptImgTaskNotFoundError("unknown")
        while True:
            wait.record(self.asked(wait, now), lost, now)
            if wait.next_at is None:
                break
            assert now - first < final_after
            assert wait.next_at - now == 5, "a lagging replica is not an outage: no longer pauses"
            now = wait.next_at
        assert now - first >= final_after
        assert wait.outcome("t") is lost

    def test_a_long_interval_does_not_hold_up_that_a_task_is_lost(self):
        wait = Wait(Schedule(poll_interval=3600))
        wait.add(["t"], START)
        wait.record(self.asked(wait, START), GptImgTaskNotFoundError("unknown"), START)
        assert wait.next_at == START + 15
        wait.record(self.asked(wait, START + 15), GptImgTaskNotFoundError("unknown"), START + 15)
        assert wait.outcome("t").message == "unknown"

    def test_a_task_that_is_found_after_all_is_waited_for(self):
        wait = self.wait()
        wait.record(self.asked(wait, START), GptImgTaskNotFoundError("unknown"), START)
        assert wait.is_unsure
        wait.record(self.asked(wait, START + 5), task(), START + 5)
        assert not wait.is_unsure
        assert wait.waiting == ["t"]

    def test_each_task_may_have_a_submission_of_its_own(self):
        wait = self.wait()
        wait.add(["u"], START)
        wait.submissions |= {"t": START - 100, "u": START - 10}
        lost = GptImgTaskNotFoundError("unknown")
        for _ in "tu":
            wait.record(self.asked(wait, START), lost, START)
        assert wait.waiting == ["u"]
        assert not wait.is_unsure

    def test_a_rejected_key_ends_the_wait_and_loses_no_task(self):
        wait = self.wait()
        with pytest.raises(GptImgAuthError):
            wait.record(self.asked(wait, START), GptImgAuthError("rejected"), START)
        assert wait.waiting == ["t"]

    @pytest.mark.parametrize(("now", "expired"), [(START - 0.1, False), (START, True), (START + 1, True)])
    def test_time_is_up_at_the_deadline(self, now, expired):
        assert self.wait(deadline=START).expired(now) is expired

    def test_without_a_deadline_time_is_never_up(self):
        assert not self.wait().expired(START + 1e9)

    def test_takes_all_when_time_is_up(self):
        wait = self.wait()
        wait.add(["u"], START + 99)
        assert sorted(wait.pop_all()) == ["t", "u"]
        assert wait.next_at is None

    @pytest.mark.parametrize(
        ("submitted_at", "ages", "deadline"),
        [
            pytest.param(START - 10, {}, START + 590, id="told-when"),
            pytest.param(None, {"t": 10.0}, START + 590, id="as-the-api-says"),
            pytest.param(None, {"t": 100.0, "u": 10.0}, START + 590, id="of-the-youngest"),
            pytest.param(None, {"t": 700.0, "u": 601.0}, START + 600, id="used-up-by-an-earlier-attempt"),
            pytest.param(START - 600, {}, START + 600, id="used-up-to-the-second"),
            pytest.param(None, {"t": None}, START + 600, id="unknown"),
        ],
    )
    def test_counts_the_deadline_from_submission(self, submitted_at, ages, deadline):
        wait = Wait(Schedule(), submitted_at=submitted_at, uniform=low)
        wait.add(ages or ["t"], START)
        for task_id, age in ages.items():
            wait.pop_due(START)
            wait.record(task_id, task(age=age, task_id=task_id), START)
        wait.count_from_submission(600, since=START)
        assert wait.deadline == pytest.approx(deadline)

    def test_the_outcome_of_a_completed_task_is_the_task(self):
        wait = self.wait()
        wait.record(self.asked(wait, START), task("completed"), START)
        assert wait.outcome("t") == task("completed")

    def test_the_outcome_of_a_failed_task_says_that_it_was_refunded(self):
        wait = self.wait()
        failed = ImageTask("t", "failed", error="no luck", error_code="UNLUCKY")
        wait.record(self.asked(wait, START), failed, START)
        error = wait.outcome("t")
        assert type(error) is GptImgTaskFailedError
        assert error.code == "UNLUCKY"
        assert "no luck" in str(error)
        assert "refunded" in str(error)

    def test_the_outcome_of_an_unfinished_task_is_a_timeout_that_says_what_failed_last(self):
        wait = self.wait(deadline=START)
        wait.record(self.asked(wait, START), GptImgServerError("down", http_status=503), START)
        error = wait.outcome("t")
        assert type(error) is GptImgTimeoutError
        assert "down (HTTP 503)" in str(error)

    def test_a_timeout_says_the_last_status_and_the_last_answer_that_was_none(self):
        wait = self.wait(deadline=START)
        wait.record(self.asked(wait, START), GptImgProtocolError("A firewall.", http_status=403), START)
        wait.record(self.asked(wait, START + 9), task("queued"), START + 9)
        error = wait.outcome("t")
        assert error.last_status == "queued"
        assert "'queued'" in str(error)
        assert "A firewall. (HTTP 403)" in str(error)
        assert "waits for the same one" in str(error)

    def test_a_timeout_of_one_task_says_nothing_of_another(self):
        wait = self.wait(deadline=START)
        wait.add(["u"], START)
        wait.record("t", GptImgServerError("down"), START)
        assert "down" not in str(wait.outcome("u"))

    @pytest.mark.parametrize("status", ["canceled", "expired", "COMPLETED", "succeeded", "content-filtered"])
    def test_a_timeout_tells_the_way_out_of_a_task_that_may_have_ended(self, status):
        wait = self.wait(deadline=START)
        wait.record(self.asked(wait, START), task(status), START)
        error = wait.outcome("t")
        assert type(error) is GptImgTimeoutError
        assert repr(status) in str(error)
        assert "delete what is recorded of it" in str(error)
        assert "waits for the same one" not in str(error)

    @pytest.mark.parametrize("status", [None, "processing", "Queued", "in-progress"])
    def test_a_task_that_is_under_way_has_not_ended(self, status):
        assert not may_have_ended(status)

    @example(
        interval=16.0,
        first=0.0,
        submitted_ago=None,
        latency=0.0,
        lateness=0.0,
        outcomes=[GptImgTaskNotFoundError("x"), GptImgServerError("x")],
    )
    @given(
        interval=st.floats(0.01, 100),
        first=st.floats(0, 200),
        submitted_ago=st.none() | st.floats(0, 500),
        latency=st.floats(0, 10),
        lateness=st.floats(0, 10),
        outcomes=st.lists(
            st.builds(task, st.sampled_from(["processing", "queued"]), st.none() | st.floats(0, 500))
            | st.sampled_from([GptImgServerError("x"), GptImgProtocolError("x"), GptImgTaskNotFoundError("x")])
            | st.builds(lambda after: GptImgRateLimitError("x", retry_after=after), st.none() | st.floats(0, 500))
            | st.sampled_from([task("completed"), task("failed")]),
            max_size=12,
        ),
    )
    def test_no_task_is_asked_for_twice_within_the_interval(
        self, interval, first, submitted_ago, latency, lateness, outcomes
    ):
        submitted_at = None if submitted_ago is None else START - submitted_ago
        wait = Wait(Schedule(interval, first), submitted_at=submitted_at)
        wait.add(["t"], START)
        answered_at = -math.inf
        least = interval
        for outcome in outcomes:
            if wait.next_at is None:
                break
            asked_at = wait.next_at + lateness
            assert asked_at >= answered_at + least - 1e-6  # what a float of Unix seconds can tell
            answered_at = asked_at + latency
            is_unknown = isinstance(outcome, GptImgTaskNotFoundError)
            least = min(interval, UNSEEN_FOR) if is_unknown else interval
            wait.record(self.asked(wait, asked_at), outcome, answered_at)
            assert (wait.next_at is None) == ("t" in wait.outcomes)
        assert isinstance(wait.outcome("t"), ImageTask | GptImgError)


@pytest.mark.parametrize(
    ("timeout", "seconds"), [(0, 0), (1.5, 1.5), (600, 600), (timedelta(minutes=2), 120), (timedelta(), 0)], ids=repr
)
def test_a_timeout_is_a_number_of_seconds_or_a_timedelta(timeout, seconds):
    assert check_timeout(timeout) == seconds


@pytest.mark.parametrize("timeout", [None, "5", True, -1, float("inf"), float("nan"), timedelta(seconds=-1)], ids=repr)
def test_nothing_else_is_a_timeout(timeout):
    with pytest.raises(GptImgRequestError, match="timeout="):
        check_timeout(timeout)


class TestProgress:
    def told(self, *facts: tuple[ImageTask | GptImgError, float], submitted_at: float | None = START) -> list[str]:
        lines: list[str] = []
        progress = Progress(lines.append)
        for outcome, after in facts:
            progress.log_poll("t", outcome, START + after, submitted_at)
        return lines

    def test_tells_each_change_of_status(self):
        facts = [(task(status), 1.0 * number) for number, status in enumerate(["queued", "processing", "completed"])]
        assert len(self.told(*facts)) == 3

    def test_else_one_line_in_half_a_minute(self):
        lines = self.told(*((task(), float(second)) for second in range(0, 121, 5)))
        assert len(lines) == 1 + 120 // LOG_EVERY

    def test_tells_how_long_it_takes_and_how_long_is_usual(self):
        assert self.told((task(), 25.4)) == ["Image task t: processing, 25 s of a typical 45–60 s"]

    def test_tells_no_age_that_is_not_known(self):
        assert self.told((task(), 25.4), submitted_at=None) == ["Image task t: processing"]

    def test_clocks_that_differ_show_no_negative_age(self):
        assert "0 s of" in self.told((task(), -5.0))[0]

    def test_tells_of_an_outage_once_and_of_its_end(self):
        down = GptImgServerError("down", http_status=503)
        lines = self.told((task(), 0), (down, 5), (down, 10), (down, 15), (task(), 20))
        assert len(lines) == 3
        assert "down (HTTP 503)" in lines[1]

    def test_a_thousand_tasks_share_the_signs_of_life(self):
        lines: list[str] = []
        progress = Progress(lines.append)
        for second in range(0, 120, 5):
            for number in range(1000):
                progress.log_poll(str(number), task(), START + second, START)
        assert len(lines) == 1000 + 3
