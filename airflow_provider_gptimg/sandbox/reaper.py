# SPDX-License-Identifier: Apache-2.0
"""End all processes of a throw-away Airflow and remove its home, once its standard input is closed.

The system closes that pipe however its owner ends, by a `kill -9` too.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["OWNER", "kill", "processes_of", "start"]

OWNER = "GPTIMG_THROW_AWAY_AIRFLOW"
"""Environment variable of all its processes: its home. A command of the user's has at most the AIRFLOW_HOME."""


def start(home: Path) -> subprocess.Popen[bytes]:
    """Run this file for the Airflow in `home`; `communicate()` on the result has it clean up."""
    return subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, __file__, str(home)], cwd=home.parent, stdin=subprocess.PIPE, start_new_session=True
    )


def processes_of(home: Path) -> list[psutil.Process]:
    """Return all processes that the Airflow in `home` has started, orphans too."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(OWNER) == str(home):
                found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> None:
    """Kill processes, and return when none of them runs."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    while any(_runs(process) for process in processes):
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        # A zombie is dead, though its parent may take its time to notice.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def main() -> None:
    """Wait for the end of standard input, then clean up."""
    home = Path(sys.argv[1])
    sys.stdin.buffer.read()
    while left := processes_of(home):
        kill(left)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
