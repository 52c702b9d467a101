# SPDX-License-Identifier: Apache-2.0
"""The wheel in a clean environment, with an Airflow's own pins: it runs an example without the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "airflow-provider-gptimg"

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


def run(*command: str | Path, folder: Path, timeout: float = 300) -> str:
    """Run a command in a folder far from the repository; return what it printed."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=env | {"TMPDIR": str(folder), "AIRFLOW_HOME": str(folder / "airflow"), "UV_SYSTEM_CERTS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def python(folder: Path) -> Path:
    """The interpreter of an environment that holds the wheel, its extra `sandbox`, and the pinned Airflow."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist", folder=ROOT)
    (wheel,) = (folder / "dist").iterdir()
    uv, python = Path(sys.executable).parent / "uv", folder / "venv/bin/python"
    run(uv, "venv", "--quiet", "--python", sys.executable, folder / "venv", folder=folder)
    pins = ("--constraint", ROOT / "tests/compat/pins/airflow-3.3.1.txt")
    run(uv, "pip", "install", "--python", python, *pins, f"{wheel}[sandbox]", folder=folder, timeout=600)
    return python


def test_airflow_lists_the_provider(python: Path, folder: Path) -> None:
    listed = json.loads(run(python, "-m", "airflow", "providers", "list", "--output", "json", folder=folder))
    assert NAME in [provider["package_name"] for provider in listed]
    place = run(python, "-c", "import airflow_provider_gptimg as ours; print(ours.__file__)", folder=folder)
    assert Path(place.strip()).is_relative_to(folder)


def test_an_example_runs_from_the_prompt_to_the_images(python: Path, folder: Path) -> None:
    output = run(python, "-m", "airflow_provider_gptimg.sandbox", "--speed", "20", folder=folder, timeout=600)
    images = list((folder / "gptimg-out").iterdir())
    assert len(images) == 2, output
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)
