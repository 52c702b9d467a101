# SPDX-License-Identifier: Apache-2.0
"""A whole Airflow in a throw-away home: each component a process of its own, all of it on loopback."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from airflow_provider_gptimg.sandbox import dags, reaper
from airflow_provider_gptimg.sandbox.dags import FoundDags
from airflow_provider_gptimg.sandbox.reaper import kill, processes_of
from airflow_provider_gptimg.sandbox.rest import AirflowApi, DagRun, until

__all__ = ["StandaloneAirflow", "free_port", "settings_of"]

# Without their log servers, which would listen on all interfaces: all processes see the same log files.
_COMPONENTS = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}


class StandaloneAirflow:
    """Airflow with SQLite and local workers, as `airflow standalone` runs it, in a home that vanishes at the end.

    Its components are started one by one rather than by `airflow standalone`, so that each can be killed and
    restarted::

        with StandaloneAirflow("dags", {"AIRFLOW_CONN_GPTIMG_DEFAULT": emulator.connection_json}) as airflow:
            run = airflow.trigger("my_dag")
            airflow.kill("triggerer")
            airflow.launch("triggerer")
            assert run.wait() == "success"

    :param dags_folder: Folder of the DAG files.
    :param env: Added to the environment of all its processes: connections, and settings that override its own. AIRFLOW
        variables of the current environment are left out.
    """

    username = "admin"

    def __init__(self, dags_folder: str | Path, env: Mapping[str, str] | None = None) -> None:
        self.home: Path = Path(tempfile.mkdtemp(prefix="gptimg-airflow-")).resolve()
        self._reaper = reaper.start(self.home)
        self.url: str = f"http://127.0.0.1:{free_port()}"
        self.password: str = secrets.token_urlsafe(9)
        self._env = _environment(self.home, self.url, Path(dags_folder).resolve()) | dict(env or {})
        self.api: AirflowApi = AirflowApi(self.url, self.username, self.password)
        self._components: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, timeout: float = 300.0) -> None:
        """Make the database, start all components, and return when they are healthy.

        :param timeout: Seconds.
        :raises RuntimeError: One of them ended; the message holds the end of its log.
        :raises TimeoutError: They are not healthy in time.
        """
        self.make_database(timeout)
        since = time.time()
        for component in _COMPONENTS:
            self._components[component] = self._airflow(component, _COMPONENTS[component])
        until(lambda: self._healthy(since), timeout, "Airflow to be healthy", pause=0.2)

    def make_database(self, timeout: float = 300.0) -> None:
        """Make the database, unless that was done.

        :param timeout: Seconds.
        :raises RuntimeError: It could not be made; the message holds the end of the log.
        """
        passwords = Path(self._env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
        if passwords.exists():
            return
        migration = self._airflow("db-migrate", ["db", "migrate"])
        until(lambda: migration.poll() is not None, timeout, "Airflow's database", pause=0.1)
        if migration.returncode:
            raise RuntimeError(f"Airflow's database could not be made:\n{self.output('db-migrate')}")
        passwords.write_text(json.dumps({self.username: self.password}))

    def find_dags(self) -> FoundDags:
        """Return what the DAG files define, and what is wrong with them. It needs the database, and no component.

        :raises RuntimeError: Python ended while it read them; the message holds the end of what it printed.
        """
        self.make_database()
        command = [sys.executable, "-m", dags.__name__, self._env["AIRFLOW__CORE__DAGS_FOLDER"]]
        ended = subprocess.run(command, env=self._env, cwd=self.home, capture_output=True, text=True)  # noqa: S603
        if ended.returncode:
            raise RuntimeError("\n".join(["The DAG files cannot be read:", *ended.stderr.splitlines()[-10:]]))
        return FoundDags(**json.loads(ended.stdout.splitlines()[-1]))

    def stop(self) -> None:
        """Kill all its processes and remove its home. This also happens when the process that made it ends."""
        self.api.close()
        self._reaper.communicate()
        for process in self._components.values():
            process.wait()

    def __enter__(self) -> StandaloneAirflow:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def trigger(self, dag_id: str, conf: Mapping[str, object] | None = None, timeout: float = 120.0) -> DagRun:
        """Run a DAG as :meth:`.AirflowApi.trigger` does, and return its run at once."""
        return self.api.trigger(dag_id, conf, timeout)

    def launch(self, component: str, timeout: float = 120.0) -> None:
        """Start a component that was killed, and return when it is healthy.

        :param component: `api-server`, `scheduler`, `dag-processor` or `triggerer`.
        """
        since = time.time()
        self._components[component] = self._airflow(component, _COMPONENTS[component])
        until(lambda: self._healthy(since, component), timeout, f"{component} to be healthy", pause=0.2)

    def kill(self, component: str) -> None:
        """Kill a component and all that it started, as the loss of its machine would; the scheduler has the workers.

        Another triggerer takes over the waits of a killed one, `[triggerer] triggerer_health_check_threshold` seconds
        after its last heartbeat.
        """
        parent = self._components[component]
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        parent.wait()
        kill(children)

    def task_processes(self, run: DagRun, task_id: str, map_index: int = -1) -> tuple[psutil.Process, psutil.Process]:
        """Return the process that a running task instance executes in, and its supervisor, a worker.

        :raises psutil.NoSuchProcess: It has ended.
        """
        pid = run.task_instance(task_id, map_index)["pid"]
        process = pid and psutil.Process(pid)  # of None, psutil would make the calling process
        supervisor = process and process.parent()
        if supervisor is None:
            raise psutil.NoSuchProcess(pid)
        return process, supervisor

    def processes(self) -> list[psutil.Process]:
        """Return all processes that belong to it, orphans too."""
        return processes_of(self.home)

    def output(self, component: str, lines: int = 30) -> str:
        """Return the last lines of what a component printed."""
        path = self.home / f"{component}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def _airflow(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        env = self._env
        if name != "api-server":
            # With the default of 5 s a component dies of a locked database where many tasks run at a time. The API
            # server may lock itself out, and is then the sooner back the sooner it fails.
            env = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home}/airflow.db?timeout=60"} | env
        with (self.home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "airflow", *arguments],
                env=env,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # So that a Ctrl-C reaches only whoever started it, who then stops all of it in order.
                start_new_session=True,
            )

    def _healthy(self, since: float, component: str | None = None) -> bool:
        for name, process in self._components.items():
            if component in (None, name) and process.poll() is not None:
                raise RuntimeError(f"Airflow's {name} ended with status {process.returncode}:\n{self.output(name)}")
        try:
            health = self.api.health()
        except httpx.TransportError:
            return False
        names = ["scheduler", "dag-processor", "triggerer"] if component is None else [component]
        return all(_alive(health, name.replace("-", "_"), since) for name in names if name != "api-server")


def _alive(health: Mapping[str, Mapping[str, str | None]], name: str, since: float) -> bool:
    """Return whether a component gave a sign of life `since` then; one that was killed seems healthy for a while."""
    heartbeat = health[name].get(f"latest_{name}_heartbeat")
    return heartbeat is not None and datetime.fromisoformat(heartbeat).timestamp() >= since


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def settings_of(home: Path, url: str, dags_folder: Path) -> dict[str, str]:
    """Return an environment for the processes of an Airflow in `home`, with what is inherited but other settings.

    :param url: Of its API server.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        # Without bytecode each process would compile all of Airflow again.
        if not name.startswith("AIRFLOW") and name not in ("PYTHONDONTWRITEBYTECODE", "GPTIMG_API_KEY")
    }
    loopback = "127.0.0.1,localhost"
    return inherited | {
        "AIRFLOW_HOME": str(home),
        reaper.OWNER: str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
        # A scheduled DAG would make a run of its own when it is switched on to be triggered. For DAGs that are to be
        # started by an asset, switch it on.
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
        # With the default of 5 s, a task that is deferred for less than that may be failed: the scheduler can
        # learn that its process ended only after it has been resumed.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', '')}",
        # The reaper finds our processes by their environment, which a process title would overwrite.
        "SPT_NOENV": "1",
        "no_proxy": loopback,
        "NO_PROXY": loopback,
    }


def _environment(home: Path, url: str, dags_folder: Path) -> dict[str, str]:
    return settings_of(home, url, dags_folder) | {
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "3",
        "AIRFLOW__API__PORT": url.rpartition(":")[2],
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    }
