# SPDX-License-Identifier: Apache-2.0
"""Finished tasks from an XCom are confirmed with the API while others are mirrored."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.mirroring.claims import Claims


def test_a_mirror_that_ends_early_polls_only_what_it_has_begun(emulator: Any):
    task_ids = [emulator.add_task() for _ in range(40)]
    emulator.latency = 0.2
    with pytest.raises(KeyboardInterrupt), Claims(GptImgHook(), task_ids):
        raise KeyboardInterrupt
    assert len(emulator.calls) < 20  # eight at a time
