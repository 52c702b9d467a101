# SPDX-License-Identifier: Apache-2.0
"""What the gallery shows of a batch, from the ledger that the batch wrote."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from batch_instance import Instance, batch, prompts

from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.gallery.ledgers import read_submissions
from airflow_provider_gptimg.gallery.recorded import Record
from airflow_provider_gptimg.gallery.roles import Role
from airflow_provider_gptimg.gallery.tiles import Credits, Gallery


def gallery(instance: Instance, state: str) -> Gallery:
    values = instance.store.values if instance.store else {}
    submissions = tuple(read_submissions(values, instance.try_number, Role.BATCH))
    return Gallery([Record("batch", -1, state, instance.try_number, Role.BATCH, submissions=submissions)])


def test_a_batch_that_succeeded(emulator: Any, instance: Instance, s3: Any) -> None:
    instance.run(batch([{"prompt": "A cat", "n": 2}, {"prompt": "A dog"}]))
    shown = gallery(instance, "success")
    assert [(tile["state"], tile["prompt"], tile["index"]) for tile in shown.tiles()] == [
        ("ready", "A cat", 0),
        ("ready", "A cat", 1),
        ("ready", "A dog", 0),
    ]
    assert all(tile["uri"].startswith("s3://images/") and tile["pixels"] for tile in shown.tiles())
    assert shown.credits() == Credits(charged=6)


def test_what_a_failed_batch_did_not_submit_is_shown_with_the_reason(
    emulator: Any, instance: Instance, s3: Any
) -> None:
    emulator.set_balance(8)
    with pytest.raises((GptImgError, Exception), match="402"):
        instance.run(batch(prompts(30), max_in_flight=2))
    shown = gallery(instance, "failed")
    tiles = shown.tiles()
    assert Counter(tile["state"] for tile in tiles) == {"ready": 4, "failed": 26}
    reasons = [tile["failure"]["reason"] for tile in tiles if tile["state"] == "failed"]
    assert all("402" in reason for reason in reasons)
    assert shown.credits() == Credits(charged=8)


def test_a_refunded_request_is_counted_as_such(emulator: Any, instance: Instance, s3: Any) -> None:
    emulator.fault("submit", "fail", times=1)
    instance.run(batch(prompts(2), on_partial_failure="succeed"))
    shown = gallery(instance, "success")
    assert sorted(tile["state"] for tile in shown.tiles()) == ["failed", "ready"]
    assert shown.credits() == Credits(charged=4, refunded=2)
