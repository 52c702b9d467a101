# SPDX-License-Identifier: Apache-2.0
"""One running Airflow with runs to look at, three people who look, and a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gallery_xcoms
import httpx
import pytest
from gallery_xcoms import HOSTILE
from hostile_s3 import HostileS3

from airflow_provider_gptimg.airflow_compat import HAS_GALLERY
from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import DagRun, S3Server, StandaloneAirflow
from airflow_provider_gptimg.sandbox.rest import until

if not HAS_GALLERY:  # what these import, this Airflow has not
    collect_ignore = [
        f"test_gallery_{name}.py" for name in ("accessible", "journals", "limits", "page", "picks", "roles", "spending")
    ]

HERE = Path(__file__).parent
BUCKET = "gallery"


@dataclass
class Gallery:
    """A running Airflow: `admin` and `vera` may see all; `otto` all but the DAG `gallery_private`, and may write XComs.

    :param slow: A store that trickles, behind the connection of the DAG `gallery_slow`.
    """

    airflow: StandaloneAirflow
    emulator: Emulator
    s3: Any
    slow: HostileS3
    passwords: dict[str, str] = field(repr=False)

    @property
    def url(self) -> str:
        return self.airflow.url

    def http(self, user: str | None) -> httpx.Client:
        """A client with a person's session; None: nobody's."""
        cookies = {}
        if user:
            login = {"username": user, "password": self.passwords[user]}
            answer = httpx.post(f"{self.url}/auth/token", json=login, timeout=60, trust_env=False).raise_for_status()
            cookies["_token"] = answer.json()["access_token"]
        headers = {"authorization": f"Bearer {cookies['_token']}"} if user else {}
        return httpx.Client(base_url=self.url, cookies=cookies, headers=headers, timeout=60, trust_env=False)

    def tiles(self, run: DagRun, user: str | None = "vera") -> Any:
        with self.http(user) as client:
            answer = client.get(f"/gptimg/dags/{run.dag_id}/tiles", params={"run_id": run.run_id})
        return answer.json()["tiles"] if answer.status_code == 200 else answer.status_code

    def told(self, run: DagRun, what: str = "tiles", user: str = "vera", **query: str) -> Any:
        """What is answered of a run."""
        with self.http(user) as client:
            answer = client.get(f"/gptimg/dags/{run.dag_id}/{what}", params=query or {"run_id": run.run_id})
        return answer.raise_for_status().json()

    def picture(self, run: DagRun, tile: dict[str, Any], user: str | None = "vera", **headers: str) -> httpx.Response:
        query = {"run_id": run.run_id, "image_task": tile["image_task"], "index": tile["index"], **tile["source"]}
        with self.http(user) as client:
            return client.get(f"/gptimg/dags/{run.dag_id}/picture", params=query, headers=headers)

    def start(self, dag_id: str, **conf: object) -> DagRun:
        return self.airflow.trigger(dag_id, conf)

    def submitted(self, prompt: str) -> str:
        """Wait for a submit with this prompt that goes on, and return its image task's id."""

        def find() -> str | None:
            under_way = (task for task in self.emulator.tasks if task.status == "processing")
            return next((task.task_id for task in under_way if task.prompt == prompt), None)

        return str(until(find, 200, f"{prompt!r} to be submitted"))

    def page(self, run: DagRun) -> str:
        return str(httpx.URL(f"{self.url}/gptimg/", params={"dag_id": run.dag_id, "run_id": run.run_id}))


@contextmanager
def _running(**settings: str) -> Iterator[Gallery]:
    schedule = {"poll_interval": 0.5, "first_poll_after": 0}
    # Generations end when a test says so.
    with (
        Emulator(durations=(3600, 3600), extra=schedule) as emulator,
        S3Server(BUCKET) as server,
        HostileS3.running() as slow,
    ):
        env = {
            "AIRFLOW_CONN_GALLERY_SLOW_S3": slow.connection_json,
            "AIRFLOW_CONN_GPTIMG_DEFAULT": emulator.connection_json,
            "AIRFLOW_CONN_GALLERY_S3": server.connection_json,
            "AIRFLOW__CORE__NUM_DAG_RUNS_TO_RETAIN_RENDERED_FIELDS": "2",
            "AIRFLOW__CORE__MAX_NUM_RENDERED_TI_FIELDS_PER_TASK": "2",  # its name before Airflow 3.2
            "AIRFLOW__CORE__AUTH_MANAGER": "gallery_auth.OneDagLessAuthManager",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,vera:viewer,otto:user",
            "PYTHONPATH": str(HERE / "auth"),
            **settings,
        }
        with StandaloneAirflow(HERE / "dags", env) as airflow:
            passwords = json.loads((airflow.home / "passwords.json").read_text())
            yield Gallery(airflow, emulator, server.client(), slow, passwords)


@pytest.fixture(scope="session")
def gallery() -> Iterator[Gallery]:
    with _running() as running:
        gallery_xcoms.home = running.airflow.home
        yield running


@pytest.fixture(scope="module")
def s3_gallery() -> Iterator[Gallery]:
    """Another one, whose journal is in S3."""
    place = {"AIRFLOW__GPTIMG__JOURNAL": f"s3://{BUCKET}/journal", "AIRFLOW__GPTIMG__JOURNAL_AWS_CONN_ID": "gallery_s3"}
    with _running(**place) as running:
        yield running


@pytest.fixture(scope="session")
def private_run(gallery: Gallery) -> DagRun:
    """Two pictures in a private bucket, whose prompt would be dangerous as HTML."""
    run = gallery.start("gallery_private", prompt=HOSTILE)
    gallery.emulator.finish(gallery.submitted(HOSTILE))
    assert run.wait() == "success"
    return run


@pytest.fixture(scope="session")
def hosted_run(gallery: Gallery) -> DagRun:
    """One picture at the vendor, and one that failed."""
    run = gallery.start("gallery_hosted", prompts=["A good one", "A refused one"])
    gallery.emulator.finish(gallery.submitted("A good one"))
    gallery.emulator.finish(gallery.submitted("A refused one"), "failed", "The prompt was refused")
    assert run.wait() == "failed"
    return run


@pytest.fixture(scope="session")
def many_run(gallery: Gallery) -> DagRun:
    """500 pictures in S3."""
    image_tasks = [gallery.emulator.add_task(prompt=f"Picture {number % 9}", n=4) for number in range(125)]
    run = gallery.start("gallery_many", image_tasks=image_tasks)
    assert run.wait() == "success"
    return run


@pytest.fixture
def open_as(browser: Any, gallery: Gallery) -> Iterator[Callable[[str | None], Any]]:
    """Return a new page of a browser in which somebody is logged in; None: nobody. No page may have a script error."""
    contexts, errors = [], []

    def open_page(user: str | None) -> Any:
        context = browser.new_context(viewport={"width": 1360, "height": 850})
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        if user:
            page.goto(f"{gallery.url}/auth/login")
            page.fill("input[name=username]", user)
            page.fill("input[name=password]", gallery.passwords[user])
            page.press("input[name=password]", "Enter")
            page.wait_for_url(f"{gallery.url}/")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def page_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from looks import SHAPES
    from page_server import serve_page

    with serve_page(monkeypatch) as page:
        for number, shape in SHAPES.items():
            page.shapes |= {(f"t{number}", index): shape for index in range(4)}
        yield page


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open an address in a new browser page. No page may have a script error."""
    contexts, errors = [], []

    def open_page(address: str, size: dict[str, int] | None = None, **options: Any) -> Any:
        context = browser.new_context(viewport=size or {"width": 1440, "height": 900}, **options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The accessibility checker's source, from npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here, and axe-core comes from there")
    home = tmp_path_factory.mktemp("axe")
    command = [npm, "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4.10.3"]
    try:
        got = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not answer, and axe-core comes from there")
    script = home / "node_modules" / "axe-core" / "axe.min.js"
    if got.returncode or not script.exists():
        pytest.skip(f"axe-core could not be had from npm: {got.stderr[-300:]}")
    return script.read_text()
