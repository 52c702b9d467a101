# SPDX-License-Identifier: Apache-2.0
"""An Airflow cluster on loopback: PostgreSQL, Redis, CeleryExecutor, two of each component that may be doubled."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg2
from balancer import Balancer
from cryptography.fernet import Fernet

from airflow_provider_gptimg.sandbox import AirflowApi, S3Server, reaper
from airflow_provider_gptimg.sandbox.reaper import kill
from airflow_provider_gptimg.sandbox.rest import until
from airflow_provider_gptimg.sandbox.standalone import free_port, settings_of

__all__ = ["BUCKET", "Cluster"]

BUCKET = "images"
DAGS = Path(__file__).parent / "dags"
HEARTBEAT_TIMEOUT = 30
"""Seconds after which Airflow gives up a task that is frozen; its default is 300."""
_AIRFLOW = (sys.executable, "-m", "airflow")
_COMPONENTS = {
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer-1": ("triggerer", "--skip-serve-logs"),
    "triggerer-2": ("triggerer", "--skip-serve-logs"),
    "worker-1": ("celery", "worker", "--skip-serve-logs", "-H", "worker-1@localhost"),
    "worker-2": ("celery", "worker", "--skip-serve-logs", "-H", "worker-2@localhost"),
}
_HEARTBEATS = Counter({"SchedulerJob": 1, "DagProcessorJob": 1, "TriggererJob": 2})
API_SERVERS = ("api-server-1", "api-server-2")


class Cluster:
    """All processes of the cluster, by name; used in a `with` block. At its end nothing of it is left.

    A component that ends by itself is started again, as a supervisor of services would.

    :param seed: For the emulator.
    :param settings: Environment of all Airflow processes; wins over the cluster's own.
    """

    def __init__(self, seed: int, settings: Mapping[str, str] | None = None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="gptimg-cluster-")).resolve()
        self._reaper = reaper.start(self.home)
        self._ports = {name: free_port() for name in ("postgres", "redis", "emulator", *API_SERVERS)}
        self._seed = seed
        self._settings = dict(settings or {})
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._down: set[str] = set()
        self._stopping = threading.Event()
        self.restarts: Counter[str] = Counter()
        self.balancer = Balancer([f"http://127.0.0.1:{self._ports[name]}" for name in API_SERVERS])
        self.s3_server = S3Server(BUCKET)
        self.emulator_url = f"http://127.0.0.1:{self._ports['emulator']}"
        self.emulator = httpx.Client(base_url=self.emulator_url, timeout=60, trust_env=False)

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
        # The reaper cannot tell PostgreSQL's processes, which write their titles over their environment.
        with suppress(KeyError, psutil.NoSuchProcess):
            self.kill("postgres")
        self._reaper.communicate()
        for process in self._processes.values():
            process.wait()
        self.balancer.__exit__()
        with suppress(AttributeError):
            self.s3_server.__exit__(None, None, None)
        shutil.rmtree(self.home, ignore_errors=True)

    def _start(self) -> None:
        self.balancer.__enter__()
        self.s3_server.__enter__()
        self.s3 = self.s3_server.client()
        self.api = AirflowApi(self.balancer.url, "admin", secrets.token_urlsafe(9))
        self._env = self._environment() | self._settings
        shutil.copytree(DAGS, self.home / "dags", ignore=shutil.ignore_patterns("__pycache__"))
        _init_postgres(self.home / "postgres")
        for name in ("postgres", "redis", "emulator"):
            self.start(name)
        until(lambda: self.query("select 1"), 60, "PostgreSQL")
        migrated = subprocess.run([*_AIRFLOW, "db", "migrate"], env=self._env, capture_output=True, text=True)
        if migrated.returncode:
            raise RuntimeError(migrated.stdout + migrated.stderr)
        for name in (*API_SERVERS, *_COMPONENTS):
            self.start(name)
        until(self.healthy, 300, "the cluster to be healthy", pause=1)
        threading.Thread(target=self._supervise, daemon=True).start()

    def start(self, name: str) -> None:
        """Start a component and return at once."""
        env = self._env
        if name == "postgres":
            # Over TCP only, and the processes keep their environment, which tells whose they are.
            options = {"port": self._ports[name], "unix_socket_directories": "", "max_connections": 300, "fsync": "off"}
            data = str(self.home / "postgres")
            command = [str(_postgres("postgres")), "-D", data, *(f"--{key}={value}" for key, value in options.items())]
        elif name == "redis":
            options = {"port": self._ports[name], "bind": "127.0.0.1", "appendonly": "yes", "set-proc-title": "no"}
            command = ["redis-server", "--dir", str(self.home)]
            command += [part for key, value in options.items() for part in (f"--{key}", str(value))]
        elif name == "emulator":
            options = {"port": self._ports[name], "credits": 1_000_000, "speed": 3, "latency": 0.3, "seed": self._seed}
            command = [sys.executable, "-m", "airflow_provider_gptimg.emulator", "--no-calls"]
            command += [part for key, value in options.items() for part in (f"--{key}", str(value))]
        elif name in API_SERVERS:
            env = env | {"AIRFLOW__API__PORT": str(self._ports[name])}
            command = [*_AIRFLOW, "api-server", "--port", str(self._ports[name])]
        else:
            command = [*_AIRFLOW, *_COMPONENTS[name]]
        with (self.home / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env=env,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user="postgres" if name == "postgres" and os.getuid() == 0 else None,
            )
        self._down.discard(name)

    def kill(self, name: str) -> None:
        """Kill a component and all that it started, as the loss of its machine would. It stays down."""
        self._down.add(name)
        kill(self.tree(name))
        self._processes[name].wait()

    def terminate(self, name: str) -> None:
        """Stop a component in order. It stays down."""
        self._down.add(name)
        # PostgreSQL's "fast" shutdown, which does not wait for its clients.
        self._processes[name].send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
        self._processes[name].wait(60)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Freeze a component and all its processes for the block."""
        processes = self.tree(name)
        try:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def tree(self, name: str) -> list[psutil.Process]:
        """Return a component's processes, the first one first; none if it has ended."""
        try:
            first = psutil.Process(self._processes[name].pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def healthy(self, since: float = 0.0) -> bool:
        """Tell whether all components run and have given a sign of life.

        :param since: Unix seconds; older signs do not count.
        """
        if any(process.poll() is not None for process in self._processes.values()) or not self.balancer.both_up():
            return False
        alive = f"state = 'running' and latest_heartbeat > to_timestamp({since})"
        sql = f"select job_type, count(*) from job where {alive} group by 1"
        return Counter(dict(self.query(sql))) >= _HEARTBEATS

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows that Airflow's database answers with; none while it is away."""
        try:
            connect = psycopg2.connect(self._dsn("postgresql"), connect_timeout=5)
            with closing(connect) as connection, connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()
        except psycopg2.OperationalError:
            return []

    def usage(self) -> dict[str, dict[str, float]]:
        """Return memory (MiB), sockets, open files and CPU (s, of ended children too) by component."""
        found = {}
        for name in self._processes:
            total: Counter[str] = Counter()
            for process in self.tree(name):
                with suppress(psutil.Error), process.oneshot():
                    times = process.cpu_times()
                    total["cpu"] += sum((times.user, times.system, times.children_user, times.children_system))
                    total["memory"] += process.memory_full_info().pss / 2**20
                    total["sockets"] += len(process.net_connections())
                    total["files"] += process.num_fds()
            found[name] = dict(total)
        return found

    def log_of(self, dag_id: str, run_id: str, task_id: str, map_index: int, attempt: int) -> str:
        """Return the log of an attempt, from its file."""
        mapped = f"map_index={map_index}/" if map_index >= 0 else ""
        path = f"logs/dag_id={dag_id}/run_id={run_id}/task_id={task_id}/{mapped}attempt={attempt}.log"
        file = self.home / path
        return file.read_text(errors="replace") if file.exists() else ""

    def _supervise(self) -> None:
        while not self._stopping.wait(1):
            for name, process in list(self._processes.items()):
                if process.poll() is not None and name not in self._down and not self._stopping.is_set():
                    self.restarts[name] += 1
                    self.start(name)

    def _dsn(self, scheme: str) -> str:
        return f"{scheme}://postgres@127.0.0.1:{self._ports['postgres']}/postgres"

    def _environment(self) -> dict[str, str]:
        settings = settings_of(self.home, self.balancer.url, self.home / "dags")
        passwords = Path(settings["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
        passwords.write_text(json.dumps({"admin": self.api._login["password"]}))
        connection = {
            "conn_type": "gptimg",
            "host": self.emulator_url,
            "password": "gptimg-emulator-key",
            "extra": {"first_poll_after": 12, "poll_interval": 2},
        }
        return settings | {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__PARALLELISM": "64",
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "400",
            "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": "512",
            "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._dsn("postgresql+psycopg2"),
            "AIRFLOW__CELERY__BROKER_URL": f"redis://127.0.0.1:{self._ports['redis']}/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": self._dsn("db+postgresql+psycopg2"),
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": "6",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
            "AIRFLOW_CONN_GPTIMG_DEFAULT": json.dumps(connection),
            "AIRFLOW_CONN_AWS_DEFAULT": self.s3_server.connection_json,
        }


def _postgres(program: str) -> Path:
    """Return the path of one of PostgreSQL's programs, the newest that Debian has installed."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    if not found or not shutil.which("redis-server"):
        raise RuntimeError("PostgreSQL and Redis are needed: apt-get install -y postgresql redis-server")
    return found[-1]


def _init_postgres(data: Path) -> None:
    data.mkdir()
    user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root
    if user:
        data.parent.chmod(0o711)
        shutil.chown(data, user)
    command = [_postgres("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, user=user, cwd="/")
