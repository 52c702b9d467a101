# SPDX-License-Identifier: Apache-2.0
"""The wheel can be installed under the constraints of real deployments, and on each Python that their Airflow runs on.

Resolved, not installed: `make matrix` runs the tests at these ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINS = sorted((ROOT / "tests/compat/pins").glob("*.txt"))
NEWEST_PYTHON = {"2.11": "3.12", "3.0": "3.12", "3.2": "3.14", "3.3": "3.14"}

pytestmark = pytest.mark.registry
pytest.importorskip("uv", reason="uv resolves; the development environment has it")


def uv(*arguments: str, stdin: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "uv", "--quiet", *arguments]
    env = os.environ | {"UV_SYSTEM_CERTS": "1"}
    return subprocess.run(command, input=stdin, cwd=cwd, env=env, capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    reached = uv("pip", "compile", "--no-cache", "--no-header", "-", stdin="iniconfig")
    if reached.returncode:
        pytest.skip(f"no package registry can be reached, so nothing can be resolved: {reached.stderr[-300:]}")
    folder = tmp_path_factory.mktemp("wheel")
    built = uv("build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(folder))
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_there_are_constraints_of_four_deployments():
    assert [pins.stem for pins in PINS] == ["airflow-2.11.2", "airflow-3.0.6", "airflow-3.2.1", "airflow-3.3.1"]


@pytest.mark.parametrize("end", ["oldest", "newest"])
@pytest.mark.parametrize("pins", PINS, ids=lambda pins: pins.stem)
def test_it_installs_under_constraints(wheel, tmp_path, pins, end):
    airflow = pins.stem.removeprefix("airflow-").rpartition(".")[0]
    python = "3.11" if end == "oldest" else NEWEST_PYTHON[airflow]
    resolved = uv(
        *("pip", "compile", "--no-header", "--no-annotate", "--python-version", python, "--constraint", str(pins), "-"),
        stdin=f"airflow-provider-gptimg[emulator] @ {wheel.as_uri()}",
        cwd=tmp_path,
    )
    assert resolved.returncode == 0, resolved.stderr
    assert set(pins.read_text().split()) <= set(resolved.stdout.split())
