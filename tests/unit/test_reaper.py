# SPDX-License-Identifier: Apache-2.0
"""The end of a throw-away Airflow is the end of what it started, and of nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

from airflow_provider_gptimg.sandbox import reaper

WAIT = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]


def test_a_command_of_the_users_survives_though_it_has_the_same_home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environ = os.environ | {"AIRFLOW_HOME": str(home)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen(WAIT, env=environ, **pipes) as of_the_user,
        subprocess.Popen(WAIT, env=environ | {reaper.OWNER: str(home)}, **pipes) as own,
    ):
        assert of_the_user.stdout.readline() == own.stdout.readline() == b"up\n"
        reaper.start(home).communicate()

        assert own.wait(30) < 0
        assert not home.exists()
        assert of_the_user.poll() is None
        with suppress(BrokenPipeError):
            of_the_user.communicate(timeout=30)
