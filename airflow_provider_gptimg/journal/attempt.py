# SPDX-License-Identifier: Apache-2.0
"""One attempt among those that may be alive at once: it announces itself, reads, and looks before it sends.

Airflow can start an attempt while an earlier one is frozen and thaws later. Each attempt but the first announces itself
*before* it reads the journal, and each looks for a later announcement *after* its intent is written. So of two
attempts one sees the other.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.airflow_compat import is_run_by_airflow, once_ended_well, recorded_state
from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.journal.entries import Submitted, read_first_release, unknown_of
from airflow_provider_gptimg.journal.stores import Store, open_store

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context

__all__ = ["FIRST_RELEASE_KEY", "Attempt", "NotSentError"]

FIRST_RELEASE_KEY = "gptimg_submission"
"""Key of release 0.1's record in the task state store."""

_FRESH = 1.0
"""Seconds that a look for later attempts holds. An attempt that takes longer to its POST was frozen; it looks again."""
_SLOW = 10.0
"""Seconds that the last look may take. A store under load is slow each time; a process freezes once, and longer."""
_LOOKS = 5
_SLICE = 0.2
"""Seconds between two checks of a pause whether the task was stopped."""
_INTENT = re.compile(r"([1-9][0-9]{0,8})\.([1-9][0-9]{0,8})\.intent")
_ENDED = ("success", "failed", "up_for_retry")


class NotSentError(GptImgError):
    """This attempt may send nothing more: it was stopped, or a later one has begun."""


class Attempt:
    """One attempt of a task instance, and its view of the journal.

    :param store: Of the task instance's journal.
    :param number: The attempt's `try_number`.
    :param max_tries: The task instance's `max_tries` now.
    :param log: A logger.
    :param ti: The task instance; None or one made by hand: what is delivered is noted at once.
    :param state: The task state store that release 0.1 may have left a record in; None: there is none.
    """

    def __init__(
        self, store: Store, number: int, max_tries: int, log: Any, *, ti: Any = None, state: Any = None
    ) -> None:
        self.store = store
        self.number = number
        self.max_tries = max_tries
        self.is_stopped = False
        self._log = log
        self._ti = ti
        self._state = state if store.lasts else None
        self._looked = float("-inf")

    @classmethod
    def of(cls, context: Context, log: Any) -> Attempt:
        """Return the attempt that `context` belongs to.

        :raises GptImgRequestError: The setting `[gptimg] journal` is not understood.
        """
        ti: Any = context.get("ti")
        number, max_tries = (getattr(ti, name, None) for name in ("try_number", "max_tries"))
        return cls(
            open_store(context),
            number if isinstance(number, int) and number > 0 else 1,
            max_tries if isinstance(max_tries, int) else 0,
            log,
            ti=ti,
            state=context.get("task_state_store"),
        )

    def announce(self) -> None:
        """Tell earlier attempts, which may still be alive, that this one has begun: one read and one write, mostly.

        Announce attempts in between, too, if they have not done so: each attempt then looks at one key only.
        """
        lowest = self.number
        while lowest > 2 and self.store.get(_begun(lowest - 1)) is None:
            lowest -= 1
        # Upwards, so that each announcement implies those below it.
        for number in range(max(lowest, 2), self.number + 1):
            self.store.put(_begun(number), {"begun": True})

    def begin(self) -> list[Submitted]:
        """Announce this attempt, and return what earlier ones have submitted."""
        self.announce()
        return self.read()

    def read(self) -> list[Submitted]:
        """Return all submissions that the journal knows, in the order of their attempts and POSTs."""
        names = self.store.list()

        def entry(name: str) -> Any:
            return self.store.read(name) if names is None or name in names else None

        found = []
        if self._state is not None and (record := self._state.get(FIRST_RELEASE_KEY)) is not None:
            first = read_first_release(record)
            end = Submitted.read(first.name, {}, {}, entry(f"{first.name}.end"))
            delivered = first.delivered if end.delivered is None else end.delivered
            found.append(replace(first, delivered=delivered, refunded=end.refunded))
        for name, intent in self._intents(names):
            outcome = entry(f"{name}.outcome")
            submission = Submitted.read(name, intent, outcome)
            if outcome is None and submission.attempt < self.number:
                submission = Submitted.read(name, intent, outcome := self.store.recover(f"{name}.outcome"))
            if submission.task_id:
                submission = Submitted.read(name, intent, outcome, entry(f"{name}.end"))
            found.append(submission)
        self.store.check()
        return found

    def _intents(self, names: set[str] | None) -> Iterator[tuple[str, Any]]:
        """Return each POST's name and intent, in order."""
        if names is not None:
            posts = sorted((int(post[1]), int(post[2])) for post in map(_INTENT.fullmatch, names) if post)
            yield from ((f"{attempt}.{post}", self.store.read(f"{attempt}.{post}.intent")) for attempt, post in posts)
            return
        for attempt in range(1, self.number + 1):
            for post in count(1):
                if (intent := self.store.read(f"{attempt}.{post}.intent")) is None:
                    break
                yield f"{attempt}.{post}", intent

    def intend(self, submission: Submitted) -> None:
        """Write down that a submission is about to be sent, and look whether it still may be.

        :raises NotSentError: It may not; that is written down, too.
        """
        began = time.time()
        if not self._put_intent(submission):
            raise NotSentError("Another process of the same attempt has submitted: this one sends nothing")
        self.look(submission, since=began)

    def look(self, *submissions: Submitted, since: float | None = None, ask_airflow: bool = False) -> None:
        """Look whether submissions may be sent now; if not, write down that they were not.

        :param since: Unix seconds right before a write that the store has taken. Airflow knew this attempt still then.
        :param ask_airflow: Ask for the task's state, too. When a person ends a task, its process learns it seconds
            later.
        :raises NotSentError: They may not.
        """
        try:
            self._look(since, ask_airflow or self.store.forgets)
        except BaseException:
            self._note_not_sent(*submissions)
            raise

    def look_again(self, *submissions: Submitted) -> None:
        """Look as :meth:`look` does, unless the last look was less than a second ago.

        :raises NotSentError: They may not be sent.
        """
        if self.is_stopped or abs(time.time() - self._looked) > _FRESH:
            self.look(*submissions)

    def settle(self, submission: Submitted, *, task_id: str | None = None, refused: str | None = None) -> Submitted:
        """Write down the outcome of a submission, and return it with that."""
        submission = replace(submission, task_id=task_id, refused=refused)
        self.store.put(f"{submission.name}.outcome", submission.outcome())
        return submission

    def pause(self, seconds: float) -> None:
        """Wait, unless the task is stopped meanwhile.

        :raises NotSentError: The task was stopped.
        """
        until = time.time() + seconds
        while (left := until - time.time()) > 0:
            self._check_stop()
            time.sleep(min(left, _SLICE))
        self._check_stop()

    def once_recorded(self, note: Callable[[], None]) -> None:
        """Call `note` when Airflow has recorded this attempt's success; at once where `execute` is called by hand."""
        if not is_run_by_airflow(self._ti):
            note()
            return

        def note_if_recorded() -> None:
            try:
                # An attempt that was given up may end well, too, while a later one has the success.
                # Where a replaced attempt reads nothing, it cannot write either.
                if recorded_state(self._ti) == "success" and self.store.read(self._next) is None:
                    note()
            except Exception as error:
                self._log.warning("The delivery is not noted, so a clear returns the same images: %s", error)

        once_ended_well(self._ti, note_if_recorded)

    def deliver(self, name: str) -> None:
        """After Airflow has recorded the success, note that a later clear submits again.

        :param name: Of the submission whose images the task returns.
        """
        if self.store.lasts:
            self.once_recorded(lambda: self._note_delivered(name))

    def refund(self, submission: Submitted) -> Submitted:
        """Write down that a submission's generation failed, which costs nothing, and return it with that."""
        self.store.put(f"{submission.name}.end", {"refunded": True})
        return replace(submission, refunded=True)

    def _note_delivered(self, name: str) -> None:
        if not self.store.forgets:
            self.store.put(f"{name}.end", {"delivered": self.max_tries})
            return
        submissions = self.read()
        if len(submissions) > 1:  # of one, the first deletion says all
            self.store.put(f"{name}.end", {"delivered": self.max_tries})
        self._forget([replace(each, delivered=self.max_tries) if each.name == name else each for each in submissions])

    def _forget(self, submissions: list[Submitted]) -> None:
        """Delete all that a clear must not find again; keep what is paid for and was not delivered, or is unknown."""
        unused = [each for each in submissions if each.task_id and each.delivered is None and not each.refunded]
        kept = {each.attempt for each in unknown_of(submissions) + unused}
        for known in reversed([each for each in submissions if each.attempt not in kept]):
            has_end = known.refunded or (known.delivered is not None and len(submissions) > 1)
            for what in ("intent", "outcome", *(["end"] if has_end else [])):  # without an intent, nothing else counts
                self.store.delete(f"{known.name}.{what}")
        for number in range(2, self.number + 1):
            self.store.delete(_begun(number))

    def _put_intent(self, submission: Submitted) -> bool:
        try:
            return self.store.put(f"{submission.name}.intent", submission.intent())
        except BaseException:
            # The write may be executed yet.
            self._note_not_sent(submission)
            raise

    def _note_not_sent(self, *submissions: Submitted) -> None:
        for submission in submissions:
            with suppress(Exception):
                self.settle(submission, refused="not sent")

    @property
    def _next(self) -> str:
        """The announcement of the next attempt."""
        return _begun(self.number + 1)

    def _look(self, since: float | None, ask_airflow: bool) -> None:
        for left in reversed(range(_LOOKS)):
            self._check_stop()
            began = time.time() if since is None else since
            # Otherwise it has to ask, too, whether Airflow knows this attempt still.
            if (self.store.get if since is None else self.store.read)(self._next) is not None:
                raise NotSentError(f"Attempt {self.number + 1} of this task has begun: this one sends nothing more")
            if ask_airflow and (state := self._state_in_airflow) in _ENDED:
                raise NotSentError(f"Airflow has this task as {state}: this attempt sends nothing more")
            took = abs(time.time() - began)
            if took <= _FRESH or (not left and took <= _SLOW):
                self._looked = began if took <= _FRESH else time.time()
                self._check_stop()
                return
            since = None
        raise NotSentError(f"The journal took more than {_SLOW:.0f} s to answer, {_LOOKS} times: nothing was sent")

    @property
    def _state_in_airflow(self) -> str | None:
        if not is_run_by_airflow(self._ti):
            return None
        with suppress(Exception):  # not every Airflow can be asked
            return recorded_state(self._ti)
        return None

    def _check_stop(self) -> None:
        if self.is_stopped:
            raise NotSentError("The task was stopped: nothing more is sent")


def _begun(number: int) -> str:
    return f"{number}.begun"
