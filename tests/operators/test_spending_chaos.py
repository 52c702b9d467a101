# SPDX-License-Identifier: Apache-2.0
"""Over random deaths, failures and lost answers, spending equals the API's ledger to the credit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from attempts import Instance, Killed
from journals import use_s3

from airflow_provider_gptimg.airflow_compat import AirflowFailException
from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.hooks import gptimg as hook_module
from airflow_provider_gptimg.journal.spending import Amounts, read_spending, sum_by
from airflow_provider_gptimg.journal.stores import S3Store, open_s3_journal
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator

INSTANCES = 30
FAULTS = ("fail", "lost_after", "lost_before", 503, None, None, None)


@contextmanager
def mortal(chance: random.Random) -> Iterator[None]:
    """Let a process die before or after something that it does outside of itself; from then on, it does nothing."""
    left = chance.choice([1, 2, 3, 4, 5, 6, 8, 10, 10**9, 10**9])
    dead = False

    def deadly(call: Any) -> Any:
        def do(*given: Any, **more: Any) -> Any:
            nonlocal left, dead
            left -= 1
            if dead or (left <= 0 and chance.random() < 0.5):
                dead = True
                raise Killed
            done = call(*given, **more)
            if left <= 0:
                dead = True
                raise Killed
            return done

        return do

    with pytest.MonkeyPatch.context() as patch:
        for name in ("get_signed", "put", "times"):
            patch.setattr(S3Store, name, deadly(getattr(S3Store, name)))
        patch.setattr(hook_module, "exchange", deadly(hook_module.exchange))
        yield


def operator_of(number: int) -> Any:
    if number % 10 == 9:
        requests = [f"picture {number}.{index}" for index in range(8)]
        return GptImgBatchToS3Operator(task_id="paid", requests=requests, s3_bucket="images", reuse=True)
    # Each prompt is asked for by two task instances.
    return GptImgGenerateOperator(task_id="paid", prompt=f"picture {number // 2}", reuse=number % 3 > 0)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
def test_spending_equals_the_ledger(emulator, s3, monkeypatch, hasty, seed):
    use_s3(monkeypatch, s3)
    monkeypatch.setattr("airflow_provider_gptimg.journal.reuse.LEASE", 0.05)
    monkeypatch.setattr("airflow_provider_gptimg.journal.reuse.PAUSE", 0.05)
    chance = random.Random(seed)
    deaths = 0
    for number in range(INSTANCES):
        instance = Instance()
        instance.dag_id, instance.task_id = f"dag-{number % 3}", f"paid-{number}"
        for attempt in range(8):
            if (fault := chance.choice(FAULTS)) is not None and attempt < 6:
                emulator.fault("submit", fault)
            try:
                with mortal(chance) if attempt < 6 else nullcontext():
                    instance.attempt(operator_of(number))
                break
            except Killed:
                deaths += 1
            except AirflowFailException:
                break
            except GptImgError:
                continue
            finally:
                emulator.clear_faults()
    journal = open_s3_journal()
    assert journal is not None
    spent = read_spending(journal)
    total = sum((each.amounts for each in spent), Amounts())

    charges = Counter({entry.task_id: entry.credits for entry in emulator.ledger if entry.kind == "charge"})
    refunds = {entry.task_id for entry in emulator.ledger if entry.kind == "refund"}
    known = {each.image_task: each.amounts for each in spent if each.amounts.charged}
    assert {task_id: charges[task_id] for task_id in known} == {id_: each.charged for id_, each in known.items()}
    assert {task_id for task_id, each in known.items() if each.refunded} == refunds & known.keys()
    lost = sum(credits for task_id, credits in charges.items() if task_id not in known)
    assert total.charged + lost == sum(charges.values())
    assert lost <= total.unknown
    assert set(sum_by(spent, "dag")) == {"dag-0", "dag-1", "dag-2"}
    assert deaths > 10
    assert min(total.charged, total.refunded, total.reused, total.unknown) > 0, total
