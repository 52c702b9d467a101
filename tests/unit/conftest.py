# SPDX-License-Identifier: Apache-2.0
"""Properties are tried with the same examples at each run, and no machine is too slow for one."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "gptimg",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("gptimg")
